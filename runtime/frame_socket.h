// SPDX-License-Identifier: Apache-2.0
//
// TCP connections between processes of one run that carry frames (a length and
// so many bytes) and never block: the watchdog's wires.

#ifndef CUBIT_RUNTIME_FRAME_SOCKET_H_
#define CUBIT_RUNTIME_FRAME_SOCKET_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace cubit {

// A file descriptor. Move-only; -1: none.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() { Close(); }
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&& other) noexcept;
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return fd_; }
  void Close();

 private:
  int fd_ = -1;
};

class FrameSocket {
 public:
  // A frame that is longer ends the connection: the other side is none of ours.
  static constexpr size_t kMaxFrameBytes = size_t{4} << 20;

  FrameSocket() = default;
  // `fd` is connected; it is made non-blocking.
  explicit FrameSocket(Descriptor fd);

  bool open() const { return fd_.get() >= 0; }
  int fd() const { return fd_.get(); }
  // Bytes that the other side has not taken yet.
  size_t unsent() const { return out_.size(); }

  void Queue(absl::string_view frame);
  // Sends and receives what can be done now; returns complete frames. Closes if
  // the connection has ended.
  std::vector<std::string> Move();

 private:
  void Write();
  bool Read();  // false: the connection has ended

  Descriptor fd_;
  std::string out_;
  std::string in_;
};

// Listens on every interface, at a free port.
absl::StatusOr<Descriptor> ListenAnywhere();
int PortOf(const Descriptor& listening);

// Numeric addresses of this machine's interfaces, the loopback ones last.
std::vector<std::string> InterfaceAddresses();

// The first address that accepts, each within a few seconds. Unavailable, with
// the last reason.
absl::StatusOr<FrameSocket> ConnectToAny(
    const std::vector<std::string>& addresses, int port,
    absl::Duration timeout);

}  // namespace cubit

#endif  // CUBIT_RUNTIME_FRAME_SOCKET_H_
