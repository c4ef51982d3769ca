// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "ops/cross_entropy.h"
#include "ops/pieces.h"
#include "ops/vector_math.h"
#include "runtime/thread_pool.h"

namespace cubit {
namespace {

float Largest(const float* x, int64_t count) {
  float largest = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < count; ++i) {
    largest = x[i] > largest ? x[i] : largest;
  }
  return largest;
}

// Sum of exp(x - shift); the exponentials go to y, which may be x, or nowhere.
double ExpSum(const float* x, float shift, int64_t count, float* y) {
  if (y != nullptr) return VectorExpSum(x, shift, y, count);
  constexpr int64_t kBlock = 1024;
  float block[kBlock] = {};
  double sum = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    sum +=
        VectorExpSum(x + begin, shift, block, std::min(kBlock, count - begin));
  }
  return sum;
}

struct RowScales {
  int64_t vocab_size;
  int64_t valid_vocab;
  double z_loss;
  double grad_scale;
};

// Returns the loss of one row; writes its gradient if d_logits is not null.
float ProcessRow(const float* logits, int32_t target, const RowScales& scales,
                 float* d_logits) {
  if (target == kIgnoredTarget) {
    if (d_logits != nullptr) std::fill_n(d_logits, scales.vocab_size, 0.0f);
    return 0.0f;
  }
  CUBIT_CHECK(target >= 0 && target < scales.valid_vocab)
      << "target " << target << ", the vocabulary has " << scales.valid_vocab;
  // Read before the exponentials may overwrite it.
  const double target_logit = static_cast<double>(logits[target]);
  const float largest = Largest(logits, scales.valid_vocab);
  const double sum = ExpSum(logits, largest, scales.valid_vocab, d_logits);
  const double lse = static_cast<double>(largest) + std::log(sum);
  if (d_logits != nullptr) {
    const float factor = static_cast<float>(
        scales.grad_scale * (1.0 + 2.0 * scales.z_loss * lse) / sum);
#pragma omp simd
    for (int64_t v = 0; v < scales.valid_vocab; ++v) d_logits[v] *= factor;
    d_logits[target] -= static_cast<float>(scales.grad_scale);
    std::fill(d_logits + scales.valid_vocab, d_logits + scales.vocab_size,
              0.0f);
  }
  return static_cast<float>(lse - target_logit);
}

}  // namespace

void CrossEntropy(ConstTensor logits, ConstTensor targets, int64_t valid_vocab,
                  float z_loss, float grad_scale, Tensor losses,
                  Tensor d_logits, Stream&) {
  const int64_t num_rows = logits.dim(0);
  const int64_t vocab_size = logits.dim(1);
  CUBIT_CHECK_SHAPE(targets, {num_rows});
  CUBIT_CHECK_SHAPE(losses, {num_rows});
  if (!d_logits.empty()) CUBIT_CHECK_SHAPE(d_logits, {num_rows, vocab_size});
  CUBIT_CHECK(valid_vocab >= 1 && valid_vocab <= vocab_size) << valid_vocab;
  const RowScales scales = {vocab_size, valid_vocab,
                            static_cast<double>(z_loss),
                            static_cast<double>(grad_scale)};
  const float* logits_data = logits.data<float>();
  const int32_t* targets_data = targets.data<int32_t>();
  float* losses_data = losses.data<float>();
  float* d_logits_data = d_logits.data<float>();
  ParallelFor(num_rows, RowsPerPiece(vocab_size),
              [=](int64_t begin, int64_t end) {
                for (int64_t n = begin; n < end; ++n) {
                  float* d_row = d_logits_data == nullptr
                                     ? nullptr
                                     : d_logits_data + n * vocab_size;
                  losses_data[n] = ProcessRow(logits_data + n * vocab_size,
                                              targets_data[n], scales, d_row);
                }
              });
}

}  // namespace cubit
