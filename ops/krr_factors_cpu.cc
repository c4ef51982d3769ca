// SPDX-License-Identifier: Apache-2.0
//
// The per-token factors around the KRR solve, and its health: all O(T K).

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "ops/krr.h"
#include "ops/reduction.h"
#include "ops/rotary.h"
#include "ops/score_tile.h"
#include "runtime/check.h"
#include "runtime/thread_pool.h"

namespace cubit {
namespace {

double InverseNorm(const float* row, int64_t dim) {
  const double square = FixedOrderSum(dim, [row](int64_t c) {
    return static_cast<double>(row[c]) * static_cast<double>(row[c]);
  });
  return 1.0 / std::sqrt(square + kKrrNormEpsilon);
}

double Sigmoid(float x) { return 1.0 / (1.0 + std::exp(-double{x})); }

// Gradients of one head's parameters from one sequence.
struct HeadSums {
  double d_scale = 0;
  double d_lower = 0;
  double d_upper_scale = 0;
};

// The LRR factor of token n of `d_value_scale`: adds its parameters' gradients
// and returns that of its logit.
float LrrBackward(const ConstTensor& d_value_scale, int64_t n, float logit,
                  float upper_scale, HeadSums* sum) {
  const double d_value = d_value_scale.data<float>()[n];
  const double s = Sigmoid(logit);
  sum->d_lower += d_value;
  sum->d_upper_scale += d_value * s;
  return static_cast<float>(d_value * double{upper_scale} * s * (1.0 - s));
}

// target[h] += the sum over the batch of a field of `sums` [B, H].
void AddOverBatch(const std::vector<HeadSums>& sums, double HeadSums::*field,
                  Tensor target) {
  const int64_t num_heads = target.dim(0);
  const int64_t count = static_cast<int64_t>(sums.size());
  for (int64_t h = 0; h < num_heads; ++h) {
    double sum = 0;
    for (int64_t i = h; i < count; i += num_heads) {
      sum += sums[static_cast<size_t>(i)].*field;
    }
    target.data<float>()[h] += static_cast<float>(sum);
  }
}

// Calls body(b, h, index of the pair) for every head of every sequence.
template <typename Body>
void ForEachHead(const ConstHeadTensor& x, const Body& body) {
  ParallelFor(x.batch * x.num_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      body(i / x.num_heads, i % x.num_heads, i);
    }
  });
}

void CheckLrr(const ConstHeadTensor& r, const ConstHeadTensor& lrr_logits,
              const ConstTensor& lower, const ConstTensor& upper_scale) {
  CheckHeadShape(r, "r", r.batch, r.seq_len, r.num_heads, r.head_dim);
  CUBIT_CHECK_EQ(lrr_logits.empty(), lower.empty());
  CUBIT_CHECK_EQ(lrr_logits.empty(), upper_scale.empty());
  if (lrr_logits.empty()) return;
  CheckHeadShape(lrr_logits, "lrr_logits", r.batch, r.seq_len, r.num_heads, 1);
  CUBIT_CHECK_SHAPE(lower, {r.num_heads});
  CUBIT_CHECK_SHAPE(upper_scale, {r.num_heads});
}

// The value that comes first under `before`; NaN comes before everything.
template <typename T, typename Before>
T Extreme(T a, T b, Before before) {
  if (std::isnan(a) || std::isnan(b)) {
    return std::numeric_limits<T>::quiet_NaN();
  }
  return before(b, a) ? b : a;
}

// Largest magnitude in head (b, h), each row times its factor (or 1); NaN
// passes through.
float LargestMagnitude(const ConstHeadTensor& x, const float* factors,
                       int64_t b, int64_t h) {
  float largest = 0;
  for (int64_t t = 0; t < x.seq_len; ++t) {
    const float* row = x.row<float>(b, t, h);
    const float factor = factors == nullptr ? 1.0f : factors[t];
    for (int64_t c = 0; c < x.head_dim; ++c) {
      largest = Extreme(largest, std::abs(factor * row[c]), std::greater<>());
    }
  }
  return largest;
}

}  // namespace

void KrrFactorsForward(ConstHeadTensor r, ConstHeadTensor lrr_logits,
                       ConstTensor scale, ConstTensor lower,
                       ConstTensor upper_scale, Tensor column_scale,
                       Tensor value_scale, Stream& /*stream*/) {
  CheckLrr(r, lrr_logits, lower, upper_scale);
  CUBIT_CHECK_SHAPE(scale, {r.num_heads});
  CUBIT_CHECK_SHAPE(column_scale, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(value_scale, {r.batch, r.num_heads, r.seq_len});
  ForEachHead(r, [&](int64_t b, int64_t h, int64_t i) {
    float* columns = column_scale.data<float>() + i * r.seq_len;
    float* values = value_scale.data<float>() + i * r.seq_len;
    const double scale_h = scale.data<float>()[h];
    for (int64_t t = 0; t < r.seq_len; ++t) {
      columns[t] = static_cast<float>(
          scale_h * InverseNorm(r.row<float>(b, t, h), r.head_dim));
    }
    if (lrr_logits.empty()) {
      std::fill(values, values + r.seq_len, 1.0f);
      return;
    }
    const double lower_h = lower.data<float>()[h];
    const double upper_h = upper_scale.data<float>()[h];
    for (int64_t t = 0; t < r.seq_len; ++t) {
      values[t] = static_cast<float>(
          lower_h + upper_h * Sigmoid(lrr_logits.row<float>(b, t, h)[0]));
    }
  });
}

// The parameters are those of the header.
// NOLINTNEXTLINE(readability-function-size)
void KrrRotaryFactorsForward(ConstTensor rotary_table, int64_t first_position,
                             HeadTensor r, ConstHeadTensor lrr_logits,
                             ConstTensor scale, ConstTensor lower,
                             ConstTensor upper_scale, Tensor column_scale,
                             Tensor value_scale, Stream& stream) {
  if (!rotary_table.empty()) {
    RotaryForward(rotary_table, first_position, r, stream);
  }
  KrrFactorsForward(r, lrr_logits, scale, lower, upper_scale, column_scale,
                    value_scale, stream);
}

// The parameters are those of the header.
// NOLINTNEXTLINE(readability-function-size)
void KrrFactorsBackward(ConstHeadTensor r, ConstHeadTensor lrr_logits,
                        ConstTensor scale, ConstTensor upper_scale,
                        ConstTensor column_scale, ConstTensor d_column_scale,
                        ConstTensor d_value_scale, HeadTensor d_r,
                        HeadTensor d_lrr_logits, Tensor d_scale, Tensor d_lower,
                        Tensor d_upper_scale, Stream& /*stream*/) {
  CheckLrr(r, lrr_logits, upper_scale, upper_scale);
  CheckLrr(r, d_lrr_logits, d_lower, d_upper_scale);
  CUBIT_CHECK_EQ(lrr_logits.empty(), d_lrr_logits.empty());
  CheckHeadShape(d_r, "d_r", r.batch, r.seq_len, r.num_heads, r.head_dim);
  CUBIT_CHECK_SHAPE(scale, {r.num_heads});
  CUBIT_CHECK_SHAPE(d_scale, {r.num_heads});
  CUBIT_CHECK_SHAPE(column_scale, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(d_column_scale, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(d_value_scale, {r.batch, r.num_heads, r.seq_len});
  std::vector<HeadSums> sums(static_cast<size_t>(r.batch * r.num_heads));
  ForEachHead(r, [&](int64_t b, int64_t h, int64_t i) {
    HeadSums& sum = sums[static_cast<size_t>(i)];
    for (int64_t t = 0; t < r.seq_len; ++t) {
      const int64_t n = i * r.seq_len + t;
      const double d_column = d_column_scale.data<float>()[n];
      const float* row = r.row<float>(b, t, h);
      // The norm is taken again: a scale of 0 has erased it from column_scale.
      const double inverse = InverseNorm(row, r.head_dim);
      sum.d_scale += d_column * inverse;
      const float factor =
          static_cast<float>(-d_column * inverse * inverse *
                             double{column_scale.data<float>()[n]});
      float* d_row = d_r.row<float>(b, t, h);
      for (int64_t c = 0; c < r.head_dim; ++c) d_row[c] += factor * row[c];
      if (lrr_logits.empty()) continue;
      d_lrr_logits.row<float>(b, t, h)[0] =
          LrrBackward(d_value_scale, n, lrr_logits.row<float>(b, t, h)[0],
                      upper_scale.data<float>()[h], &sum);
    }
  });
  AddOverBatch(sums, &HeadSums::d_scale, d_scale);
  if (lrr_logits.empty()) return;
  AddOverBatch(sums, &HeadSums::d_lower, d_lower);
  AddOverBatch(sums, &HeadSums::d_upper_scale, d_upper_scale);
}

// The parameters are those of the header.
// NOLINTNEXTLINE(readability-function-size)
void KrrScalarsBackward(ConstHeadTensor lrr_logits, ConstTensor upper_scale,
                        ConstTensor d_scale_shares, ConstTensor d_value_scale,
                        HeadTensor d_lrr_logits, Tensor d_scale, Tensor d_lower,
                        Tensor d_upper_scale, Stream& /*stream*/) {
  const Shape& shape = d_scale_shares.shape();
  const int64_t num_heads = shape[1];
  const int64_t seq_len = shape[2];
  const bool lrr = !lrr_logits.empty();
  CUBIT_CHECK(d_value_scale.shape() == shape) << shape.ToString();
  CUBIT_CHECK_SHAPE(d_scale, {num_heads});
  CUBIT_CHECK(d_lrr_logits.empty() != lrr && upper_scale.empty() != lrr);
  CUBIT_CHECK(d_lower.empty() != lrr && d_upper_scale.empty() != lrr);
  std::vector<HeadSums> sums(static_cast<size_t>(shape[0] * num_heads));
  ParallelFor(shape[0] * num_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      HeadSums& sum = sums[static_cast<size_t>(i)];
      const int64_t h = i % num_heads;
      for (int64_t t = 0; t < seq_len; ++t) {
        const int64_t n = i * seq_len + t;
        sum.d_scale += double{d_scale_shares.data<float>()[n]};
        if (!lrr) continue;
        d_lrr_logits.row<float>(i / num_heads, t, h)[0] = LrrBackward(
            d_value_scale, n, lrr_logits.row<float>(i / num_heads, t, h)[0],
            upper_scale.data<float>()[h], &sum);
      }
    }
  });
  AddOverBatch(sums, &HeadSums::d_scale, d_scale);
  if (!lrr) return;
  AddOverBatch(sums, &HeadSums::d_lower, d_lower);
  AddOverBatch(sums, &HeadSums::d_upper_scale, d_upper_scale);
}

// The parameters are those of the header.
// NOLINTNEXTLINE(readability-function-size)
void KrrHealth(ConstHeadTensor r, ConstHeadTensor v, ConstTensor column_scale,
               ConstTensor value_scale, ConstTensor log_lambda,
               ConstHeadTensor x, ConstTensor lse, Tensor result,
               Stream& /*stream*/) {
  CUBIT_CHECK_SHAPE(result, {3});
  CUBIT_CHECK_SHAPE(column_scale, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(value_scale, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(lse, {r.batch, r.num_heads, r.seq_len});
  CUBIT_CHECK_SHAPE(log_lambda, {r.num_heads});
  CheckHeadShape(v, "v", r.batch, r.seq_len, r.num_heads, r.head_dim);
  CheckHeadShape(x, "x", r.batch, r.seq_len, r.num_heads, r.head_dim);
  struct HeadHealth {
    double diagonal = 1;
    float x = 0;
    float v = 0;
  };
  std::vector<HeadHealth> heads(static_cast<size_t>(r.batch * r.num_heads));
  ForEachHead(r, [&](int64_t b, int64_t h, int64_t i) {
    const float* columns = column_scale.data<float>() + i * r.seq_len;
    const float* values = value_scale.data<float>() + i * r.seq_len;
    const float* lse_row = lse.data<float>() + i * r.seq_len;
    HeadHealth& health = heads[static_cast<size_t>(i)];
    for (int64_t t = 0; t < r.seq_len; ++t) {
      const float* row = r.row<float>(b, t, h);
      const double score =
          double{columns[t]} * FixedOrderSum(r.head_dim, [row](int64_t c) {
            return static_cast<double>(row[c]) * static_cast<double>(row[c]);
          });
      health.diagonal = Extreme(
          health.diagonal, std::exp(score - double{lse_row[t]}), std::less<>());
    }
    health.x = LargestMagnitude(x, nullptr, b, h);
    health.v = LargestMagnitude(v, values, b, h);
  });
  HeadHealth all;
  for (const HeadHealth& head : heads) {
    all.diagonal = Extreme(all.diagonal, head.diagonal, std::less<>());
    all.x = Extreme(all.x, head.x, std::greater<>());
    all.v = Extreme(all.v, head.v, std::greater<>());
  }
  const float* log_lambdas = log_lambda.data<float>();
  float* out = result.data<float>();
  out[0] = static_cast<float>(all.diagonal);
  out[1] = all.v == 0 ? 0.0f : all.x / all.v;
  out[2] = std::exp(*std::max_element(log_lambdas, log_lambdas + r.num_heads));
}

}  // namespace cubit
