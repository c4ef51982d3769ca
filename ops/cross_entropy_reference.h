// SPDX-License-Identifier: Apache-2.0
//
// The mathematics of cross_entropy.h on row-major vectors, for T = float,
// double and std::complex<double>.

#ifndef CUBIT_OPS_CROSS_ENTROPY_REFERENCE_H_
#define CUBIT_OPS_CROSS_ENTROPY_REFERENCE_H_

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <limits>
#include <vector>

#include "ops/cross_entropy.h"
#include "ops/reference_math.h"

namespace cubit {
namespace reference {

// log sum exp of a row; the largest real part is taken out of the sum.
template <typename T>
T LogSumExp(const T* row, int64_t count) {
  using std::exp;
  using std::log;
  double largest = Real(row[0]);
  for (int64_t v = 1; v < count; ++v) {
    largest = std::max(largest, Real(row[v]));
  }
  const T shift = static_cast<T>(largest);
  T sum = T(0);
  for (int64_t v = 0; v < count; ++v) sum += exp(row[v] - shift);
  return shift + log(sum);
}

template <typename T>
struct CrossEntropyResult {
  std::vector<T> losses;  // [n]
  std::vector<T> lse;     // [n], zero where the target is ignored
};

// logits [n, vocab_size], of which the first `valid_vocab` columns count.
template <typename T>
CrossEntropyResult<T> CrossEntropyForward(const std::vector<T>& logits,
                                          const std::vector<int32_t>& targets,
                                          int64_t vocab_size,
                                          int64_t valid_vocab) {
  CrossEntropyResult<T> result;
  for (size_t n = 0; n < targets.size(); ++n) {
    const T* row = logits.data() + static_cast<int64_t>(n) * vocab_size;
    const bool ignored = targets[n] == kIgnoredTarget;
    const T lse = ignored ? T(0) : LogSumExp(row, valid_vocab);
    result.lse.push_back(lse);
    result.losses.push_back(ignored ? T(0) : lse - row[targets[n]]);
  }
  return result;
}

// The gradient of grad_scale sum_n (losses[n] + z_loss lse[n]^2).
template <typename T>
std::vector<T> CrossEntropyBackward(const std::vector<T>& logits,
                                    const std::vector<int32_t>& targets,
                                    int64_t vocab_size, int64_t valid_vocab,
                                    double z_loss, double grad_scale) {
  using std::exp;
  std::vector<T> d_logits(logits.size(), T(0));
  for (size_t n = 0; n < targets.size(); ++n) {
    if (targets[n] == kIgnoredTarget) continue;
    const T* row = logits.data() + static_cast<int64_t>(n) * vocab_size;
    T* d_row = d_logits.data() + static_cast<int64_t>(n) * vocab_size;
    const T lse = LogSumExp(row, valid_vocab);
    for (int64_t v = 0; v < valid_vocab; ++v) {
      d_row[v] =
          T(grad_scale) * exp(row[v] - lse) * (T(1) + T(2) * T(z_loss) * lse);
    }
    d_row[targets[n]] -= T(grad_scale);
  }
  return d_logits;
}

// Of the slices of a vocabulary: three numbers a row (cross_entropy.h).
// logits [n, columns] of tokens [begin, begin + columns) of `size`.
template <typename T>
std::vector<T> CrossEntropyStatistics(const std::vector<T>& logits,
                                      const std::vector<int32_t>& targets,
                                      int64_t columns, int64_t begin,
                                      int64_t size) {
  using std::exp;
  const int64_t existing =
      std::max<int64_t>(0, std::min(columns, size - begin));
  std::vector<T> statistics;
  for (size_t n = 0; n < targets.size(); ++n) {
    const T* row = logits.data() + static_cast<int64_t>(n) * columns;
    double largest = static_cast<double>(std::numeric_limits<float>::lowest());
    for (int64_t v = 0; v < existing; ++v) {
      largest = std::max(largest, Real(row[v]));
    }
    T sum = T(0);
    for (int64_t v = 0; v < existing; ++v) sum += exp(row[v] - T(largest));
    const int64_t column = targets[n] - begin;
    const bool here = column >= 0 && column < existing;
    statistics.insert(statistics.end(),
                      {T(largest), sum, here ? row[column] : T(0)});
  }
  return statistics;
}

// lse[n] and losses[n] from the statistics [P, n, 3] of all slices.
template <typename T>
CrossEntropyResult<T> CrossEntropyMerge(const std::vector<T>& statistics,
                                        const std::vector<int32_t>& targets) {
  using std::exp;
  using std::log;
  CrossEntropyResult<T> result;
  const size_t stride = 3 * targets.size();
  for (size_t n = 0; n < targets.size(); ++n) {
    double largest = Real(statistics[3 * n]);
    for (size_t i = 3 * n; i < statistics.size(); i += stride) {
      largest = std::max(largest, Real(statistics[i]));
    }
    T sum = T(0);
    T target_logit = T(0);
    for (size_t i = 3 * n; i < statistics.size(); i += stride) {
      sum += statistics[i + 1] * exp(statistics[i] - T(largest));
      target_logit += statistics[i + 2];
    }
    const bool ignored = targets[n] == kIgnoredTarget;
    const T lse = T(largest) + log(sum);
    result.lse.push_back(ignored ? T(0) : lse);
    result.losses.push_back(ignored ? T(0) : lse - target_logit);
  }
  return result;
}

}  // namespace reference
}  // namespace cubit

#endif  // CUBIT_OPS_CROSS_ENTROPY_REFERENCE_H_
