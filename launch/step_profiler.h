// SPDX-License-Identifier: Apache-2.0
//
// What --profile_steps asks for: where the time of some steps goes, by kind of
// work, and what every rank did when in the wavefronts of a sequence that is
// spread over ranks.

#ifndef CUBIT_LAUNCH_STEP_PROFILER_H_
#define CUBIT_LAUNCH_STEP_PROFILER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "launch/metrics.h"
#include "launch/train_state.h"
#include "parallel/wavefront_trace.h"
#include "runtime/profile_range.h"

namespace cubit {

// Begin, the step, End and Report, in every step and on all ranks together.
// Outside the steps asked for they do nothing.
class StepProfiler {
 public:
  // Steps `first` to `last`; none if `last` is 0. Files go into `folder`.
  // `state` must outlive the profiler.
  StepProfiler(int64_t first, int64_t last, std::string folder,
               TrainState* state);

  absl::Status Begin(int64_t step);
  void End(int64_t step);
  // After the last step logs the device time, and returns that of all ranks on
  // rank 0 (profile_event.h); otherwise an event without fields. If there were
  // wavefronts, each rank R of the run writes wavefront_rank_R.jsonl
  // (wavefront_trace.h; ranks in it are those of cp, times seconds since the
  // first step began), and rank 0 draws the first wavefront of each direction
  // of its cp group: wavefront_forward.svg, wavefront_backward.svg. A file that
  // cannot be written is a warning.
  absl::StatusOr<EventMetrics> Report(int64_t step);

 private:
  bool IsProfiled(int64_t step) const {
    return first_ <= step && step <= last_;
  }
  absl::Status ReportWavefronts();
  absl::Status WriteTrace(const std::vector<WavefrontSpan>& spans) const;
  // The drawing on rank 0; `spans` of this rank.
  absl::Status Draw(const std::vector<WavefrontSpan>& spans, bool forward);

  const int64_t first_;
  const int64_t last_;
  const std::string folder_;
  TrainState* const state_;
  std::unique_ptr<StepProfile> profile_;
  std::unique_ptr<WavefrontTrace> trace_;  // absent: sequences are whole
};

}  // namespace cubit

#endif  // CUBIT_LAUNCH_STEP_PROFILER_H_
