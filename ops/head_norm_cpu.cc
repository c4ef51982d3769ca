// SPDX-License-Identifier: Apache-2.0

#include <cmath>
#include <cstdint>

#include "ops/head_norm.h"
#include "ops/pieces.h"
#include "ops/reduction.h"
#include "runtime/thread_pool.h"

namespace cubit {
namespace {

constexpr double kEpsilon = 1e-12;  // under the root, see head_norm.h

double Dot(const float* a, const float* b, int64_t n) {
  return FixedOrderSum(n, [=](int64_t i) {
    return static_cast<double>(a[i]) * static_cast<double>(b[i]);
  });
}

// Calls body(b, t, h) for all of [B, T, H]; a piece is a range of (b, t).
template <typename View, typename Body>
void ForEachHeadRow(const View& x, Body body) {
  const int64_t grain = RowsPerPiece(x.num_heads * x.head_dim);
  ParallelFor(x.batch * x.seq_len, grain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t b = n / x.seq_len;
      for (int64_t h = 0; h < x.num_heads; ++h) body(b, n - b * x.seq_len, h);
    }
  });
}

template <typename View>
void CheckArguments(const View& x, ConstTensor gain, ConstTensor inv_norm) {
  CUBIT_CHECK_SHAPE(inv_norm, {x.batch, x.num_heads, x.seq_len});
  if (!gain.empty()) CUBIT_CHECK_SHAPE(gain, {x.num_heads});
}

// d_gain[h] += sum over (b, t) of <u, d_y> with u = y / gain, in the order of
// (b, t). A piece is a head.
void AddGainGradient(const ConstHeadTensor& y, const float* gain,
                     const ConstHeadTensor& d_y, float* d_gain) {
  ParallelFor(y.num_heads, 1, [=](int64_t h, int64_t) {
    if (gain[h] == 0.0f) return;
    double sum = 0;
    for (int64_t b = 0; b < y.batch; ++b) {
      for (int64_t t = 0; t < y.seq_len; ++t) {
        sum += Dot(y.row<float>(b, t, h), d_y.row<float>(b, t, h), y.head_dim);
      }
    }
    d_gain[h] = static_cast<float>(static_cast<double>(d_gain[h]) +
                                   sum / static_cast<double>(gain[h]));
  });
}

// In place: d = gain inv_norm (d - u <u, d>) with u = y / gain.
void ReplaceGradientOfRow(const float* y, float gain, float inv_norm,
                          int64_t head_dim, float* d) {
  const double square = static_cast<double>(gain) * static_cast<double>(gain);
  // y / gain twice, so that u itself is never stored; a gain of zero makes y
  // and the gradient zero.
  const float projection =
      gain == 0.0f ? 0.0f : static_cast<float>(Dot(y, d, head_dim) / square);
  const float scale = gain * inv_norm;
#pragma omp simd
  for (int64_t i = 0; i < head_dim; ++i) {
    d[i] = scale * (d[i] - y[i] * projection);
  }
}

}  // namespace

void HeadNormForward(ConstTensor gain, HeadTensor x, Tensor inv_norm, Stream&) {
  CheckArguments(x, gain, inv_norm);
  const float* gain_data = gain.data<float>();
  float* inv_norm_data = inv_norm.data<float>();
  ForEachHeadRow(x, [=](int64_t b, int64_t t, int64_t h) {
    float* row = x.row<float>(b, t, h);
    const double inverse =
        1.0 / std::sqrt(Dot(row, row, x.head_dim) + kEpsilon);
    const double factor =
        gain_data == nullptr ? 1.0 : static_cast<double>(gain_data[h]);
    const float scale = static_cast<float>(factor * inverse);
#pragma omp simd
    for (int64_t i = 0; i < x.head_dim; ++i) row[i] *= scale;
    inv_norm_data[(b * x.num_heads + h) * x.seq_len + t] =
        static_cast<float>(inverse);
  });
}

void HeadNormBackward(ConstHeadTensor y, ConstTensor gain, ConstTensor inv_norm,
                      HeadTensor d_x, Tensor d_gain, Stream&) {
  CheckArguments(y, gain, inv_norm);
  CUBIT_CHECK_EQ(d_x.batch, y.batch);
  CUBIT_CHECK_EQ(d_x.seq_len, y.seq_len);
  CUBIT_CHECK_EQ(d_x.num_heads, y.num_heads);
  CUBIT_CHECK_EQ(d_x.head_dim, y.head_dim);
  CUBIT_CHECK_EQ(d_gain.empty(), gain.empty());
  const float* gain_data = gain.data<float>();
  const float* inv_norm_data = inv_norm.data<float>();
  if (!d_gain.empty()) {
    CUBIT_CHECK_SHAPE(d_gain, {y.num_heads});
    AddGainGradient(y, gain_data, d_x, d_gain.data<float>());
  }
  ForEachHeadRow(y, [=](int64_t b, int64_t t, int64_t h) {
    const float inverse = inv_norm_data[(b * y.num_heads + h) * y.seq_len + t];
    ReplaceGradientOfRow(y.row<float>(b, t, h),
                         gain_data == nullptr ? 1.0f : gain_data[h], inverse,
                         y.head_dim, d_x.row<float>(b, t, h));
  });
}

}  // namespace cubit
