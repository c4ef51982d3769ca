// SPDX-License-Identifier: Apache-2.0
//
// One KRR solve, there and back, by the op and by the plain reference.

#ifndef CUBIT_TESTS_OPS_KRR_CASE_H_
#define CUBIT_TESTS_OPS_KRR_CASE_H_

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "ops/krr.h"
#include "ops/krr_reference.h"
#include "runtime/device.h"
#include "tests/ops/head_array.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace testing {

class KrrCase {
 public:
  // r: normal values times `r_stddev`, plus `common` in every element.
  KrrCase(HeadSize s, double r_stddev, double common, float scale,
          float log_lambda_value, TestMask m)
      : size(s),
        mask(std::move(m)),
        r(s, "r", r_stddev),
        v(s, "v"),
        d_x(s, "d_x"),
        column_scale({s.batch, s.num_heads, s.seq_len}),
        value_scale(RandomNormal(7, "value_scale",
                                 {s.batch, s.num_heads, s.seq_len}, 0.1)),
        log_lambda({s.num_heads}, log_lambda_value) {
    for (int64_t i = 0; i < s.num_pairs() * s.seq_len; ++i) {
      const int64_t pair = i / s.seq_len;
      float* row = r.view().row<float>(pair / s.num_heads, i % s.seq_len,
                                       pair % s.num_heads);
      double square = 1e-12;
      for (int64_t c = 0; c < s.head_dim; ++c) {
        row[c] += static_cast<float>(common);
        square += static_cast<double>(row[c]) * static_cast<double>(row[c]);
      }
      column_scale[i] =
          static_cast<float>(static_cast<double>(scale) / std::sqrt(square));
      value_scale[i] += 1;
    }
  }

  // Forward into x and lse, rows from `first_row` on; the rows before must be
  // there.
  void Forward(int64_t first_row, HeadArray* x, HostTensor<float>* lse) const {
    Stream stream;
    KrrSolveForward(r.view(), v.view(), column_scale.view(), value_scale.view(),
                    log_lambda.view(), mask.ForOp(),
                    SolvePrecision::kBFloat16x3, first_row, x->view(),
                    lse->view(), stream);
  }

  // Every output starts as NaN, accumulated ones as 0, sums over tokens as 1.
  struct Gradients {
    explicit Gradients(const HeadSize& size)
        : d_r(size),
          d_v(size),
          d_columns(Poisoned({size.batch, size.num_heads, size.seq_len})),
          d_values(d_columns),
          d_log_lambda({size.num_heads}, 0.0f),
          health(Poisoned({3})),
          d_r_sums({size.num_heads * size.head_dim}, 1.0f),
          d_v_sums(d_r_sums) {}

    HeadArray d_r, d_v;
    HostTensor<float> d_columns, d_values, d_log_lambda, health;
    HostTensor<float> d_r_sums, d_v_sums;
  };
  Gradients Backward(const KrrBefore& before, const HeadArray& x,
                     const HostTensor<float>& lse) const {
    Gradients d(size);
    HeadArray y(size);
    Stream stream;
    KrrSolveBackward(
        r.view(), v.view(), column_scale.view(), value_scale.view(),
        log_lambda.view(), mask.ForOp(), SolvePrecision::kBFloat16x3, before,
        x.view(), lse.view(), d_x.view(), y.view(), d.d_r.view(), d.d_v.view(),
        d.d_columns.view(), d.d_values.view(), d.d_log_lambda.view(),
        d.health.view(), d.d_r_sums.view(), d.d_v_sums.view(), stream);
    EXPECT_TRUE(d.d_r.RestIsPoisoned());
    EXPECT_TRUE(d.d_v.RestIsPoisoned());
    return d;
  }

  // Of the pass for it alone.
  HostTensor<float> Health(const HeadArray& x,
                           const HostTensor<float>& lse) const {
    HostTensor<float> health = Poisoned({3});
    Stream stream;
    KrrHealth(r.view(), v.view(), column_scale.view(), value_scale.view(),
              log_lambda.view(), x.view(), lse.view(), health.view(), stream);
    return health;
  }

  Named<float> RunOp() const {
    HeadArray x(size);
    HostTensor<float> lse = Poisoned(column_scale.shape());
    Forward(0, &x, &lse);
    EXPECT_TRUE(x.RestIsPoisoned());
    const Gradients d = Backward({}, x, lse);
    return {{"x", x.Values()},
            {"lse", lse.values()},
            {"d_r", d.d_r.Values()},
            {"d_v", d.d_v.Values()},
            {"d_column_scale", d.d_columns.values()},
            {"d_value_scale", d.d_values.values()},
            {"d_log_lambda", d.d_log_lambda.values()}};
  }

  template <typename T>
  Named<T> RunReference() const {
    Named<T> results;
    results["d_log_lambda"].resize(static_cast<size_t>(size.num_heads));
    for (int64_t pair = 0; pair < size.num_pairs(); ++pair) {
      const int64_t h = pair % size.num_heads;
      const reference::Mask pair_mask =
          mask.ForReference(pair / size.num_heads);
      const T log_lambda_h = static_cast<T>(log_lambda[h]);
      const reference::KrrFactors<T> factors = {Part<T>(column_scale, pair),
                                                Part<T>(value_scale, pair)};
      const auto forward = reference::KrrSolveForward(
          r.Head<T>(pair), v.Head<T>(pair), factors, log_lambda_h, pair_mask);
      Append(forward.x.values(), &results["x"]);
      Append(forward.lse, &results["lse"]);
      const auto d = reference::KrrSolveBackward(
          r.Head<T>(pair), v.Head<T>(pair), factors, log_lambda_h, pair_mask,
          forward.x, d_x.Head<T>(pair));
      Append(d.d_r.values(), &results["d_r"]);
      Append(d.d_v.values(), &results["d_v"]);
      Append(d.d_column_scale, &results["d_column_scale"]);
      Append(d.d_value_scale, &results["d_value_scale"]);
      results["d_log_lambda"][static_cast<size_t>(h)] += d.d_log_lambda;
    }
    return results;
  }

  double ScoreRoundings() const {
    double largest = 0;
    for (int64_t pair = 0; pair < size.num_pairs(); ++pair) {
      const auto scores = reference::KrrScores(
          r.Head<double>(pair), Part<double>(column_scale, pair));
      for (double score : scores.values()) {
        largest = std::max(largest, std::abs(score));
      }
    }
    return testing::ScoreRoundings(largest, size);
  }

  HeadSize size;
  TestMask mask;
  HeadArray r, v, d_x;
  HostTensor<float> column_scale, value_scale, log_lambda;

 private:
  template <typename T>
  std::vector<T> Part(const HostTensor<float>& x, int64_t pair) const {
    const auto begin = x.values().begin() + pair * size.seq_len;
    return std::vector<T>(begin, begin + size.seq_len);
  }
};

}  // namespace testing
}  // namespace cubit

#endif  // CUBIT_TESTS_OPS_KRR_CASE_H_
