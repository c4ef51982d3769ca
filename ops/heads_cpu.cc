// SPDX-License-Identifier: Apache-2.0

#include <cmath>
#include <cstdint>

#include "ops/column_sums.h"
#include "ops/heads.h"
#include "runtime/thread_pool.h"

namespace cubit {
namespace {

constexpr int64_t kRowGrain = 64;  // rows of H * K elements

void CheckSameExtents(ConstHeadTensor a, ConstHeadTensor b) {
  CUBIT_CHECK(a.batch == b.batch && a.seq_len == b.seq_len &&
              a.num_heads == b.num_heads && a.head_dim == b.head_dim)
      << "[" << a.batch << ", " << a.seq_len << ", " << a.num_heads << ", "
      << a.head_dim << "] and [" << b.batch << ", " << b.seq_len << ", "
      << b.num_heads << ", " << b.head_dim << "]";
}

// body(b, t, h) for every row of `x`.
template <typename Body>
void ForEachRow(ConstHeadTensor x, const Body& body) {
  ParallelFor(x.batch * x.seq_len, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t h = 0; h < x.num_heads; ++h) {
        body(i / x.seq_len, i % x.seq_len, h);
      }
    }
  });
}

}  // namespace

void CopyHeads(ConstHeadTensor x, HeadTensor y, Stream&) {
  CheckSameExtents(x, y);
  ForEachRow(x, [&](int64_t b, int64_t t, int64_t h) {
    const float* from = x.row<float>(b, t, h);
    float* to = y.row<float>(b, t, h);
    for (int64_t i = 0; i < x.head_dim; ++i) to[i] = from[i];
  });
}

void AddHeads(ConstHeadTensor x, HeadTensor y, Stream&) {
  CheckSameExtents(x, y);
  ForEachRow(x, [&](int64_t b, int64_t t, int64_t h) {
    const float* from = x.row<float>(b, t, h);
    float* to = y.row<float>(b, t, h);
    for (int64_t i = 0; i < x.head_dim; ++i) to[i] += from[i];
  });
}

void AddHeadSums(ConstHeadTensor x, Tensor sums, Stream&) {
  if (sums.empty()) return;
  CUBIT_CHECK_SHAPE(sums, {x.num_heads * x.head_dim});
  if (x.head_stride == x.head_dim) {  // side by side: one long row
    x.head_dim *= x.num_heads;
    x.num_heads = 1;
  }
  // Mostly all rows are equally far from each other: one matrix.
  if (x.batch_stride == x.seq_len * x.seq_stride) {
    x.seq_len *= x.batch;
    x.batch = 1;
  }
  for (int64_t b = 0; b < x.batch; ++b) {
    for (int64_t h = 0; h < x.num_heads; ++h) {
      AddColumnSums(x.row<float>(b, 0, h), x.seq_len, x.head_dim, x.seq_stride,
                    sums.data<float>() + h * x.head_dim);
    }
  }
}

void SigmoidHeads(ConstHeadTensor x, HeadTensor y, Stream&) {
  CheckSameExtents(x, y);
  ForEachRow(x, [&](int64_t b, int64_t t, int64_t h) {
    const float* from = x.row<float>(b, t, h);
    float* to = y.row<float>(b, t, h);
    for (int64_t i = 0; i < x.head_dim; ++i) {
      to[i] = 1.0f / (1.0f + std::exp(-from[i]));
    }
  });
}

void SigmoidHeadsBackward(ConstHeadTensor d_y, ConstHeadTensor y,
                          HeadTensor d_x, Stream&) {
  CheckSameExtents(d_y, y);
  CheckSameExtents(d_y, d_x);
  ForEachRow(y, [&](int64_t b, int64_t t, int64_t h) {
    const float* gradient = d_y.row<float>(b, t, h);
    const float* value = y.row<float>(b, t, h);
    float* to = d_x.row<float>(b, t, h);
    for (int64_t i = 0; i < y.head_dim; ++i) {
      to[i] = gradient[i] * value[i] * (1.0f - value[i]);
    }
  });
}

}  // namespace cubit
