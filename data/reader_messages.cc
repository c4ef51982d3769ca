// SPDX-License-Identifier: Apache-2.0

#include "data/reader_messages.h"

#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr size_t kBufferBytes = 256 << 10;

}  // namespace

MessageSocket::MessageSocket(MessageSocket&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      out_(std::move(other.out_)),
      in_(std::move(other.in_)),
      in_begin_(std::exchange(other.in_begin_, 0)),
      in_end_(std::exchange(other.in_end_, 0)) {}

MessageSocket& MessageSocket::operator=(MessageSocket&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(out_, other.out_);
  std::swap(in_, other.in_);
  std::swap(in_begin_, other.in_begin_);
  std::swap(in_end_, other.in_end_);
  return *this;
}

MessageSocket::~MessageSocket() {
  if (fd_ >= 0) close(fd_);
}

void MessageSocket::PutInteger(int64_t value) {
  out_.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void MessageSocket::PutBytes(absl::string_view bytes) {
  PutInteger(static_cast<int64_t>(bytes.size()));
  out_.append(bytes.data(), bytes.size());
}

bool MessageSocket::Flush() {
  size_t done = 0;
  while (done < out_.size()) {
    const ssize_t sent =
        send(fd_, out_.data() + done, out_.size() - done, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return false;
    done += static_cast<size_t>(sent);
  }
  out_.clear();
  return true;
}

bool MessageSocket::FlushIfFull() {
  return out_.size() < kBufferBytes || Flush();
}

void MessageSocket::SetTimeout(double seconds) {
  // Rounded up: a timeout of zero would mean none.
  const auto microseconds = static_cast<int64_t>(std::ceil(1e6 * seconds));
  const timeval timeout = {microseconds / 1000000, microseconds % 1000000};
  CUBIT_CHECK_GT(microseconds, 0);
  CUBIT_CHECK_EQ(
      setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)), 0);
}

absl::Status MessageSocket::Fill() {
  in_.resize(kBufferBytes);
  in_begin_ = 0;
  in_end_ = 0;
  ssize_t got = 0;
  do {
    got = recv(fd_, in_.data(), in_.size(), 0);
  } while (got < 0 && errno == EINTR);
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
    return absl::DeadlineExceededError("silent");
  }
  if (got <= 0) return absl::UnavailableError("gone");
  in_end_ = static_cast<size_t>(got);
  return absl::OkStatus();
}

absl::StatusOr<absl::string_view> MessageSocket::Take(int64_t bytes) {
  if (in_begin_ == in_end_) CUBIT_RETURN_IF_ERROR(Fill());
  const size_t count =
      std::min(in_end_ - in_begin_, static_cast<size_t>(bytes));
  const absl::string_view taken(in_.data() + in_begin_, count);
  in_begin_ += count;
  return taken;
}

absl::Status MessageSocket::Get(int64_t bytes, char* data) {
  while (bytes > 0) {
    CUBIT_ASSIGN_OR_RETURN(const absl::string_view taken, Take(bytes));
    std::memcpy(data, taken.data(), taken.size());
    data += taken.size();
    bytes -= static_cast<int64_t>(taken.size());
  }
  return absl::OkStatus();
}

absl::Status MessageSocket::GetKind(char* kind) { return Get(1, kind); }

absl::Status MessageSocket::GetInteger(int64_t* value) {
  return Get(sizeof(*value), reinterpret_cast<char*>(value));
}

absl::Status MessageSocket::GetBytes(int64_t max, std::string* bytes) {
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

absl::Status MessageSocket::GetIds(int64_t max, std::vector<int32_t>* ids) {
  int64_t bytes = 0;
  CUBIT_RETURN_IF_ERROR(GetInteger(&bytes));
  constexpr int64_t kIdBytes = sizeof(int32_t);
  if (bytes < 0 || bytes > kIdBytes * max || bytes % kIdBytes != 0) {
    return absl::DataLossError(absl::StrCat("a message of ", bytes, " bytes"));
  }
  ids->resize(static_cast<size_t>(bytes / kIdBytes));
  return Get(bytes, reinterpret_cast<char*>(ids->data()));
}

}  // namespace cubit
