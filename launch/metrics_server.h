// SPDX-License-Identifier: Apache-2.0
//
// The newest scalars of a run for Prometheus: text format 0.0.4 over HTTP, on
// the loopback interface alone. Whoever wants them elsewhere forwards the port.

#ifndef CUBIT_LAUNCH_METRICS_SERVER_H_
#define CUBIT_LAUNCH_METRICS_SERVER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "launch/metrics.h"

namespace cubit {

// "train/loss" is cubit_train_loss; where the last part is no word, it is a
// label: "validation/loss_by_position/0-127" is
// cubit_validation_loss_by_position{key="0-127"}.
std::string PrometheusText(const std::map<std::string, double>& scalars);

// Answers from a thread of its own, one request at a time. A client that is
// slow or sends nonsense is dropped; training never waits.
class MetricsServer : public MetricsSink {
 public:
  // Listens on 127.0.0.1. Port 0: any that is free. An error names the port.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(int port);
  ~MetricsServer() override;
  MetricsServer(const MetricsServer&) = delete;
  MetricsServer& operator=(const MetricsServer&) = delete;

  int port() const { return port_; }
  void OnScalars(int64_t step,
                 const std::vector<MetricScalar>& scalars) override;

 private:
  MetricsServer(int port, int listen_fd, int wake_read_fd, int wake_write_fd);
  void Serve();
  void Answer(int fd);
  // The whole answer to a request line such as "GET /metrics HTTP/1.1".
  std::string Respond(absl::string_view request);

  const int port_;
  const int listen_fd_;
  const int wake_read_fd_;
  const int wake_write_fd_;
  std::mutex mutex_;
  std::map<std::string, double> scalars_;  // under mutex_
  std::thread thread_;
};

}  // namespace cubit

#endif  // CUBIT_LAUNCH_METRICS_SERVER_H_
