// SPDX-License-Identifier: Apache-2.0
//
// The learning rate as a pure function of the step, so that a run that resumes
// needs no state for it.

#ifndef CUBIT_LAUNCH_LR_SCHEDULE_H_
#define CUBIT_LAUNCH_LR_SCHEDULE_H_

#include <cstdint>

#include "launch/run.pb.h"

namespace cubit {

// The learning rate of update `step`, 1 for the first. With peak p, w warm-up
// steps, n steps in all, m = min_learning_rate_ratio * p:
//   step <= w:  p step / w
//   constant:   p
//   cosine:     m + (p - m) (1 + cos(pi (step - w) / (n - w))) / 2
//   wsd:        p until d steps before n, then in a line to m, d = decay_steps
//               or, if 0, n / 5
// cosine and wsd reach m at step n and stay there. CHECK: step >= 1.
// Sources: cosine, arXiv:1608.03983; wsd, arXiv:2404.06395.
double LearningRate(const RunConfig::Schedule& schedule, double peak,
                    int64_t step);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_LR_SCHEDULE_H_
