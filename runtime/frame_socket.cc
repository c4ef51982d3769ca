// SPDX-License-Identifier: Apache-2.0

#include "runtime/frame_socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

#include "runtime/host_name.h"

namespace cubit {
namespace {

constexpr size_t kLengthBytes = sizeof(uint32_t);

absl::Status Error(absl::string_view what, int error) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(error)));
}

// Listens at any address of `family`; an error leaves the descriptor empty.
Descriptor Listen(int family) {
  Descriptor fd(socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd.get() < 0) return fd;
  sockaddr_storage address = {};
  socklen_t length = sizeof(sockaddr_in);
  address.ss_family = static_cast<sa_family_t>(family);
  if (family == AF_INET6) {
    length = sizeof(sockaddr_in6);
    const int both = 0;  // IPv4 as well
    setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &both, sizeof(both));
  }
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), length) != 0 ||
      listen(fd.get(), SOMAXCONN) != 0) {
    return Descriptor();
  }
  return fd;
}

// Waits until `fd` can be written; false after `timeout`.
bool WaitWritable(int fd, absl::Duration timeout) {
  pollfd entry = {fd, POLLOUT, 0};
  return poll(&entry, 1,
              static_cast<int>(absl::ToInt64Milliseconds(timeout))) == 1;
}

absl::StatusOr<FrameSocket> Connect(const std::string& address, int port,
                                    absl::Duration timeout) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int code =
      getaddrinfo(address.c_str(), absl::StrCat(port).c_str(), &hints, &found);
  if (code != 0) {
    return absl::UnavailableError(
        absl::StrCat(address, ": ", gai_strerror(code)));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found,
                                                                 freeaddrinfo);
  Descriptor fd(
      socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (fd.get() < 0) return Error(address, errno);
  if (connect(fd.get(), found->ai_addr, found->ai_addrlen) != 0) {
    if (errno != EINPROGRESS) return Error(address, errno);
    if (!WaitWritable(fd.get(), timeout)) return Error(address, ETIMEDOUT);
    int error = 0;
    socklen_t length = sizeof(error);
    getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0) return Error(address, error);
  }
  return FrameSocket(std::move(fd));
}

// The numeric form; "" for what is no address of ours to give away.
std::string NumericAddress(const ifaddrs& interface) {
  if (interface.ifa_addr == nullptr || (interface.ifa_flags & IFF_UP) == 0) {
    return "";
  }
  std::array<char, INET6_ADDRSTRLEN> text;
  const int family = interface.ifa_addr->sa_family;
  if (family == AF_INET) {
    const auto& address =
        *reinterpret_cast<const sockaddr_in*>(interface.ifa_addr);
    inet_ntop(family, &address.sin_addr, text.data(), text.size());
    return text.data();
  }
  if (family == AF_INET6) {
    const auto& address =
        *reinterpret_cast<const sockaddr_in6*>(interface.ifa_addr);
    if (IN6_IS_ADDR_LINKLOCAL(&address.sin6_addr)) return "";
    inet_ntop(family, &address.sin6_addr, text.data(), text.size());
    return text.data();
  }
  return "";
}

}  // namespace

Descriptor::Descriptor(Descriptor&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)) {}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  if (this != &other) {
    Close();
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

void Descriptor::Close() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

FrameSocket::FrameSocket(Descriptor fd) : fd_(std::move(fd)) {
  fcntl(fd_.get(), F_SETFL, fcntl(fd_.get(), F_GETFL) | O_NONBLOCK);
  const int on = 1;
  setsockopt(fd_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

void FrameSocket::Queue(absl::string_view frame) {
  const auto length = static_cast<uint32_t>(frame.size());
  std::array<char, kLengthBytes> prefix;
  std::memcpy(prefix.data(), &length, kLengthBytes);
  out_.append(prefix.data(), kLengthBytes);
  out_.append(frame.data(), frame.size());
}

void FrameSocket::Write() {
  while (!out_.empty()) {
    const ssize_t sent =
        send(fd_.get(), out_.data(), out_.size(), MSG_NOSIGNAL);
    // An error shows when reading, after what the other side still said.
    if (sent <= 0) return;
    out_.erase(0, static_cast<size_t>(sent));
  }
}

bool FrameSocket::Read() {
  std::array<char, 65536> buffer;
  while (true) {
    const ssize_t got = recv(fd_.get(), buffer.data(), buffer.size(), 0);
    if (got > 0) {
      in_.append(buffer.data(), static_cast<size_t>(got));
      continue;
    }
    if (got < 0 && errno == EINTR) continue;
    return got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
  }
}

std::vector<std::string> FrameSocket::Move() {
  std::vector<std::string> frames;
  if (!open()) return frames;
  Write();
  bool alive = Read();
  size_t begin = 0;
  while (in_.size() - begin >= kLengthBytes) {
    uint32_t length = 0;
    std::memcpy(&length, in_.data() + begin, kLengthBytes);
    if (length > kMaxFrameBytes) {
      alive = false;
      break;
    }
    if (in_.size() - begin - kLengthBytes < length) break;
    frames.push_back(in_.substr(begin + kLengthBytes, length));
    begin += kLengthBytes + length;
  }
  in_.erase(0, begin);
  if (!alive) fd_.Close();
  return frames;
}

absl::StatusOr<Descriptor> ListenAnywhere() {
  Descriptor fd = Listen(AF_INET6);
  if (fd.get() < 0) fd = Listen(AF_INET);  // a machine without IPv6
  if (fd.get() < 0) return Error("cannot listen on a TCP port", errno);
  return fd;
}

int PortOf(const Descriptor& listening) {
  sockaddr_storage address = {};
  socklen_t length = sizeof(address);
  getsockname(listening.get(), reinterpret_cast<sockaddr*>(&address), &length);
  return ntohs(address.ss_family == AF_INET6
                   ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                   : reinterpret_cast<sockaddr_in&>(address).sin_port);
}

std::vector<std::string> InterfaceAddresses() {
  ifaddrs* first = nullptr;
  std::vector<std::string> addresses;
  if (getifaddrs(&first) == 0) {
    std::vector<std::string> loopback;
    for (const ifaddrs* i = first; i != nullptr; i = i->ifa_next) {
      std::string address = NumericAddress(*i);
      if (address.empty()) continue;
      ((i->ifa_flags & IFF_LOOPBACK) != 0 ? loopback : addresses)
          .push_back(std::move(address));
    }
    freeifaddrs(first);
    addresses.insert(addresses.end(), loopback.begin(), loopback.end());
  }
  return addresses;
}

absl::StatusOr<FrameSocket> ConnectToAny(
    const std::vector<std::string>& addresses, int port,
    absl::Duration timeout) {
  const auto deadline =
      std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(timeout);
  absl::Status last = absl::UnavailableError("no address");
  for (const std::string& address : addresses) {
    const absl::Duration left =
        absl::FromChrono(deadline - std::chrono::steady_clock::now());
    if (left <= absl::ZeroDuration()) break;
    auto connection = Connect(address, port, std::min(left, absl::Seconds(3)));
    if (connection.ok()) return connection;
    last = connection.status();
  }
  return last;
}

}  // namespace cubit
