// SPDX-License-Identifier: Apache-2.0
//
// What a program and the process that reads for it say to each other over a
// socket: a request, then answers, and so on. A message is a byte that says its
// kind and fields; integers are 8 bytes, strings and lists have their length
// first.

#ifndef CUBIT_DATA_READER_MESSAGES_H_
#define CUBIT_DATA_READER_MESSAGES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace cubit {

enum class ReaderTask : char {
  kPiece = 'p',
  kParquetGroups = 'g',
  kTokenizer = 't',
  kOpenShards = 's',
  kVerifyShards = 'v',
};

enum class ReaderAnswer : char {
  kText = 'd',    // path, stated tokens, text
  kTokens = 'i',  // path, ids
  kGroup = 'g',   // rows, bytes of text
  kPath = 'f',    // number of the file that is opened next
  kError = 'e',   // code, message; then the process ends
  kEnd = 'z',     // the last; another request may follow
};

// One end of the socket, buffered. Move-only.
class MessageSocket {
 public:
  explicit MessageSocket(int fd) : fd_(fd) {}
  MessageSocket(MessageSocket&& other) noexcept;
  MessageSocket& operator=(MessageSocket&& other) noexcept;
  ~MessageSocket();

  // Writing. What is put is sent by Flush, or when there is much of it. False
  // when the other end is gone.
  void PutKind(char kind) { out_.push_back(kind); }
  void PutInteger(int64_t value);
  void PutBytes(absl::string_view bytes);
  bool Flush();
  bool FlushIfFull();

  // Reading. Unavailable when the other end is gone, DeadlineExceeded after
  // the timeout's silence, DataLoss for a length beyond `max`.
  void SetTimeout(double seconds);
  absl::Status GetKind(char* kind);
  absl::Status GetInteger(int64_t* value);
  absl::Status GetBytes(int64_t max, std::string* bytes);
  absl::Status GetIds(int64_t max, std::vector<int32_t>* ids);

 private:
  // Up to `bytes` of what was received, at least 1; good until the next call.
  absl::StatusOr<absl::string_view> Take(int64_t bytes);
  absl::Status Get(int64_t bytes, char* data);
  absl::Status Fill();

  int fd_ = -1;
  std::string out_;
  std::string in_;
  size_t in_begin_ = 0;  // of in_, what is not taken yet
  size_t in_end_ = 0;
};

}  // namespace cubit

#endif  // CUBIT_DATA_READER_MESSAGES_H_
