// SPDX-License-Identifier: Apache-2.0

#include "data/piece_queue.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

// Enough that a lock and the waking of a thread a batch cost little, little
// enough that threads share the last ones.
constexpr int64_t kBatchBytes = 512 << 10;
constexpr size_t kBatchDocuments = 4096;
// Read ahead of one piece; one batch always fits. A usual piece fits whole.
constexpr int64_t kAheadBytes = int64_t{16} << 20;

int64_t BytesOf(const InputDocument& document) {
  return static_cast<int64_t>(document.text.size() +
                              document.ids.size() * sizeof(int32_t));
}

// One piece that is being read or was.
struct OpenPiece {
  std::deque<DocumentBatch> batches;
  int64_t bytes = 0;  // in them
  bool ended = false;
  absl::Status error;
};

}  // namespace

// std::mutex, because ThreadSanitizer does not see into the distribution's
// absl::Mutex.
struct PieceQueue::State {
  std::vector<InputPiece> pieces;
  InputReader* reader = nullptr;
  TokenVocabulary vocabulary;

  std::mutex mutex;
  std::condition_variable added;    // to the first piece, or it ended
  std::condition_variable removed;  // what readers wait for
  // The pieces from number `first` on that threads have taken, by mutex as all
  // below.
  std::deque<std::unique_ptr<OpenPiece>> open;
  size_t taken = 0;
  bool stopping = false;
  absl::Status error;
  std::vector<std::thread> threads;

  void Main();
  absl::Status Read(const InputPiece& piece, OpenPiece* open_piece);
  // False when stopping.
  bool Push(DocumentBatch* batch, OpenPiece* open_piece);
};

bool PieceQueue::State::Push(DocumentBatch* batch, OpenPiece* open_piece) {
  std::unique_lock<std::mutex> lock(mutex);
  const int64_t bytes = batch->bytes;
  if (!open_piece->batches.empty() && open_piece->bytes + bytes > kAheadBytes) {
    removed.wait(lock, [this, open_piece] {
      return stopping || open_piece->bytes <= kAheadBytes / 2;
    });
  }
  if (stopping) return false;
  open_piece->bytes += bytes;
  open_piece->batches.push_back(std::move(*batch));
  *batch = DocumentBatch();
  if (open_piece == open.front().get()) added.notify_one();
  return true;
}

absl::Status PieceQueue::State::Read(const InputPiece& piece,
                                     OpenPiece* open_piece) {
  CUBIT_ASSIGN_OR_RETURN(const std::unique_ptr<InputStream> stream,
                         reader->Open(piece, vocabulary));
  DocumentBatch batch;
  InputDocument document;
  while (true) {
    const absl::StatusOr<bool> more = stream->Next(&document);
    if (!more.ok() || !*more) {
      // After an error too: the documents before it come first.
      if (!batch.documents.empty()) Push(&batch, open_piece);
      return more.status();
    }
    batch.bytes += BytesOf(document);
    batch.file = piece.first_path + document.path;
    batch.documents.push_back(std::move(document));
    document = InputDocument();
    if (batch.bytes < kBatchBytes && batch.documents.size() < kBatchDocuments) {
      continue;
    }
    if (!Push(&batch, open_piece)) return absl::CancelledError("stopped");
  }
}

void PieceQueue::State::Main() {
  std::unique_lock<std::mutex> lock(mutex);
  while (true) {
    // As many pieces are open as there are threads.
    removed.wait(lock, [this] {
      return stopping || taken == pieces.size() || open.size() < threads.size();
    });
    if (stopping || taken == pieces.size()) return;
    open.push_back(std::make_unique<OpenPiece>());
    // Stays until it has ended and was emptied, so the pointer stays good.
    OpenPiece* const open_piece = open.back().get();
    const InputPiece& piece = pieces[taken++];
    lock.unlock();
    absl::Status status = Read(piece, open_piece);
    lock.lock();
    open_piece->error = std::move(status);
    open_piece->ended = true;
    if (open_piece == open.front().get()) added.notify_one();
  }
}

PieceQueue::PieceQueue(std::vector<InputPiece> pieces, InputReader* reader,
                       const TokenVocabulary& vocabulary, int threads)
    : state_(std::make_unique<State>()) {
  CUBIT_CHECK_GE(threads, 1);
  state_->pieces = std::move(pieces);
  state_->reader = reader;
  state_->vocabulary = vocabulary;
  State* const state = state_.get();
  // The threads look at their number.
  const std::lock_guard<std::mutex> lock(state_->mutex);
  for (int i = 0; i < threads; ++i) {
    state_->threads.emplace_back([state] { state->Main(); });
  }
}

PieceQueue::~PieceQueue() {
  Stop();
  for (std::thread& thread : state_->threads) thread.join();
}

void PieceQueue::Stop() {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  state_->stopping = true;
  state_->added.notify_one();
  state_->removed.notify_all();
}

absl::StatusOr<bool> PieceQueue::Next(DocumentBatch* batch) {
  State& state = *state_;
  std::unique_lock<std::mutex> lock(state.mutex);
  while (true) {
    state.added.wait(lock, [&state] {
      if (state.stopping || !state.error.ok()) return true;
      if (state.open.empty()) return state.taken == state.pieces.size();
      return state.open.front()->ended || !state.open.front()->batches.empty();
    });
    if (state.stopping) return absl::CancelledError("stopped");
    if (!state.error.ok()) return state.error;
    if (state.open.empty()) return false;
    OpenPiece& piece = *state.open.front();
    if (!piece.batches.empty()) {
      *batch = std::move(piece.batches.front());
      piece.batches.pop_front();
      piece.bytes -= batch->bytes;
      // Reading goes on in bursts (data/tokenize_pipeline.cc).
      if (piece.bytes <= kAheadBytes / 2) state.removed.notify_all();
      return true;
    }
    state.error = piece.error;
    state.open.pop_front();
    state.removed.notify_all();
  }
}

}  // namespace cubit
