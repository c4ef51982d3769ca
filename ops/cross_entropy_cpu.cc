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

void CheckTarget(int32_t target, int64_t valid_vocab) {
  CUBIT_CHECK(target >= 0 && target < valid_vocab)
      << "target " << target << ", the vocabulary has " << valid_vocab;
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
  CheckTarget(target, scales.valid_vocab);
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

// What the slices of a row come to.
struct RowSum {
  double max;
  double sum;  // of exp(logit - max)
  double target_logit;

  double lse() const { return max + std::log(sum); }
};

struct GradientScales {
  float z_loss;
  float grad_scale;
};

// The part of the gradient that is not at the target.
void WriteGradient(const float* logits, int64_t count, const RowSum& row,
                   GradientScales scales, float* d_logits) {
  const double slope =
      1.0 + 2.0 * static_cast<double>(scales.z_loss) * row.lse();
  const float factor = static_cast<float>(
      static_cast<double>(scales.grad_scale) * slope / row.sum);
  VectorExpSum(logits, static_cast<float>(row.max), d_logits, count);
#pragma omp simd
  for (int64_t v = 0; v < count; ++v) d_logits[v] *= factor;
}

// `row` is a slice's three numbers of the row, `stride` those of a slice.
RowSum Merge(const float* row, int64_t num_slices, int64_t stride) {
  RowSum total = {static_cast<double>(row[0]), 0, 0};
  for (int64_t p = 1; p < num_slices; ++p) {
    total.max = std::max(total.max, static_cast<double>(row[p * stride]));
  }
  for (int64_t p = 0; p < num_slices; ++p) {
    const float* slice = row + p * stride;
    total.sum += static_cast<double>(slice[1]) *
                 std::exp(static_cast<double>(slice[0]) - total.max);
    total.target_logit += static_cast<double>(slice[2]);
  }
  return total;
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

void CrossEntropyStatistics(ConstTensor logits, ConstTensor targets,
                            VocabularySlice slice, Tensor statistics, Stream&) {
  const int64_t num_rows = logits.dim(0);
  const int64_t extent = logits.dim(1);
  CUBIT_CHECK_SHAPE(targets, {num_rows});
  CUBIT_CHECK_SHAPE(statistics, {num_rows, 3});
  const int64_t existing = slice.Existing(extent);
  const float* logits_data = logits.data<float>();
  const int32_t* targets_data = targets.data<int32_t>();
  float* statistics_data = statistics.data<float>();
  ParallelFor(num_rows, RowsPerPiece(extent), [=](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* row = logits_data + n * extent;
      float* out = statistics_data + 3 * n;
      const int64_t column = targets_data[n] - slice.begin;
      out[0] = std::numeric_limits<float>::lowest();
      out[1] = 0.0f;
      out[2] = column >= 0 && column < existing ? row[column] : 0.0f;
      if (existing == 0) continue;
      out[0] = std::max(out[0], Largest(row, existing));
      out[1] = static_cast<float>(ExpSum(row, out[0], existing, nullptr));
    }
  });
}

void CrossEntropyLosses(ConstTensor statistics, ConstTensor targets,
                        int64_t valid_vocab, Tensor losses, Stream&) {
  const int64_t num_slices = statistics.dim(0);
  const int64_t num_rows = statistics.dim(1);
  CUBIT_CHECK_SHAPE(statistics, {num_slices, num_rows, 3});
  CUBIT_CHECK_SHAPE(targets, {num_rows});
  CUBIT_CHECK_SHAPE(losses, {num_rows});
  const float* statistics_data = statistics.data<float>();
  const int32_t* targets_data = targets.data<int32_t>();
  float* losses_data = losses.data<float>();
  for (int64_t n = 0; n < num_rows; ++n) {
    losses_data[n] = 0.0f;
    if (targets_data[n] == kIgnoredTarget) continue;
    CheckTarget(targets_data[n], valid_vocab);
    const RowSum row = Merge(statistics_data + 3 * n, num_slices, 3 * num_rows);
    losses_data[n] = static_cast<float>(row.lse() - row.target_logit);
  }
}

void CrossEntropyGradient(ConstTensor logits, ConstTensor targets,
                          VocabularySlice slice, ConstTensor statistics,
                          float z_loss, float grad_scale, Tensor d_logits,
                          Stream&) {
  const int64_t num_slices = statistics.dim(0);
  const int64_t num_rows = logits.dim(0);
  const int64_t extent = logits.dim(1);
  CUBIT_CHECK_SHAPE(targets, {num_rows});
  CUBIT_CHECK_SHAPE(statistics, {num_slices, num_rows, 3});
  CUBIT_CHECK_SHAPE(d_logits, {num_rows, extent});
  const int64_t existing = slice.Existing(extent);
  const float* logits_data = logits.data<float>();
  const int32_t* targets_data = targets.data<int32_t>();
  const float* statistics_data = statistics.data<float>();
  float* d_logits_data = d_logits.data<float>();
  ParallelFor(num_rows, RowsPerPiece(extent), [=](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      float* d_row = d_logits_data + n * extent;
      if (targets_data[n] == kIgnoredTarget) {
        std::fill_n(d_row, extent, 0.0f);
        continue;
      }
      CheckTarget(targets_data[n], slice.size);
      const RowSum row =
          Merge(statistics_data + 3 * n, num_slices, 3 * num_rows);
      WriteGradient(logits_data + n * extent, existing, row,
                    {z_loss, grad_scale}, d_row);
      std::fill(d_row + existing, d_row + extent, 0.0f);
      const int64_t column = targets_data[n] - slice.begin;
      if (column >= 0 && column < existing) d_row[column] -= grad_scale;
    }
  });
}

}  // namespace cubit
