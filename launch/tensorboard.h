// SPDX-License-Identifier: Apache-2.0
//
// A run's scalars as TensorBoard event files: records of the TFRecord format
// (length, its checksum, bytes, their checksum) that hold tensorboard.proto.

#ifndef CUBIT_LAUNCH_TENSORBOARD_H_
#define CUBIT_LAUNCH_TENSORBOARD_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "launch/metrics.h"

namespace cubit {

// CRC-32C (Castagnoli), as in RFC 3720.
uint32_t Crc32c(absl::string_view bytes);

// `payload` as one record of a TFRecord file.
std::string TfRecord(absl::string_view payload);

// Writes a new event file; every line of metrics is one event. A failed write
// (a full disk) is reported once and ends the file: a run does not stop for it,
// and metrics.jsonl has everything.
class TensorBoardWriter : public MetricsSink {
 public:
  // Creates `folder` and in it events.out.tfevents.TIME.HOST.PID. `first_step`
  // is the next step of the run: what earlier files of the folder say of it and
  // of later ones, a resumed run writes again.
  static absl::StatusOr<std::unique_ptr<TensorBoardWriter>> Create(
      const std::string& folder, int64_t first_step);
  ~TensorBoardWriter() override;
  TensorBoardWriter(const TensorBoardWriter&) = delete;
  TensorBoardWriter& operator=(const TensorBoardWriter&) = delete;

  void OnScalars(int64_t step,
                 const std::vector<MetricScalar>& scalars) override;

 private:
  TensorBoardWriter(std::string path, int fd)
      : path_(std::move(path)), fd_(fd) {}
  absl::Status Append(const std::string& record);

  std::string path_;
  int fd_;  // -1 after a failure
};

}  // namespace cubit

#endif  // CUBIT_LAUNCH_TENSORBOARD_H_
