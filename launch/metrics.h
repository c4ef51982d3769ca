// SPDX-License-Identifier: Apache-2.0
//
// metrics.jsonl, the primary record of a run: one JSON object a line, appended
// as it happens. Doubles are printed so that reading them gives the same bits.
// A number that is not finite is null in its place, and an event "non_finite"
// on the line after says what it was.

#ifndef CUBIT_LAUNCH_METRICS_H_
#define CUBIT_LAUNCH_METRICS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/optional.h"
#include "absl/types/variant.h"

namespace cubit {

// Health of the ridge systems of a step (ops/krr.h, KrrHealth).
struct KrrMetrics {
  double min_diagonal = 0;
  double max_gain = 0;
  double lambda_max = 0;
};

// Where in the data a run is (data/blended_dataset.h).
struct DataMetrics {
  // The next sample in the order of samples, those counted that were skipped.
  int64_t position = 0;
  std::vector<double> epochs;  // of each data set of a blend, so far
  double wait_seconds = 0;     // of the step, for its batches
};

struct TrainMetrics {
  int64_t step = 0;
  int64_t tokens = 0;  // seen so far
  double loss = 0;     // nats per token over all valid tokens of the step
  double lr = 0;
  double grad_norm = 0;  // before clipping
  double tokens_per_second = 0;
  absl::optional<double> mfu;  // none where the peak is not known
  double step_seconds = 0;
  int64_t memory_bytes = 0;
  absl::optional<KrrMetrics> krr;    // none for other mixers
  absl::optional<DataMetrics> data;  // none in files of older versions
};

struct ValidationMetrics {
  int64_t step = 0;
  double loss = 0;
  double perplexity = 0;
  int64_t tokens = 0;  // evaluated
  // "0-127" -> mean loss of these positions, in order.
  std::vector<std::pair<std::string, double>> loss_by_position;
};

using MetricValue = absl::variant<int64_t, double, bool, std::string>;

// checkpoint, resume, skipped_step, evaluation, sample, ...
struct EventMetrics {
  std::string event;
  int64_t step = 0;
  std::vector<std::pair<std::string, MetricValue>> fields;
};

// A number of a line, with its place: "train/loss", "train/krr/max_gain",
// "validation/loss_by_position/0-127"; of an event, "evaluation/piqa.acc";
// of a list, "train/data/epochs/0".
struct MetricScalar {
  std::string name;
  double value = 0;  // may be NaN or infinite
};

// Sees every line's numbers after the line is written.
class MetricsSink {
 public:
  virtual ~MetricsSink() = default;
  virtual void OnScalars(int64_t step,
                         const std::vector<MetricScalar>& scalars) = 0;
};

class MetricsLine;  // internal

// Appends lines, each whole in one write; a line that does not fit on the disk
// is taken back. Move-only.
class MetricsWriter {
 public:
  // A new run. Error (AlreadyExists) if the file is there.
  static absl::StatusOr<MetricsWriter> Create(const std::string& path);
  // A run that continues after `step`: lines of later steps, which will be
  // written again, are dropped, so that the file becomes what an unbroken run
  // writes; so is a line that is torn or damaged, with a warning. The rest
  // stays byte for byte. A missing file is created.
  static absl::StatusOr<MetricsWriter> Resume(const std::string& path,
                                              int64_t step);
  ~MetricsWriter();
  MetricsWriter(MetricsWriter&& other) noexcept;
  MetricsWriter& operator=(MetricsWriter&& other) noexcept;
  MetricsWriter(const MetricsWriter&) = delete;
  MetricsWriter& operator=(const MetricsWriter&) = delete;

  void AddSink(std::unique_ptr<MetricsSink> sink) {
    sinks_.push_back(std::move(sink));
  }

  absl::Status Write(const TrainMetrics& metrics);
  absl::Status Write(const ValidationMetrics& metrics);
  absl::Status Write(const EventMetrics& metrics);

 private:
  MetricsWriter(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}

  static absl::StatusOr<MetricsWriter> Open(const std::string& path, int flags);
  absl::Status WriteLine(const MetricsLine& line);
  absl::Status Append(const std::string& lines);

  std::string path_;
  int fd_ = -1;
  std::vector<std::unique_ptr<MetricsSink>> sinks_;
};

struct RunMetrics {
  std::vector<TrainMetrics> train;
  std::vector<ValidationMetrics> validation;
  std::vector<EventMetrics> events;
};

// Reads a file back; null numbers become NaN. A torn last line is skipped; any
// other line that is no object of ours is an error (DataLoss) with its number.
absl::StatusOr<RunMetrics> ReadMetrics(const std::string& path);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_METRICS_H_
