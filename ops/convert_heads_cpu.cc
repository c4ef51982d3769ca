// SPDX-License-Identifier: Apache-2.0

#include "ops/convert_heads.h"
#include "runtime/bfloat16.h"
#include "runtime/check.h"
#include "runtime/thread_pool.h"

namespace cubit {
namespace {

constexpr int64_t kGrain = 64;  // rows of all heads

void ConvertRow(const float* x, int64_t count, BFloat16* y) {
  for (int64_t i = 0; i < count; ++i) y[i] = ToBFloat16(x[i]);
}
void ConvertRow(const BFloat16* x, int64_t count, float* y) {
  for (int64_t i = 0; i < count; ++i) y[i] = ToFloat(x[i]);
}

template <typename From, typename To>
void ConvertAll(const ConstHeadTensor& x, const HeadTensor& y) {
  ParallelFor(x.batch * x.seq_len, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / x.seq_len;
      const int64_t t = row % x.seq_len;
      for (int64_t h = 0; h < x.num_heads; ++h) {
        ConvertRow(x.row<From>(b, t, h), x.head_dim, y.row<To>(b, t, h));
      }
    }
  });
}

}  // namespace

void ConvertHeads(ConstHeadTensor x, HeadTensor y, Stream&) {
  CUBIT_CHECK(x.batch == y.batch && x.seq_len == y.seq_len &&
              x.num_heads == y.num_heads && x.head_dim == y.head_dim);
  if (x.dtype == DType::kFloat32) {
    ConvertAll<float, BFloat16>(x, y);
  } else {
    ConvertAll<BFloat16, float>(x, y);
  }
}

}  // namespace cubit
