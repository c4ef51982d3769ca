// SPDX-License-Identifier: Apache-2.0
//
// One head of a pair of chunks on the CPU: what chunked_attention.h and
// chunked_solve.h share between the tensors of their callers and the tiles of
// tile_sweep.h.

#ifndef CUBIT_OPS_CHUNKED_ATTENTION_PAIR_H_
#define CUBIT_OPS_CHUNKED_ATTENTION_PAIR_H_

#include <cstdint>

#include "absl/functional/function_ref.h"

#include "ops/chunked_attention.h"
#include "ops/score_tile.h"
#include "ops/tile_sweep.h"
#include "runtime/tensor.h"

namespace cubit {

// Calls body(b, h) once for every head of every sequence, in parallel.
void ForEachHead(int64_t batch, int64_t num_heads,
                 absl::FunctionRef<void(int64_t b, int64_t h)> body);

// Row (b, h) of x [B, H, T].
template <typename T>
T* HeadRow(const Tensor& x, int64_t b, int64_t h) {
  return x.data<T>() + (b * x.dim(1) + h) * x.dim(2);
}
template <typename T>
const T* HeadRow(const ConstTensor& x, int64_t b, int64_t h) {
  return x.data<T>() + (b * x.dim(1) + h) * x.dim(2);
}

// What the queries of sequence `b` see of the keys; `strict` as in VisibleKeys.
VisibleKeys KeysOfPair(const ChunkMask& mask, int64_t b, int64_t num_queries,
                       int64_t num_keys, bool strict);
// Whether any query sees any key.
bool AnyVisible(const VisibleKeys& keys, int64_t num_queries, int64_t num_keys);

// Packs head (b, h) of x [B, T, H, K] into `blocks` (TransposeBlocks); `rows`
// [T, K] receives the plain rows.
void PackBlocks(const ConstHeadTensor& x, int64_t b, int64_t h, float* rows,
                float* blocks);

// CHECKs that x is fp32 with the extents of `like`, or, a chunk of the same
// sequences, with another length.
void CheckLike(const ConstHeadTensor& x, const char* name,
               const ConstHeadTensor& like);
void CheckChunk(const ConstHeadTensor& x, const char* name,
                const ConstHeadTensor& like);
// CHECKs that x is [B, H, T] of `like`.
void CheckPerToken(const ConstTensor& x, const char* name,
                   const ConstHeadTensor& like);
// CHECKs shapes of sums for queries like q.
void CheckRowSums(const RowSums& sums, const ConstHeadTensor& q);

// Head (b, h) of RowSums.
class HeadSums {
 public:
  HeadSums(const RowSums& sums, int64_t b, int64_t h);

  // No key met: row i is shifted by shift(i) until it meets a larger score, or
  // for good where callers pass `fixed_shift`.
  void Begin(absl::FunctionRef<float(int64_t i)> shift) const;
  // `block` goes on where rows [begin, begin + rows) stand; with `fixed_shift`
  // row_max is known to be no less than any score and stays.
  void Load(int64_t begin, int64_t rows, bool fixed_shift,
            SoftmaxRows* block) const;
  void Store(int64_t begin, int64_t rows, const SoftmaxRows& block) const;

 private:
  const HeadTensor weighted_;
  int64_t b_;
  int64_t h_;
  float* row_max_;   // [Tq]
  double* row_sum_;  // [Tq]
};

// Adds all keys of `head` to the sums of all its queries; `values` [Tk, K].
void AddKeys(const ScoreHead& head, const VisibleKeys& keys,
             const float* values, bool fixed_shift, const HeadSums& sums);

// sums_j += sum_i P_ij rows_i over a pair; `rows` [Tq, K], `sums` [Tk, K].
void AddTransposedPair(const KeptSoftmax& kernel, const VisibleKeys& keys,
                       const float* rows, float* sums);

// Takes every tile of a pair through `sweep`. `d_values` [Tk, K] is added to,
// unless it is null.
void SweepPair(const VisibleKeys& keys, float* d_values, GradientSweep* sweep);

}  // namespace cubit

#endif  // CUBIT_OPS_CHUNKED_ATTENTION_PAIR_H_
