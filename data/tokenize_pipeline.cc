// SPDX-License-Identifier: Apache-2.0

#include "data/tokenize_pipeline.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "data/text_source.h"
#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

// Enough that a lock a batch costs nothing, little enough that threads share
// the last ones.
constexpr int64_t kBatchBytes = 256 << 10;
constexpr int64_t kBatchDocuments = 4096;
// Text that is read and not yet taken by the caller; one batch always fits.
constexpr int64_t kQueuedBytes = int64_t{32} << 20;

struct Work {
  std::vector<std::string> texts;  // "" where not wanted
  TokenizedBatch result;
  bool done = false;

  void Tokenize(const Tokenizer& tokenizer) {
    result.begins.push_back(0);
    for (std::string& text : texts) {
      if (!text.empty()) tokenizer.Encode(text, &result.ids);
      result.begins.push_back(static_cast<int64_t>(result.ids.size()));
      text = std::string();
    }
  }
};

}  // namespace

// std::mutex, because ThreadSanitizer does not see into the distribution's
// absl::Mutex.
struct TokenizePipeline::State {
  std::vector<std::string> paths;
  const Tokenizer* tokenizer = nullptr;
  std::function<bool(int64_t)> wanted;
  int64_t documents = 0;  // read so far; used by the reading thread alone

  std::mutex mutex;
  std::condition_variable changed;
  // In order. The first `taken` are with tokenising threads or done.
  std::deque<std::unique_ptr<Work>> queue;  // by mutex, as all below
  size_t taken = 0;
  int64_t queued_bytes = 0;
  bool read_all = false;
  absl::Status error;
  bool stopping = false;

  std::thread reader;
  std::vector<std::thread> workers;

  void ReadMain();
  absl::Status ReadFiles();
  absl::Status ReadFile(int64_t file, std::unique_ptr<Work>* work);
  // False when stopping.
  bool Push(std::unique_ptr<Work> work);
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
  changed.wait(lock, [this, bytes] {
    return stopping || queue.empty() || queued_bytes + bytes <= kQueuedBytes;
  });
  if (stopping) return false;
  queued_bytes += bytes;
  queue.push_back(std::move(work));
  changed.notify_all();
  return true;
}

absl::Status TokenizePipeline::State::ReadFile(int64_t file,
                                               std::unique_ptr<Work>* work) {
  CUBIT_ASSIGN_OR_RETURN(const std::unique_ptr<TextSource> source,
                         OpenTextFile(paths[static_cast<size_t>(file)]));
  std::string text;
  for (;;) {
    CUBIT_ASSIGN_OR_RETURN(const bool more, source->Next(&text));
    if (!more) return absl::OkStatus();
    if (*work == nullptr) {
      *work = std::make_unique<Work>();
      (*work)->result.first_document = documents;
    }
    TokenizedBatch& batch = (*work)->result;
    batch.file = file;
    batch.text_bytes += static_cast<int64_t>(text.size());
    // Sources leave out documents without text, so "" can stand for one that
    // is not wanted.
    CUBIT_CHECK(!text.empty());
    (*work)->texts.push_back(wanted(documents++) ? std::move(text)
                                                 : std::string());
    const bool full = batch.text_bytes >= kBatchBytes ||
                      documents - batch.first_document >= kBatchDocuments;
    if (full && !Push(std::move(*work))) {
      return absl::CancelledError("stopped");
    }
  }
}

absl::Status TokenizePipeline::State::ReadFiles() {
  std::unique_ptr<Work> work;
  absl::Status status;
  for (size_t file = 0; file < paths.size() && status.ok(); ++file) {
    status = ReadFile(static_cast<int64_t>(file), &work);
  }
  // After an error too: the documents before it come first.
  if (work != nullptr) Push(std::move(work));
  return status;
}

void TokenizePipeline::State::ReadMain() {
  absl::Status status = ReadFiles();
  const std::lock_guard<std::mutex> lock(mutex);
  error = std::move(status);
  read_all = true;
  changed.notify_all();
}

void TokenizePipeline::State::WorkMain() {
  std::unique_lock<std::mutex> lock(mutex);
  for (;;) {
    changed.wait(
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
    changed.notify_all();
  }
}

TokenizePipeline::TokenizePipeline(std::vector<std::string> paths,
                                   const Tokenizer& tokenizer, int threads,
                                   std::function<bool(int64_t)> wanted)
    : state_(std::make_unique<State>()) {
  CUBIT_CHECK_GE(threads, 1);
  state_->paths = std::move(paths);
  state_->tokenizer = &tokenizer;
  state_->wanted = std::move(wanted);
  State* const state = state_.get();
  state->reader = std::thread([state] { state->ReadMain(); });
  for (int i = 0; i < threads; ++i) {
    state->workers.emplace_back([state] { state->WorkMain(); });
  }
}

TokenizePipeline::~TokenizePipeline() {
  {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->stopping = true;
  }
  state_->changed.notify_all();
  state_->reader.join();
  for (std::thread& worker : state_->workers) worker.join();
}

absl::StatusOr<bool> TokenizePipeline::Next(TokenizedBatch* batch) {
  std::unique_lock<std::mutex> lock(state_->mutex);
  auto& queue = state_->queue;
  state_->changed.wait(lock, [this, &queue] {
    return queue.empty() ? state_->read_all : queue.front()->done;
  });
  if (queue.empty()) {
    if (!state_->error.ok()) return state_->error;
    return false;
  }
  *batch = std::move(queue.front()->result);
  queue.pop_front();
  --state_->taken;
  state_->queued_bytes -= batch->text_bytes;
  state_->changed.notify_all();
  return true;
}

}  // namespace cubit
