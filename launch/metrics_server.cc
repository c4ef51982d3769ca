// SPDX-License-Identifier: Apache-2.0

#include "launch/metrics_server.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace cubit {
namespace {

constexpr size_t kMaxRequestBytes = 8192;
constexpr int kClientSeconds = 2;
constexpr int kBacklog = 8;

bool IsWord(absl::string_view text) {
  if (text.empty() || absl::ascii_isdigit(text[0])) return false;
  for (const char c : text) {
    if (!absl::ascii_isalnum(c) && c != '_') return false;
  }
  return true;
}

// Name and labels of a scalar.
struct Sample {
  std::string name;
  std::string labels;
};

Sample SampleOf(absl::string_view scalar) {
  Sample sample;
  const size_t slash = scalar.rfind('/');
  if (slash != absl::string_view::npos && !IsWord(scalar.substr(slash + 1))) {
    const std::string key =
        absl::StrReplaceAll(scalar.substr(slash + 1),
                            {{"\\", "\\\\"}, {"\"", "\\\""}, {"\n", "\\n"}});
    sample.labels = absl::StrCat("{key=\"", key, "\"}");
    scalar = scalar.substr(0, slash);
  }
  sample.name = absl::StrCat("cubit_", scalar);
  for (char& c : sample.name) {
    if (!absl::ascii_isalnum(c)) c = '_';
  }
  return sample;
}

std::string NumberText(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  return absl::StrFormat("%.17g", value);
}

absl::Status SocketError(int port, absl::string_view call) {
  return absl::FailedPreconditionError(absl::StrCat(
      "cannot ", call, " 127.0.0.1:", port, ": ", std::strerror(errno),
      "; give another --metrics_port, or leave it out"));
}

std::string HttpAnswer(absl::string_view status, absl::string_view type,
                       absl::string_view body) {
  return absl::StrCat("HTTP/1.1 ", status, "\r\nContent-Type: ", type,
                      "\r\nContent-Length: ", body.size(),
                      "\r\nConnection: close\r\n\r\n", body);
}

// Closes what it holds.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  int Release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

}  // namespace

std::string PrometheusText(const std::map<std::string, double>& scalars) {
  // Samples of one name must stand together.
  std::map<std::string, std::string> lines;
  for (const auto& [scalar, value] : scalars) {
    const Sample sample = SampleOf(scalar);
    absl::StrAppend(&lines[sample.name], sample.name, sample.labels, " ",
                    NumberText(value), "\n");
  }
  std::string text;
  for (const auto& [name, samples] : lines) {
    absl::StrAppend(&text, "# TYPE ", name, " gauge\n", samples);
  }
  return text;
}

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(int port) {
  if (port < 0 || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--metrics_port is ", port, "; give a port from 1 to 65535"));
  }
  Descriptor socket_fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (socket_fd.get() < 0) return SocketError(port, "make a socket for");
  const int on = 1;
  setsockopt(socket_fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  if (bind(socket_fd.get(), generic, sizeof(address)) != 0) {
    return SocketError(port, "bind");
  }
  if (listen(socket_fd.get(), kBacklog) != 0) {
    return SocketError(port, "listen on");
  }
  socklen_t length = sizeof(address);
  if (getsockname(socket_fd.get(), generic, &length) != 0) {
    return SocketError(port, "ask for the port of");
  }
  int wake[2];
  if (pipe2(wake, O_CLOEXEC) != 0) return SocketError(port, "make a pipe for");
  return std::unique_ptr<MetricsServer>(new MetricsServer(
      ntohs(address.sin_port), socket_fd.Release(), wake[0], wake[1]));
}

MetricsServer::MetricsServer(int port, int listen_fd, int wake_read_fd,
                             int wake_write_fd)
    : port_(port),
      listen_fd_(listen_fd),
      wake_read_fd_(wake_read_fd),
      wake_write_fd_(wake_write_fd),
      thread_([this] { Serve(); }) {}

MetricsServer::~MetricsServer() {
  close(wake_write_fd_);  // the other end becomes readable
  thread_.join();
  close(wake_read_fd_);
  close(listen_fd_);
}

void MetricsServer::OnScalars(int64_t step,
                              const std::vector<MetricScalar>& scalars) {
  const std::lock_guard<std::mutex> lock(mutex_);
  scalars_["step"] = static_cast<double>(step);
  for (const MetricScalar& scalar : scalars) {
    scalars_[scalar.name] = scalar.value;
  }
}

void MetricsServer::Serve() {
  for (;;) {
    pollfd waiting[2] = {{listen_fd_, POLLIN, 0}, {wake_read_fd_, POLLIN, 0}};
    if (poll(waiting, 2, -1) < 0) {
      if (errno == EINTR) continue;
      return;
    }
    if (waiting[1].revents != 0) return;
    const Descriptor client(
        accept4(listen_fd_, nullptr, nullptr, SOCK_CLOEXEC));
    if (client.get() >= 0) Answer(client.get());
  }
}

void MetricsServer::Answer(int fd) {
  const timeval limit = {kClientSeconds, 0};
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  const absl::Time deadline = absl::Now() + absl::Seconds(kClientSeconds);
  std::string request;
  while (request.find("\r\n\r\n") == std::string::npos) {
    // One limit for the whole request, however slowly it drips.
    pollfd waiting[2] = {{fd, POLLIN, 0}, {wake_read_fd_, POLLIN, 0}};
    const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
    if (left <= 0 || left > kClientSeconds * 1000) return;
    const int ready = poll(waiting, 2, static_cast<int>(left));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0 || waiting[1].revents != 0) return;
    char piece[1024];
    const ssize_t count = recv(fd, piece, sizeof(piece), 0);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return;
    request.append(piece, static_cast<size_t>(count));
    if (request.size() > kMaxRequestBytes) return;
  }
  const std::string answer = Respond(request.substr(0, request.find("\r\n")));
  size_t done = 0;
  while (done < answer.size()) {
    const ssize_t count =
        send(fd, answer.data() + done, answer.size() - done, MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return;
    done += static_cast<size_t>(count);
  }
}

std::string MetricsServer::Respond(absl::string_view request) {
  if (!absl::StartsWith(request, "GET ")) {
    return HttpAnswer("405 Method Not Allowed", "text/plain", "GET only\n");
  }
  if (!absl::StartsWith(request, "GET /metrics ")) {
    return HttpAnswer("404 Not Found", "text/plain", "look at /metrics\n");
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  return HttpAnswer("200 OK", "text/plain; version=0.0.4",
                    PrometheusText(scalars_));
}

}  // namespace cubit
