// SPDX-License-Identifier: Apache-2.0
//
// Sequences cut into chunks, for the tests of chunked_attention.h and
// chunked_solve.h.

#ifndef CUBIT_TESTS_OPS_CHUNKED_CASE_H_
#define CUBIT_TESTS_OPS_CHUNKED_CASE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "ops/chunked_attention.h"
#include "runtime/bfloat16.h"
#include "runtime/check.h"
#include "runtime/tensor.h"
#include "tests/ops/head_array.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace testing {

// In which order a chunk meets the others.
enum class ChunkOrder { kAscending, kDescending, kOddFirst };

inline std::vector<int> InOrder(std::vector<int> chunks, ChunkOrder order) {
  if (order == ChunkOrder::kDescending) {
    std::reverse(chunks.begin(), chunks.end());
  }
  if (order == ChunkOrder::kOddFirst) {
    std::stable_partition(chunks.begin(), chunks.end(),
                          [](int chunk) { return chunk % 2 == 1; });
  }
  return chunks;
}

struct Chunk {
  int64_t begin;
  int64_t length;

  ConstHeadTensor Of(const ConstHeadTensor& x) const {
    return SliceSequence(x, begin, length);
  }
  HeadTensor Of(const HeadTensor& x) const {
    return SliceSequence(x, begin, length);
  }
  // The chunk's part of x [..., T], copied; absent if x is.
  template <typename T>
  HostTensor<T> Copy(const ConstTensor& x) const {
    if (x.empty()) return HostTensor<T>();
    const Shape& s = x.shape();
    const int64_t seq_len = s[s.rank() - 1];
    HostTensor<T> part(s.rank() == 3 ? Shape{s[0], s[1], length}
                                     : Shape{s[0], length});
    const T* from = x.data<T>() + begin;
    for (int64_t i = 0; i < x.num_elements() / seq_len; ++i) {
      std::copy(from + i * seq_len, from + i * seq_len + length,
                part.values().begin() + i * length);
    }
    return part;
  }
  // Writes `part` [B, H, Tc] into x [B, H, T].
  void Put(const HostTensor<float>& part, HostTensor<float>* x) const {
    const int64_t seq_len = x->shape()[2];
    for (int64_t i = 0; i < x->shape().num_elements() / seq_len; ++i) {
      std::copy(part.values().begin() + i * length,
                part.values().begin() + (i + 1) * length,
                x->values().begin() + i * seq_len + begin);
    }
  }
};

// A sequence of `lengths` in order.
inline std::vector<Chunk> Cut(const std::vector<int64_t>& lengths,
                              int64_t seq_len) {
  std::vector<Chunk> chunks;
  int64_t begin = 0;
  for (int64_t length : lengths) {
    chunks.push_back({begin, length});
    begin += length;
  }
  CUBIT_CHECK_EQ(begin, seq_len);
  return chunks;
}

inline std::vector<int> Range(int begin, int end) {
  std::vector<int> range;
  for (int i = begin; i < end; ++i) range.push_back(i);
  return range;
}

template <typename T>
ConstTensor ViewOrAbsent(const HostTensor<T>& x) {
  return x.values().empty() ? ConstTensor() : x.view();
}

// RowSums that own their memory; every value NaN.
struct OwnedRowSums {
  explicit OwnedRowSums(HeadSize size, Margins margins = Margins::kOdd)
      : row_max(Poisoned({size.batch, size.num_heads, size.seq_len})),
        row_sum(row_max.shape(), std::nan("")),
        weighted(size, margins) {}

  RowSums view() { return {row_max.view(), row_sum.view(), weighted.view()}; }

  HostTensor<float> row_max;
  HostTensor<double> row_sum;
  HeadArray weighted;
};

// What the ops of a test take for activations.
enum class Activations {
  kFloat32,
  kBFloat16,  // on a GPU alone
};

// How much coarser than fp32 the products are: of bf16 tensors, every operand
// is rounded to 2^-9 of itself instead of 2^-24.
inline double ProductRoundings(Activations activations) {
  return activations == Activations::kBFloat16 ? 32768.0 : ProductRoundings();
}
inline bool IsOnGpu() { return ProductRoundings() > 1; }

// An activation: fp32, and in bf16 where the ops of a test take that. The fp32
// values, which references read, are then the rounded ones.
class ActivationArray : public HeadArray {
 public:
  ActivationArray(HeadArray values, Activations activations)
      : HeadArray(std::move(values)) {
    if (activations == Activations::kFloat32) return;
    const HeadTensor rows = HeadArray::view();
    const int64_t per_batch = rows.seq_len * rows.num_heads;
    for (int64_t n = 0; n < rows.batch * per_batch; ++n) {
      float* row = rows.row<float>(
          n / per_batch, n % per_batch / rows.num_heads, n % rows.num_heads);
      for (int64_t c = 0; c < rows.head_dim; ++c) {
        narrow_.push_back(ToBFloat16(row[c]));
        row[c] = ToFloat(narrow_.back());
      }
    }
  }

  // Contiguous in bf16, strided in fp32.
  ConstHeadTensor activation() const {
    if (narrow_.empty()) return view();
    const HeadSize& s = size();
    return HeadsOf(ConstTensor(narrow_.data(), DType::kBFloat16,
                               {s.batch, s.seq_len, s.num_heads * s.head_dim}),
                   0, s.num_heads, s.head_dim);
  }

 private:
  std::vector<BFloat16> narrow_;
};

// In which memory a case is solved.
struct ChunkedForm {
  bool in_place = false;
  Activations activations = Activations::kFloat32;
  Activations solutions = Activations::kFloat32;

  // The kernels of whole sequences take what is aligned.
  Margins margins() const {
    return solutions == Activations::kFloat32 ? Margins::kOdd
                                              : Margins::kVectors;
  }
};

// X or Y of a solve: fp32 in strided memory or, where the ops of a test take
// that, bf16 in contiguous memory. Every value NaN.
class SolutionArray {
 public:
  SolutionArray(HeadSize size, Activations activations) : wide_(size) {
    if (activations == Activations::kFloat32) return;
    narrow_.assign(
        static_cast<size_t>(size.num_pairs() * size.seq_len * size.head_dim),
        ToBFloat16(std::nanf("")));
  }

  HeadTensor view() {
    if (narrow_.empty()) return wide_.view();
    const HeadSize& s = wide_.size();
    return HeadsOf(Tensor(narrow_.data(), DType::kBFloat16,
                          {s.batch, s.seq_len, s.num_heads * s.head_dim}),
                   0, s.num_heads, s.head_dim);
  }
  ConstHeadTensor view() const {
    return const_cast<SolutionArray*>(this)->view();
  }
  // As HeadArray's.
  std::vector<float> Values() const {
    if (narrow_.empty()) return wide_.Values();
    const HeadSize& s = wide_.size();
    std::vector<float> values;
    for (int64_t pair = 0; pair < s.num_pairs(); ++pair) {
      const int64_t b = pair / s.num_heads;
      const int64_t h = pair % s.num_heads;
      for (int64_t t = 0; t < s.seq_len; ++t) {
        const BFloat16* row = view().row<BFloat16>(b, t, h);
        for (int64_t c = 0; c < s.head_dim; ++c) {
          values.push_back(ToFloat(row[c]));
        }
      }
    }
    return values;
  }
  bool RestIsPoisoned() const { return wide_.RestIsPoisoned(); }

 private:
  HeadArray wide_;
  std::vector<BFloat16> narrow_;
};

}  // namespace testing
}  // namespace cubit

#endif  // CUBIT_TESTS_OPS_CHUNKED_CASE_H_
