// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <cstdint>

#include "ops/embedding.h"
#include "ops/pieces.h"
#include "runtime/thread_pool.h"

namespace cubit {
namespace {

void CheckIds(const int32_t* ids, int64_t count, int64_t vocab_size) {
  for (int64_t n = 0; n < count; ++n) {
    CUBIT_CHECK(ids[n] >= 0 && ids[n] < vocab_size)
        << "token " << n << " is " << ids[n] << ", the vocabulary has "
        << vocab_size;
  }
}

}  // namespace

void EmbeddingForward(ConstTensor ids, ConstTensor weight,
                      VocabularySlice slice, Tensor y, Stream&) {
  const int64_t count = ids.num_elements();
  const int64_t held = weight.dim(0);
  const int64_t dim = weight.dim(1);
  CUBIT_CHECK_EQ(ids.shape().rank(), 1);
  CUBIT_CHECK_SHAPE(y, {count, dim});
  const int32_t* id_data = ids.data<int32_t>();
  const float* weight_data = weight.data<float>();
  float* y_data = y.data<float>();
  CheckIds(id_data, count, slice.size);
  ParallelFor(count, RowsPerPiece(dim), [=](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t row = id_data[n] - slice.begin;
      if (row >= 0 && row < held) {
        std::copy_n(weight_data + row * dim, dim, y_data + n * dim);
      } else {
        std::fill_n(y_data + n * dim, dim, 0.0f);
      }
    }
  });
}

void EmbeddingBackward(ConstTensor ids, ConstTensor d_y, VocabularySlice slice,
                       Tensor d_weight, Stream&) {
  const int64_t count = ids.num_elements();
  const int64_t held = d_weight.dim(0);
  const int64_t dim = d_weight.dim(1);
  CUBIT_CHECK_EQ(ids.shape().rank(), 1);
  CUBIT_CHECK_SHAPE(d_y, {count, dim});
  const int32_t* id_data = ids.data<int32_t>();
  const float* d_y_data = d_y.data<float>();
  float* d_weight_data = d_weight.data<float>();
  CheckIds(id_data, count, slice.size);
  // A piece owns columns of the whole table, so that no two meet in a row that
  // several tokens share.
  ParallelFor(dim, kPieceColumns, [=](int64_t begin, int64_t end) {
    for (int64_t n = 0; n < count; ++n) {
      const int64_t row = id_data[n] - slice.begin;
      if (row < 0 || row >= held) continue;
      const float* source = d_y_data + n * dim;
      float* target = d_weight_data + row * dim;
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) target[i] += source[i];
    }
  });
}

}  // namespace cubit
