// SPDX-License-Identifier: Apache-2.0
//
// What a program and the process that reads for it say to each other: a
// request, then answers, and so on. A message is a byte that says its kind and
// fields; integers are 8 bytes, strings and lists have their length first.
//
// Requests go through a socket. Answers, which hold the text, lie in blocks of
// memory that both map; the socket says how much of the next block is filled
// and, the other way, that a block may be filled again. So text is copied
// within the processor's cache, twice, where the kernel would copy it into and
// out of fresh pages.

#ifndef CUBIT_DATA_READER_MESSAGES_H_
#define CUBIT_DATA_READER_MESSAGES_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

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

// A file descriptor that is closed with this. Move-only.
class OwnedFd {
 public:
  explicit OwnedFd(int fd = -1) : fd_(fd) {}
  OwnedFd(OwnedFd&& other) noexcept;
  OwnedFd& operator=(OwnedFd&& other) noexcept;
  ~OwnedFd();
  int get() const { return fd_; }

 private:
  int fd_;
};

// The memory of the answers, mapped. Move-only.
class AnswerBlocks {
 public:
  static constexpr size_t kBlocks = 4;
  static constexpr size_t kBlockBytes = 256 << 10;

  AnswerBlocks() = default;
  // Memory whose size no process can change, and in *fd, a number of at least
  // `lowest_fd`, what to Map it by.
  static absl::StatusOr<AnswerBlocks> Make(int lowest_fd, OwnedFd* fd);
  static absl::StatusOr<AnswerBlocks> Map(int fd);
  AnswerBlocks(AnswerBlocks&& other) noexcept;
  AnswerBlocks& operator=(AnswerBlocks&& other) noexcept;
  ~AnswerBlocks();

  // Block `number` modulo kBlocks.
  absl::Span<char> Block(uint64_t number) const;

 private:
  explicit AnswerBlocks(char* data) : data_(data) {}
  char* data_ = nullptr;
};

// One end of the conversation. What is put is sent when there is much of it.
class MessageEnd {
 public:
  explicit MessageEnd(OwnedFd socket) : socket_(std::move(socket)) {}
  virtual ~MessageEnd() = default;
  MessageEnd(const MessageEnd&) = delete;
  MessageEnd& operator=(const MessageEnd&) = delete;

  void PutKind(char kind) { Put({&kind, 1}); }
  void PutInteger(int64_t value);
  void PutBytes(absl::string_view bytes);
  // Sends the rest. False when the other end is gone, then and from then on.
  bool Flush();
  bool gone() const { return gone_; }

  // Unavailable when the other end is gone, DeadlineExceeded after the
  // timeout's silence, DataLoss for a length beyond `max`.
  void SetTimeout(double seconds);
  absl::Status GetKind(char* kind);
  absl::Status GetInteger(int64_t* value);
  absl::Status GetBytes(int64_t max, std::string* bytes);
  absl::Status GetIds(int64_t max, std::vector<int32_t>* ids);

 protected:
  // Sends the first `bytes` of room() and makes new room.
  virtual bool Send(size_t bytes) = 0;
  // Where what is put goes; never empty.
  virtual absl::Span<char> room() = 0;
  // Something more that was received, good until the next call.
  virtual absl::StatusOr<absl::string_view> Receive() = 0;

  bool SendAll(const void* data, size_t bytes);
  // At least one byte of at most `bytes`.
  absl::StatusOr<size_t> ReceiveSome(void* data, size_t bytes);

 private:
  void Put(absl::string_view bytes);
  absl::StatusOr<absl::string_view> Take(int64_t bytes);
  absl::Status Get(int64_t bytes, char* data);

  OwnedFd socket_;
  size_t put_ = 0;  // bytes of room()
  bool gone_ = false;
  absl::string_view received_;
};

// The end of the program: puts requests and gets answers. What it gets is in
// memory that the process may still write, so every byte is looked at once.
class AskingEnd : public MessageEnd {
 public:
  AskingEnd(OwnedFd socket, AnswerBlocks blocks);

 protected:
  bool Send(size_t bytes) override;
  absl::Span<char> room() override { return absl::MakeSpan(request_); }
  absl::StatusOr<absl::string_view> Receive() override;

 private:
  bool ReturnBlock();

  const AnswerBlocks blocks_;
  uint64_t block_ = 0;        // to be received next
  bool holds_block_ = false;  // the one before it
  std::vector<char> request_;
};

// The end of the process.
class AnsweringEnd : public MessageEnd {
 public:
  AnsweringEnd(OwnedFd socket, AnswerBlocks blocks);

 protected:
  bool Send(size_t bytes) override;
  absl::Span<char> room() override { return blocks_.Block(block_); }
  absl::StatusOr<absl::string_view> Receive() override;

 private:
  // Waits until at most `most` blocks are with the other end.
  bool AwaitBlocks(uint64_t most);

  const AnswerBlocks blocks_;
  uint64_t block_ = 0;  // that is being filled
  uint64_t returned_ = 0;
  std::vector<char> request_;
};

}  // namespace cubit

#endif  // CUBIT_DATA_READER_MESSAGES_H_
