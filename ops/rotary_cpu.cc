// SPDX-License-Identifier: Apache-2.0

#include <cmath>

#include "absl/types/span.h"

#include "ops/heads.h"
#include "ops/rotary.h"
#include "runtime/check.h"
#include "runtime/thread_pool.h"

namespace cubit {
namespace {

// Turns every pair (x_i, x_{i + K/2}) of a row by its angle.
void RotateRow(const float* cosine, const float* sine, float direction,
               int64_t half, float* low) {
  float* high = low + half;
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const float a = low[i];
    const float b = high[i];
    const float s = direction * sine[i];
    low[i] = a * cosine[i] - b * s;
    high[i] = b * cosine[i] + a * s;
  }
}

// Turns every row by the table's angles; `direction` -1 turns back.
void Rotate(const ConstTensor& table, int64_t first_position, float direction,
            const HeadTensor& x) {
  CheckRotary(table, first_position, x);
  const int64_t half = x.head_dim / 2;
  const float* angles = table.data<float>() + first_position * x.head_dim;
  constexpr int64_t kGrain = 64;  // rows: a few microseconds of work
  ParallelFor(x.batch * x.seq_len, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t t = n % x.seq_len;
      const float* cosine = angles + t * x.head_dim;
      for (int64_t h = 0; h < x.num_heads; ++h) {
        RotateRow(cosine, cosine + half, direction, half,
                  x.row<float>(n / x.seq_len, t, h));
      }
    }
  });
}

void RotateAll(const ConstTensor& table, int64_t first_position,
               float direction, absl::Span<const HeadTensor> views) {
  CUBIT_CHECK(!views.empty() && views.size() <= kMaxRotaryViews)
      << views.size() << " views";
  const HeadTensor& like = views[0];
  for (const HeadTensor& x : views) {
    CUBIT_CHECK(x.batch == like.batch && x.seq_len == like.seq_len &&
                x.num_heads == like.num_heads && x.head_dim == like.head_dim)
        << "[" << x.batch << ", " << x.seq_len << ", " << x.num_heads << ", "
        << x.head_dim << "] and [" << like.batch << ", " << like.seq_len << ", "
        << like.num_heads << ", " << like.head_dim << "]";
    Rotate(table, first_position, direction, x);
  }
}

}  // namespace

void RotaryTable(double base, Tensor table, Stream& /*stream*/) {
  CUBIT_CHECK_EQ(table.shape().rank(), 2);
  const int64_t dim = table.dim(1);
  CUBIT_CHECK_EQ(dim % 2, 0);
  CUBIT_CHECK_GT(base, 0);
  float* values = table.data<float>();
  for (int64_t i = 0; i < dim / 2; ++i) {
    const double frequency = std::pow(
        base, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
    for (int64_t t = 0; t < table.dim(0); ++t) {
      const double angle = static_cast<double>(t) * frequency;
      values[t * dim + i] = static_cast<float>(std::cos(angle));
      values[t * dim + dim / 2 + i] = static_cast<float>(std::sin(angle));
    }
  }
}

void RotaryForward(ConstTensor table, int64_t first_position,
                   absl::Span<const HeadTensor> views, Stream& /*stream*/) {
  RotateAll(table, first_position, 1.0f, views);
}

void RotaryBackward(ConstTensor table, int64_t first_position,
                    absl::Span<const HeadTensor> d_views, Stream& /*stream*/) {
  RotateAll(table, first_position, -1.0f, d_views);
}

void RotaryBackward(ConstTensor table, int64_t first_position,
                    absl::Span<const HeadTensor> d_views,
                    absl::Span<const Tensor> d_sums, Stream& stream) {
  CUBIT_CHECK_EQ(d_views.size(), d_sums.size());
  RotaryBackward(table, first_position, d_views, stream);
  for (size_t i = 0; i < d_views.size(); ++i) {
    AddHeadSums(d_views[i], d_sums[i], stream);
  }
}

}  // namespace cubit
