// SPDX-License-Identifier: Apache-2.0
//
// The inside of a process of data/reader_process.h.

#ifndef CUBIT_DATA_READER_CHILD_H_
#define CUBIT_DATA_READER_CHILD_H_

#include "data/input_reader.h"
#include "data/reader_messages.h"
#include "data/reader_process.h"

namespace cubit {

// How a program is told to be such a process, and where it finds its socket and
// the memory of its answers.
constexpr char kReaderProcessFlag[] = "--cubit_reader_process";
constexpr int kReaderProcessSocket = 3;
constexpr int kReaderProcessMemory = 4;
// Exit status after an allocation that the limit forbade.
constexpr int kReaderOutOfMemory = 77;

struct ReaderRequest {
  ReaderTask task = ReaderTask::kPiece;
  ReaderLimits limits;
  InputPiece piece;  // of other tasks the paths alone
  TokenVocabulary vocabulary;
};

void PutRequest(const ReaderRequest& request, MessageEnd* end);

}  // namespace cubit

#endif  // CUBIT_DATA_READER_CHILD_H_
