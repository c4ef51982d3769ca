// SPDX-License-Identifier: Apache-2.0
//
// The documents of all pieces in order, read ahead by several threads.

#ifndef CUBIT_DATA_PIECE_QUEUE_H_
#define CUBIT_DATA_PIECE_QUEUE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"

#include "data/input_reader.h"

namespace cubit {

// Consecutive documents of one piece.
struct DocumentBatch {
  std::vector<InputDocument> documents;
  int64_t bytes = 0;  // of text; 4 for an id
  int64_t file = 0;   // number of the last one's file among the inputs
};

// Each thread takes the next piece and reads it whole, so that at most
// `threads` pieces are open: the one that is being taken and those after it.
class PieceQueue {
 public:
  // `reader` must outlive this.
  PieceQueue(std::vector<InputPiece> pieces, InputReader* reader,
             const TokenVocabulary& vocabulary, int threads);
  // Stops all threads, whatever is left.
  ~PieceQueue();
  PieceQueue(const PieceQueue&) = delete;
  PieceQueue& operator=(const PieceQueue&) = delete;

  // Replaces *batch with the next, of about 512 KiB; false after the last. An
  // error comes after the documents before it and repeats. For one thread; Stop
  // may be called by another.
  absl::StatusOr<bool> Next(DocumentBatch* batch);

  // Ends Next, now and for ever, with Cancelled.
  void Stop();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace cubit

#endif  // CUBIT_DATA_PIECE_QUEUE_H_
