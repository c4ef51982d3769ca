// SPDX-License-Identifier: Apache-2.0

#include "launch/metrics_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmath>
#include <string>

#include "gtest/gtest.h"

namespace cubit {
namespace {

int Connect(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)),
            0);
  return fd;
}

// The whole answer; empty if the server hangs up.
std::string Ask(int port, const std::string& request) {
  const int fd = Connect(port);
  EXPECT_EQ(send(fd, request.data(), request.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(request.size()));
  std::string answer;
  char piece[1024];
  for (;;) {
    const ssize_t count = recv(fd, piece, sizeof(piece), 0);
    if (count <= 0) break;
    answer.append(piece, static_cast<size_t>(count));
  }
  close(fd);
  return answer;
}

bool Holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::unique_ptr<MetricsServer> StartServer() {
  auto server = MetricsServer::Start(0);
  EXPECT_TRUE(server.ok()) << server.status();
  return *std::move(server);
}

TEST(PrometheusText, GroupsSamplesAndLabelsWhatIsNoWord) {
  EXPECT_EQ(PrometheusText({{"train/loss", 2.5},
                            {"train/krr/max_gain", NAN},
                            {"validation/loss_by_position/0-127", 1},
                            {"validation/loss_by_position/a\"\\b", -INFINITY}}),
            "# TYPE cubit_train_krr_max_gain gauge\n"
            "cubit_train_krr_max_gain NaN\n"
            "# TYPE cubit_train_loss gauge\n"
            "cubit_train_loss 2.5\n"
            "# TYPE cubit_validation_loss_by_position gauge\n"
            "cubit_validation_loss_by_position{key=\"0-127\"} 1\n"
            "cubit_validation_loss_by_position{key=\"a\\\"\\\\b\"} -Inf\n");
}

TEST(MetricsServer, AnswersWithTheNewestNumbers) {
  const auto server = StartServer();
  server->OnScalars(1, {{"train/loss", 3}});
  server->OnScalars(2, {{"train/loss", 2}});
  server->OnScalars(2, {{"validation/loss", 4}});
  const std::string answer =
      Ask(server->port(), "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_TRUE(Holds(answer, "HTTP/1.1 200 OK\r\n")) << answer;
  EXPECT_TRUE(Holds(answer, "text/plain; version=0.0.4"));
  EXPECT_TRUE(Holds(answer, "\ncubit_train_loss 2\n"));
  EXPECT_TRUE(Holds(answer, "\ncubit_validation_loss 4\n"));
  EXPECT_TRUE(Holds(answer, "\ncubit_step 2\n"));
}

TEST(MetricsServer, RefusesOtherPathsMethodsAndNonsense) {
  const auto server = StartServer();
  EXPECT_TRUE(Holds(Ask(server->port(), "GET / HTTP/1.1\r\n\r\n"), " 404 "));
  EXPECT_TRUE(Holds(Ask(server->port(), "GET /metrics/../etc HTTP/1.1\r\n\r\n"),
                    " 404 "));
  EXPECT_TRUE(
      Holds(Ask(server->port(), "POST /metrics HTTP/1.1\r\n\r\n"), " 405 "));
  EXPECT_TRUE(Holds(Ask(server->port(), "\r\n\r\n"), " 405 "));
  EXPECT_EQ(Ask(server->port(), std::string(20000, 'a')), "");
}

TEST(MetricsServer, ASilentClientDoesNotHoldUpTheEnd) {
  auto server = StartServer();
  const int silent = Connect(server->port());
  EXPECT_EQ(send(silent, "GET", 3, MSG_NOSIGNAL), 3);
  server.reset();  // returns at once, or this test runs into its limit
  close(silent);
}

TEST(MetricsServer, APortInUseIsAnErrorThatNamesIt) {
  const auto server = StartServer();
  const auto second = MetricsServer::Start(server->port());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(Holds(std::string(second.status().message()),
                    std::to_string(server->port())))
      << second.status();
  EXPECT_TRUE(Holds(std::string(second.status().message()), "--metrics_port"));
  EXPECT_EQ(MetricsServer::Start(70000).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace cubit
