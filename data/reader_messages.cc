// SPDX-License-Identifier: Apache-2.0

#include "data/reader_messages.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr size_t kMemoryBytes =
    AnswerBlocks::kBlocks * AnswerBlocks::kBlockBytes;
constexpr size_t kRequestBytes = 4 << 10;
// Says that a block may be filled again.
constexpr char kReturned = 'r';

absl::Status SystemError(const char* what) {
  return absl::UnavailableError(
      absl::StrCat("cannot ", what, ": ", std::strerror(errno)));
}

}  // namespace

OwnedFd::OwnedFd(OwnedFd&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)) {}
OwnedFd& OwnedFd::operator=(OwnedFd&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}
OwnedFd::~OwnedFd() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<AnswerBlocks> AnswerBlocks::Make(int lowest_fd, OwnedFd* fd) {
  const OwnedFd made(
      memfd_create("cubit answers", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  *fd = OwnedFd(fcntl(made.get(), F_DUPFD_CLOEXEC, lowest_fd));
  // A process that could shorten it could end this one by SIGBUS.
  if (fd->get() < 0 ||
      ftruncate(fd->get(), static_cast<off_t>(kMemoryBytes)) != 0 ||
      fcntl(fd->get(), F_ADD_SEALS,
            F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return SystemError("make memory to share");
  }
  return Map(fd->get());
}

absl::StatusOr<AnswerBlocks> AnswerBlocks::Map(int fd) {
  void* const data =
      mmap(nullptr, kMemoryBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) return SystemError("map shared memory");
  return AnswerBlocks(static_cast<char*>(data));
}

AnswerBlocks::AnswerBlocks(AnswerBlocks&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)) {}
AnswerBlocks& AnswerBlocks::operator=(AnswerBlocks&& other) noexcept {
  std::swap(data_, other.data_);
  return *this;
}
AnswerBlocks::~AnswerBlocks() {
  if (data_ != nullptr) munmap(data_, kMemoryBytes);
}

absl::Span<char> AnswerBlocks::Block(uint64_t number) const {
  return {data_ + number % kBlocks * kBlockBytes, kBlockBytes};
}

void MessageEnd::Put(absl::string_view bytes) {
  while (!bytes.empty() && !gone_) {
    const absl::Span<char> free = room().subspan(put_);
    const size_t count = std::min(free.size(), bytes.size());
    std::memcpy(free.data(), bytes.data(), count);
    bytes.remove_prefix(count);
    put_ += count;
    if (count == free.size()) Flush();
  }
}

void MessageEnd::PutInteger(int64_t value) {
  Put({reinterpret_cast<const char*>(&value), sizeof(value)});
}

void MessageEnd::PutBytes(absl::string_view bytes) {
  PutInteger(static_cast<int64_t>(bytes.size()));
  Put(bytes);
}

bool MessageEnd::Flush() {
  if (put_ > 0 && !gone_) gone_ = !Send(put_);
  put_ = 0;
  return !gone_;
}

bool MessageEnd::SendAll(const void* data, size_t bytes) {
  const char* rest = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t sent = send(socket_.get(), rest, bytes, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return false;
    rest += sent;
    bytes -= static_cast<size_t>(sent);
  }
  return true;
}

void MessageEnd::SetTimeout(double seconds) {
  // Rounded up: a timeout of zero would mean none.
  const auto microseconds = static_cast<int64_t>(std::ceil(1e6 * seconds));
  const timeval timeout = {microseconds / 1000000, microseconds % 1000000};
  CUBIT_CHECK_GT(microseconds, 0);
  CUBIT_CHECK_EQ(setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &timeout,
                            sizeof(timeout)),
                 0);
}

absl::StatusOr<size_t> MessageEnd::ReceiveSome(void* data, size_t bytes) {
  ssize_t got = 0;
  do {
    got = recv(socket_.get(), data, bytes, 0);
  } while (got < 0 && errno == EINTR);
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
    return absl::DeadlineExceededError("silent");
  }
  if (got <= 0) return absl::UnavailableError("gone");
  return static_cast<size_t>(got);
}

absl::StatusOr<absl::string_view> MessageEnd::Take(int64_t bytes) {
  if (received_.empty()) {
    CUBIT_ASSIGN_OR_RETURN(received_, Receive());
  }
  const absl::string_view taken =
      received_.substr(0, static_cast<size_t>(bytes));
  received_.remove_prefix(taken.size());
  return taken;
}

absl::Status MessageEnd::Get(int64_t bytes, char* data) {
  while (bytes > 0) {
    CUBIT_ASSIGN_OR_RETURN(const absl::string_view taken, Take(bytes));
    std::memcpy(data, taken.data(), taken.size());
    data += taken.size();
    bytes -= static_cast<int64_t>(taken.size());
  }
  return absl::OkStatus();
}

absl::Status MessageEnd::GetKind(char* kind) { return Get(1, kind); }

absl::Status MessageEnd::GetInteger(int64_t* value) {
  return Get(sizeof(*value), reinterpret_cast<char*>(value));
}

absl::Status MessageEnd::GetBytes(int64_t max, std::string* bytes) {
  int64_t size = 0;
  CUBIT_RETURN_IF_ERROR(GetInteger(&size));
  if (size < 0 || size > max) {
    return absl::DataLossError(absl::StrCat("a message of ", size, " bytes"));
  }
  bytes->clear();
  bytes->reserve(static_cast<size_t>(size));
  while (size > 0) {
    CUBIT_ASSIGN_OR_RETURN(const absl::string_view taken, Take(size));
    bytes->append(taken.data(), taken.size());
    size -= static_cast<int64_t>(taken.size());
  }
  return absl::OkStatus();
}

absl::Status MessageEnd::GetIds(int64_t max, std::vector<int32_t>* ids) {
  int64_t bytes = 0;
  CUBIT_RETURN_IF_ERROR(GetInteger(&bytes));
  constexpr int64_t kIdBytes = sizeof(int32_t);
  if (bytes < 0 || bytes > kIdBytes * max || bytes % kIdBytes != 0) {
    return absl::DataLossError(absl::StrCat("a message of ", bytes, " bytes"));
  }
  ids->resize(static_cast<size_t>(bytes / kIdBytes));
  return Get(bytes, reinterpret_cast<char*>(ids->data()));
}

AskingEnd::AskingEnd(OwnedFd socket, AnswerBlocks blocks)
    : MessageEnd(std::move(socket)),
      blocks_(std::move(blocks)),
      request_(kRequestBytes) {}

// Also before a request: the process waits for all its blocks first.
bool AskingEnd::ReturnBlock() {
  return !std::exchange(holds_block_, false) ||
         SendAll(&kReturned, sizeof(kReturned));
}

bool AskingEnd::Send(size_t bytes) {
  return ReturnBlock() && SendAll(request_.data(), bytes);
}

absl::StatusOr<absl::string_view> AskingEnd::Receive() {
  // If the process is gone, what it said before is still there.
  ReturnBlock();
  uint32_t filled = 0;
  char* const field = reinterpret_cast<char*>(&filled);
  for (size_t got = 0; got < sizeof(filled);) {
    CUBIT_ASSIGN_OR_RETURN(const size_t more,
                           ReceiveSome(field + got, sizeof(filled) - got));
    got += more;
  }
  if (filled == 0 || filled > AnswerBlocks::kBlockBytes) {
    return absl::DataLossError(absl::StrCat("a block of ", filled, " bytes"));
  }
  holds_block_ = true;
  return absl::string_view(blocks_.Block(block_++).data(), filled);
}

AnsweringEnd::AnsweringEnd(OwnedFd socket, AnswerBlocks blocks)
    : MessageEnd(std::move(socket)),
      blocks_(std::move(blocks)),
      request_(kRequestBytes) {}

bool AnsweringEnd::AwaitBlocks(uint64_t most) {
  while (block_ - returned_ > most) {
    std::array<char, AnswerBlocks::kBlocks> returned;
    const absl::StatusOr<size_t> count =
        ReceiveSome(returned.data(), block_ - returned_ - most);
    if (!count.ok()) return false;
    returned_ += *count;
  }
  return true;
}

bool AnsweringEnd::Send(size_t bytes) {
  const auto filled = static_cast<uint32_t>(bytes);
  if (!SendAll(&filled, sizeof(filled))) return false;
  ++block_;
  return AwaitBlocks(AnswerBlocks::kBlocks - 1);
}

absl::StatusOr<absl::string_view> AnsweringEnd::Receive() {
  if (!AwaitBlocks(0)) return absl::UnavailableError("gone");
  CUBIT_ASSIGN_OR_RETURN(const size_t count,
                         ReceiveSome(request_.data(), request_.size()));
  return absl::string_view(request_.data(), count);
}

}  // namespace cubit
