// SPDX-License-Identifier: Apache-2.0

#include "data/reader_messages.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr size_t kBufferBytes = 256 << 10;

}  // namespace

MessageSocket::MessageSocket(MessageSocket&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      seconds_(other.seconds_),
      out_(std::move(other.out_)),
      in_(std::move(other.in_)),
      in_begin_(other.in_begin_) {}

MessageSocket& MessageSocket::operator=(MessageSocket&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(seconds_, other.seconds_);
  std::swap(out_, other.out_);
  std::swap(in_, other.in_);
  std::swap(in_begin_, other.in_begin_);
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

absl::Status MessageSocket::Fill() {
  pollfd waiting = {fd_, POLLIN, 0};
  const int milliseconds =
      seconds_ < 0 ? -1 : static_cast<int>(1000 * seconds_);
  int ready = 0;
  do {
    ready = poll(&waiting, 1, milliseconds);
  } while (ready < 0 && errno == EINTR);
  if (ready == 0) return absl::DeadlineExceededError("silent");
  in_.resize(kBufferBytes);
  in_begin_ = 0;
  ssize_t got = 0;
  do {
    got = recv(fd_, in_.data(), in_.size(), 0);
  } while (got < 0 && errno == EINTR);
  in_.resize(got < 0 ? 0 : static_cast<size_t>(got));
  return got > 0 ? absl::OkStatus() : absl::UnavailableError("gone");
}

absl::Status MessageSocket::Get(int64_t bytes, char* data) {
  while (bytes > 0) {
    if (in_begin_ == in_.size()) CUBIT_RETURN_IF_ERROR(Fill());
    const size_t count =
        std::min(in_.size() - in_begin_, static_cast<size_t>(bytes));
    std::memcpy(data, in_.data() + in_begin_, count);
    in_begin_ += count;
    data += count;
    bytes -= static_cast<int64_t>(count);
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
  bytes->resize(static_cast<size_t>(size));
  return Get(size, bytes->data());
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
