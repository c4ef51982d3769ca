// SPDX-License-Identifier: Apache-2.0

#include "launch/lr_schedule.h"

#include <cmath>

#include "runtime/check.h"

namespace cubit {
namespace {

double Cosine(double peak, double least, int64_t step, int64_t first,
              int64_t last) {
  const double progress =
      static_cast<double>(step - first) / static_cast<double>(last - first);
  return least + (peak - least) * (1 + std::cos(M_PI * progress)) / 2;
}

double Line(double peak, double least, int64_t step, int64_t first,
            int64_t last) {
  const double progress =
      static_cast<double>(step - first) / static_cast<double>(last - first);
  return peak + (least - peak) * progress;
}

}  // namespace

double LearningRate(const RunConfig::Schedule& schedule, double peak,
                    int64_t step) {
  CUBIT_CHECK_GE(step, 1);
  const int64_t warmup = schedule.warmup_steps();
  const int64_t total = schedule.total_steps();
  if (step <= warmup) {
    return peak * static_cast<double>(step) / static_cast<double>(warmup);
  }
  const double least = peak * schedule.min_learning_rate_ratio();
  switch (schedule.kind()) {
    case RunConfig::ScheduleKind::constant:
      return peak;
    case RunConfig::ScheduleKind::cosine:
      return step >= total ? least : Cosine(peak, least, step, warmup, total);
    case RunConfig::ScheduleKind::wsd: {
      const int64_t decay =
          schedule.decay_steps() > 0 ? schedule.decay_steps() : total / 5;
      if (step >= total) return least;
      return step <= total - decay
                 ? peak
                 : Line(peak, least, step, total - decay, total);
    }
  }
  CUBIT_CHECK(false) << "schedule kind " << schedule.kind();
  return peak;
}

}  // namespace cubit
