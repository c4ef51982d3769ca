// SPDX-License-Identifier: Apache-2.0
//
// What ranks did when in a wavefront solve (wavefront_schedule.h): of a
// simulation or of a run. wavefront_drawing.h makes a picture of it.

#ifndef CUBIT_PARALLEL_WAVEFRONT_TRACE_H_
#define CUBIT_PARALLEL_WAVEFRONT_TRACE_H_

#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"

#include "parallel/wavefront_schedule.h"

namespace cubit {

struct WavefrontSpan {
  int rank = 0;
  WavefrontAction action;
  double start = 0;  // seconds, or the units of a simulation
  double end = 0;
  int64_t wavefront = 0;  // which of the rank's, in their order
};

// Collects spans of ranks that are threads of this process, or of its one rank.
// Times are of the host's clock since the trace was made; where streams run
// ahead of the host, of when work was issued. Thread-safe.
class WavefrontTrace {
 public:
  WavefrontTrace() : origin_(std::chrono::steady_clock::now()) {}

  double Now() const;  // seconds since the trace was made
  // A rank begins a wavefront: how many it has begun before.
  int64_t Begin(int rank);
  void Record(const WavefrontSpan& span);
  // By start, then by rank.
  std::vector<WavefrontSpan> Spans() const;

 private:
  const std::chrono::steady_clock::time_point origin_;
  mutable std::mutex mutex_;
  std::vector<WavefrontSpan> spans_;
  std::map<int, int64_t> begun_;  // by rank
};

// One JSON object a line: {"rank":0,"wavefront":0,"kind":"update","rows":3,
// "columns":1,"group":0,"start":0.001,"end":0.002}.
std::string ToJsonLines(const std::vector<WavefrontSpan>& spans);

// Creates or replaces the file.
absl::Status WriteTextFile(const std::string& path, const std::string& text);

}  // namespace cubit

#endif  // CUBIT_PARALLEL_WAVEFRONT_TRACE_H_
