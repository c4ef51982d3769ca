// SPDX-License-Identifier: Apache-2.0

#include "data/tokenize_pipeline.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "data/piece_queue.h"
#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

// Text that is numbered and not yet taken by the caller, for each thread and at
// most; one batch always fits. More goes through more memory, and less would
// let threads wait while the caller makes a shard.
constexpr int64_t kQueuedBytes = int64_t{8} << 20;
constexpr int64_t kMaxQueuedBytes = int64_t{64} << 20;

struct Work {
  std::vector<InputDocument> documents;
  std::vector<char> wanted;  // of each document; bools would share bytes
  TokenizedBatch result;
  bool done = false;

  void Tokenize(const Tokenizer& tokenizer) {
    result.begins.push_back(0);
    // English has over four bytes a token; more room costs copies, not errors.
    result.ids.reserve(static_cast<size_t>(result.text_bytes) / 4);
    for (size_t d = 0; d < documents.size(); ++d) {
      InputDocument& document = documents[d];
      if (wanted[d] != 0 && document.is_tokens) {
        result.ids.insert(result.ids.end(), document.ids.begin(),
                          document.ids.end());
      } else if (wanted[d] != 0) {
        tokenizer.Encode(document.text, &result.ids);
      }
      result.begins.push_back(static_cast<int64_t>(result.ids.size()));
      result.stated_tokens.push_back(wanted[d] != 0 ? document.stated_tokens
                                                    : -1);
      document = InputDocument();
    }
  }
};

}  // namespace

// The caller and the threads that read work in bursts of megabytes: each time
// that one of them runs, its data takes the place of the tokenizer's tables in
// the processor's cache.
struct TokenizePipeline::State {
  const Tokenizer* tokenizer = nullptr;
  std::function<bool(int64_t)> wanted;
  std::unique_ptr<PieceQueue> pieces;

  int64_t max_queued_bytes = 0;

  std::mutex mutex;
  // One for each kind of thread that waits, so that none wakes for nothing.
  std::condition_variable work_added;  // for workers
  std::condition_variable room_made;   // for the orderer
  std::condition_variable front_done;  // for Next
  // In order. The first `taken` are with tokenising threads or done.
  std::deque<std::unique_ptr<Work>> queue;  // by mutex, as all below
  size_t taken = 0;
  int64_t queued_bytes = 0;
  // Results that lie there, and whether Next is taking them.
  size_t done = 0;
  int64_t done_bytes = 0;
  bool draining = false;
  bool read_all = false;
  absl::Status error;
  bool stopping = false;

  std::thread orderer;
  std::vector<std::thread> workers;

  void OrderMain();
  absl::Status NumberAll();
  // False when stopping.
  bool Push(std::unique_ptr<Work> work);
  bool HasRoom() const { return queued_bytes <= max_queued_bytes / 2; }
  // Whether Next may go on. When nothing is being tokenised, all is done.
  bool HasResult() const {
    return !queue.empty() && queue.front()->done &&
           (draining || done_bytes >= max_queued_bytes / 4 ||
            done == queue.size());
  }
  void WorkMain();
};

absl::Span<const int32_t> TokenizedBatch::Ids(int64_t d) const {
  CUBIT_CHECK(d >= 0 && d < documents());
  const size_t begin = static_cast<size_t>(begins[static_cast<size_t>(d)]);
  const size_t end = static_cast<size_t>(begins[static_cast<size_t>(d) + 1]);
  return absl::MakeConstSpan(ids).subspan(begin, end - begin);
}

bool TokenizePipeline::State::Push(std::unique_ptr<Work> work) {
  std::unique_lock<std::mutex> lock(mutex);
  const int64_t bytes = work->result.text_bytes;
  if (!queue.empty() && queued_bytes + bytes > max_queued_bytes) {
    room_made.wait(lock, [this] { return stopping || HasRoom(); });
  }
  if (stopping) return false;
  queued_bytes += bytes;
  queue.push_back(std::move(work));
  work_added.notify_one();
  return true;
}

// Gives every document its number: what is wanted depends on it.
absl::Status TokenizePipeline::State::NumberAll() {
  int64_t documents = 0;
  DocumentBatch batch;
  while (true) {
    CUBIT_ASSIGN_OR_RETURN(const bool more, pieces->Next(&batch));
    if (!more) return absl::OkStatus();
    auto work = std::make_unique<Work>();
    work->documents = std::move(batch.documents);
    work->result.first_document = documents;
    work->result.text_bytes = batch.bytes;
    work->result.file = batch.file;
    for (size_t d = 0; d < work->documents.size(); ++d) {
      work->wanted.push_back(wanted(documents++) ? 1 : 0);
    }
    if (!Push(std::move(work))) return absl::CancelledError("stopped");
  }
}

void TokenizePipeline::State::OrderMain() {
  absl::Status status = NumberAll();
  const std::lock_guard<std::mutex> lock(mutex);
  error = std::move(status);
  read_all = true;
  work_added.notify_all();
  front_done.notify_one();
}

void TokenizePipeline::State::WorkMain() {
  std::unique_lock<std::mutex> lock(mutex);
  for (;;) {
    work_added.wait(
        lock, [this] { return stopping || read_all || taken < queue.size(); });
    if (stopping) return;
    if (taken == queue.size()) {
      if (read_all) return;
      continue;
    }
    // Stays in the queue until it is done, so the pointer stays good.
    Work* const work = queue[taken++].get();
    lock.unlock();
    work->Tokenize(*tokenizer);
    lock.lock();
    work->done = true;
    ++done;
    done_bytes += work->result.text_bytes;
    if (HasResult()) front_done.notify_one();
  }
}

TokenizePipeline::TokenizePipeline(std::vector<InputPiece> pieces,
                                   InputReader* reader,
                                   const Tokenizer& tokenizer, int threads,
                                   std::function<bool(int64_t)> wanted)
    : state_(std::make_unique<State>()) {
  CUBIT_CHECK_GE(threads, 1);
  const int readers =
      std::max(1, std::min(threads, static_cast<int>(pieces.size())));
  state_->tokenizer = &tokenizer;
  state_->wanted = std::move(wanted);
  state_->max_queued_bytes = std::min(threads * kQueuedBytes, kMaxQueuedBytes);
  state_->pieces = std::make_unique<PieceQueue>(
      std::move(pieces), reader,
      TokenVocabulary{tokenizer.vocab_size(), tokenizer.eot_id()}, readers);
  State* const state = state_.get();
  state->orderer = std::thread([state] { state->OrderMain(); });
  for (int i = 0; i < threads; ++i) {
    state->workers.emplace_back([state] { state->WorkMain(); });
  }
}

TokenizePipeline::~TokenizePipeline() {
  {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->stopping = true;
  }
  state_->work_added.notify_all();
  state_->room_made.notify_one();
  state_->pieces->Stop();
  state_->orderer.join();
  for (std::thread& worker : state_->workers) worker.join();
}

absl::StatusOr<bool> TokenizePipeline::Next(TokenizedBatch* batch) {
  std::unique_lock<std::mutex> lock(state_->mutex);
  auto& queue = state_->queue;
  state_->front_done.wait(lock, [this, &queue] {
    return queue.empty() ? state_->read_all : state_->HasResult();
  });
  if (queue.empty()) {
    if (!state_->error.ok()) return state_->error;
    return false;
  }
  *batch = std::move(queue.front()->result);
  queue.pop_front();
  --state_->taken;
  --state_->done;
  state_->queued_bytes -= batch->text_bytes;
  state_->done_bytes -= batch->text_bytes;
  state_->draining = !queue.empty() && queue.front()->done;
  if (state_->HasRoom()) state_->room_made.notify_one();
  return true;
}

}  // namespace cubit
