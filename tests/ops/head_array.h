// SPDX-License-Identifier: Apache-2.0
//
// Per-head inputs and outputs for tests of the mixer ops, in strided memory
// whose other columns are NaN, and one head of them as a matrix for the
// references.

#ifndef CUBIT_TESTS_OPS_HEAD_ARRAY_H_
#define CUBIT_TESTS_OPS_HEAD_ARRAY_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "gtest/gtest.h"

#include "ops/attention.h"
#include "ops/attention_reference.h"
#include "ops/reference_matrix.h"
#include "runtime/device.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace testing {

struct HeadSize {
  int64_t batch;
  int64_t num_heads;
  int64_t seq_len;
  int64_t head_dim;

  int64_t num_pairs() const { return batch * num_heads; }
};

// Where heads begin in wider rows.
enum class Margins {
  kOdd,     // at no multiple of 16 bytes
  kVectors  // at multiples of 16 bytes, if head dims are
};

// [B, T, H, K] in the middle of rows of a wider array.
class HeadArray {
 public:
  // Every value NaN.
  explicit HeadArray(HeadSize size, Margins margins = Margins::kOdd)
      : size_(size),
        first_(margins == Margins::kOdd ? 3 : 4),
        last_(margins == Margins::kOdd ? 2 : 4),
        columns_(Poisoned({size.batch, size.seq_len, width()})) {}
  // Standard normal values times `stddev`.
  HeadArray(HeadSize size, absl::string_view name, double stddev = 1.0)
      : HeadArray(size) {
    const HostTensor<float> values =
        RandomNormal(7, name, {size.batch, size.seq_len, inner()}, stddev);
    for (int64_t n = 0; n < size.batch * size.seq_len; ++n) {
      for (int64_t c = 0; c < inner(); ++c) {
        columns_[n * width() + first_ + c] = values[n * inner() + c];
      }
    }
  }

  // The same values between other margins.
  HeadArray Between(Margins margins) const {
    HeadArray copy(size_, margins);
    for (int64_t n = 0; n < size_.batch * size_.seq_len; ++n) {
      for (int64_t c = 0; c < inner(); ++c) {
        copy.columns_[n * copy.width() + copy.first_ + c] =
            columns_[n * width() + first_ + c];
      }
    }
    return copy;
  }

  const HeadSize& size() const { return size_; }
  HeadTensor view() {
    return HeadsOf(columns_.view(), first_, size_.num_heads, size_.head_dim);
  }
  ConstHeadTensor view() const {
    return HeadsOf(columns_.view(), first_, size_.num_heads, size_.head_dim);
  }

  // Head `pair` = b H + h as [T, K].
  template <typename T>
  reference::Matrix<T> Head(int64_t pair) const {
    reference::Matrix<T> matrix(size_.seq_len, size_.head_dim);
    for (int64_t t = 0; t < size_.seq_len; ++t) {
      const float* row =
          view().row<float>(pair / size_.num_heads, t, pair % size_.num_heads);
      for (int64_t c = 0; c < size_.head_dim; ++c) {
        matrix(t, c) = static_cast<T>(row[c]);
      }
    }
    return matrix;
  }
  // All heads, [B, H, T, K].
  std::vector<float> Values() const {
    std::vector<float> values;
    for (int64_t pair = 0; pair < size_.num_pairs(); ++pair) {
      const std::vector<float> head = Head<float>(pair).values();
      values.insert(values.end(), head.begin(), head.end());
    }
    return values;
  }
  // `initial` plus the sums over B and T, [H * K].
  std::vector<double> SumsOverTokens(double initial) const {
    std::vector<double> sums(static_cast<size_t>(inner()), initial);
    for (int64_t n = 0; n < size_.batch * size_.seq_len; ++n) {
      for (int64_t c = 0; c < inner(); ++c) {
        sums[static_cast<size_t>(c)] +=
            static_cast<double>(columns_[n * width() + first_ + c]);
      }
    }
    return sums;
  }
  // True if nothing was written beside the heads.
  bool RestIsPoisoned() const {
    for (int64_t i = 0; i < columns_.shape().num_elements(); ++i) {
      const int64_t c = i % width();
      const bool inside = c >= first_ && c < first_ + inner();
      if (!inside && !std::isnan(columns_[i])) return false;
    }
    return true;
  }

 private:
  int64_t inner() const { return size_.num_heads * size_.head_dim; }
  int64_t width() const { return first_ + inner() + last_; }

  HeadSize size_;
  int64_t first_, last_;  // columns of the margins
  HostTensor<float> columns_;
};

// Named results, heads one after the other.
template <typename T>
using Named = std::map<std::string, std::vector<T>>;

template <typename T>
void Append(const std::vector<T>& values, std::vector<T>* target) {
  target->insert(target->end(), values.begin(), values.end());
}

// Documents that begin at `starts` (and at 0), for every sequence alike but
// shifted by the number of the sequence.
inline HostTensor<int32_t> Documents(int64_t batch, int64_t seq_len,
                                     const std::vector<int64_t>& starts) {
  HostTensor<int32_t> segments({batch, seq_len});
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t t = 0; t < seq_len; ++t) {
      for (int64_t start : starts) {
        if (t >= start + b) ++segments[b * seq_len + t];
      }
    }
  }
  return segments;
}

// The masks of one case for the op and for the reference.
class TestMask {
 public:
  TestMask(bool causal, HostTensor<int32_t> segments)
      : causal_(causal), segments_(std::move(segments)) {}
  TestMask() : TestMask(true, HostTensor<int32_t>()) {}

  AttentionMask ForOp() const {
    AttentionMask mask;
    mask.causal = causal_;
    if (!segments_.values().empty()) mask.segment_ids = segments_.view();
    return mask;
  }
  reference::Mask ForReference(int64_t b) const {
    reference::Mask mask;
    mask.causal = causal_;
    if (!segments_.values().empty()) {
      const int64_t seq_len = segments_.shape()[1];
      const auto begin = segments_.values().begin() + b * seq_len;
      mask.segments.assign(begin, begin + seq_len);
    }
    return mask;
  }

 private:
  bool causal_;
  HostTensor<int32_t> segments_;
};

// Error of a score, in epsilons, where the largest is `largest`: a sum of K
// products is off by about sqrt(K) / 2 epsilons of itself, and the logarithm of
// the row's sum, which is kept, by half an epsilon of at most largest + log T.
inline double ScoreRoundings(double largest, const HeadSize& size) {
  return largest * (0.5 + std::sqrt(static_cast<double>(size.head_dim)) / 2) +
         std::log(static_cast<double>(size.seq_len));
}

// How much coarser than fp32 the products of fp32 tensors are: on a GPU they
// are made of two bf16 parts each, with errors near 2^-16 instead of 2^-24.
inline double ProductRoundings() {
  return QueryDevice().kind == "cuda" ? 256.0 : 1.0;
}

// Compares every result of a back end with the reference in double. The budget
// is twice the error of the reference in float, which shows what the solve
// makes of errors, and a floor: the exponential makes the absolute error of a
// score a relative error of the weight. Without it a single number such as
// d_log_lambda would be held to an error that the reference's happened to be.
// For the same reason such a number has the reference's largest error of all
// results, from which it is summed.
inline void ExpectWithinBudget(const Named<float>& got,
                               const Named<float>& plain,
                               const Named<double>& exact,
                               double score_roundings,
                               double product_roundings = 1) {
  const double epsilon = std::numeric_limits<float>::epsilon();
  ASSERT_EQ(got.size(), exact.size());
  double worst = 0;
  for (const auto& [name, want] : exact) {
    worst = std::max(worst, RelativeError(ToDouble(plain.at(name)), want));
  }
  for (const auto& [name, want] : exact) {
    const double error = want.size() == 1
                             ? worst
                             : RelativeError(ToDouble(plain.at(name)), want);
    const double budget = 2 * error + epsilon * (1 + score_roundings);
    EXPECT_TRUE(
        IsClose(ToDouble(got.at(name)), want, budget * product_roundings))
        << name;
  }
}

}  // namespace testing
}  // namespace cubit

#endif  // CUBIT_TESTS_OPS_HEAD_ARRAY_H_
