// SPDX-License-Identifier: Apache-2.0

#include "data/split_rule.h"

#include <algorithm>
#include <cmath>

#include "runtime/check.h"
#include "runtime/digest.h"

namespace cubit {

SplitRule::SplitRule(double validation_fraction)
    : validation_fraction_(validation_fraction), period_(0) {
  CUBIT_CHECK(validation_fraction >= 0 && validation_fraction <= 0.5)
      << validation_fraction;
  if (validation_fraction == 0) return;
  // Beyond 2^53 documents a row would not be exact, nor be reached.
  period_ = std::llround(std::min(1 / validation_fraction, std::ldexp(1, 53)));
}

bool SplitRule::IsValidation(int64_t document) const {
  CUBIT_CHECK_GE(document, 0);
  if (period_ == 0) return false;
  const int64_t row = document / period_;
  if (row == 0) return document == 1;
  const uint64_t hash = Xxh3_64(&row, sizeof(row));
  return document % period_ ==
         static_cast<int64_t>(hash % static_cast<uint64_t>(period_));
}

int64_t SplitRule::TrainTokensOfSingle(int64_t num_tokens) const {
  if (period_ == 0 || num_tokens < 2) return num_tokens;
  const int64_t tail = static_cast<int64_t>(
      std::floor(validation_fraction_ * static_cast<double>(num_tokens)));
  return num_tokens - std::max<int64_t>(1, tail);
}

}  // namespace cubit
