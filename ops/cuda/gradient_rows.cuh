// SPDX-License-Identifier: Apache-2.0
//
// The second half of adjoint.h: gradients of queries, keys and column scales
// once Y is known. One block of threads owns kRows rows of one head. As keys
// they stream the queries that see them (column pass, dS^T a), then as queries
// the keys that they see (row pass, dS b); the sums stay in registers, so
// nothing is added in memory and every sum has a fixed order. The two passes of
// a block cover together as many tiles as those of any other, so the grid is
// balanced. The price: S and Y X^T are formed twice, six products where a sweep
// that adds to memory needs four (docs/decisions/0023-backward-solve.md).
//
// Here is all but the products of a tile: score_gradients.cuh has those of
// warps, warpgroup_gradients.cuh those of warpgroups.

#ifndef CUBIT_OPS_CUDA_GRADIENT_ROWS_CUH_
#define CUBIT_OPS_CUDA_GRADIENT_ROWS_CUH_

#include <cstdint>

#include "ops/cuda/adjoint.h"
#include "ops/cuda/adjoint_solve.cuh"
#include "ops/cuda/head_tile.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/products.cuh"
#include "ops/cuda/rotation.cuh"
#include "ops/cuda/tile.cuh"

namespace cubit {
namespace cuda {

// Own rows: 16 kSteps for each of kWarps warps; streamed rows: kStreamed at
// once.
template <typename Products, int kDimOfHead, int kStepsOfWarp,
          int kStreamedRows, int kNumStages, int kWarps>
struct GradientMemory {
  using Element = typename Products::Element;
  static constexpr int kDim = kDimOfHead;
  static constexpr int kSteps = kStepsOfWarp;
  static constexpr int kStreamed = kStreamedRows;
  static constexpr int kStages = kNumStages;
  static constexpr bool kOwnByFragments = false;  // GradientRows::OwnRows
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRows = 16 * kSteps * kWarps;
  using OwnTile = Tile<Element, kRows, kDim>;
  using StreamedTile = Tile<Element, kStreamed, kDim>;

  struct Stage {
    alignas(1024) char scored[StreamedTile::kBytes];   // keys or queries
    alignas(1024) char weighed[StreamedTile::kBytes];  // X or Y
    float minus_lse[kStreamed];  // of queries, times log2(e)
    float minus_delta[kStreamed];
    float factors[kStreamed];    // Delta: beta
    float exponents[kStreamed];  // of keys: column scales times log2(e)
    int segments[kStreamed];
  };
  alignas(1024) char scored[OwnTile::kBytes];
  alignas(1024) char weighed[OwnTile::kBytes];
  Stage stages[kStages];
  // Of own rows. In registers they would cost the products theirs.
  float column_scale[kRows];
  float minus_lse[kRows];
  float minus_delta[kRows];
  float factors[kRows];
  float key_dots[kRows];
  int segments[kRows];
};

// Which system a kernel is compiled for: one, or the one that its arguments
// say.
struct AnySystem {
  __device__ static bool IsDelta(const AdjointArguments& in) {
    return in.is_delta();
  }
};
struct KrrAlone {
  __device__ static bool IsDelta(const AdjointArguments&) { return false; }
};
struct DeltaAlone {
  __device__ static bool IsDelta(const AdjointArguments&) { return true; }
};

// What both kinds of products share: loads, the numbers of a tile, the ends of
// the passes. A thread's rows and columns of a tile are those of accumulators.
template <typename MemoryType, typename System = AnySystem>
class GradientRows {
 public:
  using Memory = MemoryType;
  using Stage = typename Memory::Stage;
  using Element = typename Memory::Element;
  using OwnTile = typename Memory::OwnTile;
  using StreamedTile = typename Memory::StreamedTile;

  __device__ __forceinline__ GradientRows(const AdjointArguments& in, int b,
                                          int h, int first, Memory* m)
      : in_(in), b_(b), h_(h), first_(first), m_(*m) {
    group_ = threadIdx.x % 32 / 4;
    quad_ = threadIdx.x % 4;
    own_row_ = 16 * kSteps * (threadIdx.x / 32);
    row0_ = (static_cast<int64_t>(b) * in.num_heads + h) * in.seq_len;
    segments_ = in.segments == nullptr
                    ? nullptr
                    : in.segments + static_cast<int64_t>(b) * in.seq_len;
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) row_sums_[i] = products_[i] = 0;
  }

 protected:
  static constexpr int kDim = Memory::kDim;
  static constexpr int kSteps = Memory::kSteps;
  static constexpr int kStreamed = Memory::kStreamed;
  static constexpr int kStages = Memory::kStages;
  static constexpr int kThreads = Memory::kThreads;
  static constexpr int kRows = Memory::kRows;
  static constexpr int kGroups = kStreamed / 8;

  // Own row of register pair i (step i / 2, upper or lower half of 16), in the
  // block and in the sequence.
  __device__ __forceinline__ int OwnRow(int i) const {
    return own_row_ + i / 2 * 16 + i % 2 * 8 + group_;
  }
  __device__ __forceinline__ int RowOf(int i) const {
    return first_ + OwnRow(i);
  }
  __device__ __forceinline__ int OwnEnd() const {
    return min(first_ + kRows, in_.seq_len);
  }

  __device__ __forceinline__ void ClearSums() {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums_[s][n][e] = 0;
      }
    }
  }

  template <typename TileType>
  __device__ __forceinline__ void Load(const DeviceHeads& heads, int row,
                                       char* tile) {
    CopyHeadRows<TileType, kThreads>(heads, b_, h_, row, in_.seq_len,
                                     in_.head_dim,
                                     reinterpret_cast<Element*>(tile));
  }
  __device__ __forceinline__ static const Element* Elements(const char* tile) {
    return reinterpret_cast<const Element*>(tile);
  }

  __device__ __forceinline__ void LoadScalar(const float* per_token, int row,
                                             int i, float* target) {
    const bool valid = row < in_.seq_len;
    CopyAsync4(SharedAddress(target + i), per_token + row0_ + (valid ? row : 0),
               valid);
  }

  __device__ __forceinline__ float Beta(int row) const {
    return ToFloat(
        in_.beta.Head<const Element>(b_, h_)[row * in_.beta.seq_stride]);
  }

  // Streamed rows [row, row + kStreamed) and their scalars.
  template <bool kColumnPass>
  __device__ __forceinline__ void LoadStage(int row, Stage* stage) {
    Load<StreamedTile>(kColumnPass ? in_.queries : in_.keys, row,
                       stage->scored);
    Load<StreamedTile>(kColumnPass ? in_.y : in_.x, row, stage->weighed);
    const int i = threadIdx.x;
    if (i >= kStreamed) return;
    const bool valid = row + i < in_.seq_len;
    if (kColumnPass) {
      LoadScalar(in_.minus_lse, row + i, i, stage->minus_lse);
      LoadScalar(in_.minus_delta, row + i, i, stage->minus_delta);
      if (System::IsDelta(in_))
        stage->factors[i] = valid ? Beta(row + i) : 0.0f;
    } else if (System::IsDelta(in_)) {
      stage->exponents[i] = kLog2E * in_.scale;
    } else {
      LoadScalar(in_.key_exponents, row + i, i, stage->exponents);
    }
    if (segments_ != nullptr) {
      CopyAsync4(SharedAddress(stage->segments + i),
                 segments_ + (valid ? row + i : 0), valid);
    }
  }

  // Streamed rows that some own row needs: from the first to before `end`.
  template <bool kColumnPass>
  __device__ __forceinline__ void Range(int* begin, int* end) const {
    if (kColumnPass) {
      *begin = first_;
      *end = segments_ == nullptr
                 ? in_.seq_len
                 : DocumentEnd(segments_, OwnEnd() - 1, in_.seq_len);
    } else {
      *begin = segments_ == nullptr ? 0 : DocumentBegin(segments_, first_);
      *begin = *begin / kStreamed * kStreamed;
      *end = OwnEnd();
    }
  }

  // Seen by all threads behind a barrier of the block.
  __device__ __forceinline__ void LoadOwnScalars() {
    for (int i = threadIdx.x; i < kRows; i += kThreads) {
      const int row = first_ + i;
      const bool valid = row < in_.seq_len;
      m_.column_scale[i] = in_.scale;
      if (!System::IsDelta(in_)) {
        m_.column_scale[i] = valid ? in_.column_scale[row0_ + row] : 0.0f;
      }
      m_.minus_lse[i] = valid ? in_.minus_lse[row0_ + row] : 0.0f;
      m_.minus_delta[i] = valid ? in_.minus_delta[row0_ + row] : 0.0f;
      m_.factors[i] = System::IsDelta(in_) && valid ? Beta(row) : 1.0f;
      m_.segments[i] = segments_ != nullptr && valid ? segments_[row] : -1;
    }
  }

  // d_scores of a tile in the place of its scores. Tiles on the diagonal or
  // across documents are masked; the others do not pay for it.
  template <bool kColumnPass>
  __device__ __forceinline__ void TileGradients(
      int row, const Stage& stage, bool on_diagonal, bool crosses,
      const float (&products)[kSteps][kGroups][4],
      float (*scores)[kSteps][kGroups][4]) {
    if (on_diagonal || crosses) {
      PassGradients<kColumnPass, true>(row, stage, on_diagonal, crosses,
                                       products, scores);
    } else {
      PassGradients<kColumnPass, false>(row, stage, false, false, products,
                                        scores);
    }
  }
  template <bool kColumnPass, bool kMasked>
  __device__ __forceinline__ void PassGradients(
      int row, const Stage& stage, bool on_diagonal, bool crosses,
      const float (&products)[kSteps][kGroups][4],
      float (*scores)[kSteps][kGroups][4]) {
    if constexpr (kColumnPass) {
      ColumnPassGradients<kMasked>(row, stage, on_diagonal, crosses, products,
                                   scores);
    } else {
      RowPassGradients<kMasked>(row, stage, on_diagonal, crosses, products,
                                scores);
    }
  }

  template <bool kMasked>
  __device__ __forceinline__ void ColumnPassGradients(
      int row, const Stage& stage, bool on_diagonal, bool crosses,
      const float (&products)[kSteps][kGroups][4],
      float (*scores)[kSteps][kGroups][4]) {
    float exponent[2 * kSteps];
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) {
      exponent[i] = kLog2E * m_.column_scale[OwnRow(i)];
    }
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int column = 8 * n + 2 * quad_ + side;
        const float minus_lse = stage.minus_lse[column];
        const float minus_delta = stage.minus_delta[column];
        const float minus_factor =
            System::IsDelta(in_) ? -stage.factors[column] : -1.0f;
        const int segment = kMasked && crosses ? stage.segments[column] : 0;
#pragma unroll
        for (int i = 0; i < 2 * kSteps; ++i) {
          float& score = (*scores)[i / 2][n][i % 2 * 2 + side];
          float p = Exp2(fmaf(score, exponent[i], minus_lse));
          if (kMasked && on_diagonal && row + column <= RowOf(i)) p = 0;
          if (kMasked && crosses && segment != m_.segments[OwnRow(i)]) p = 0;
          score = p * fmaf(minus_factor, products[i / 2][n][i % 2 * 2 + side],
                           minus_delta);
        }
      }
    }
  }

  // The gradients come out times the keys' exponents.
  template <bool kMasked>
  __device__ __forceinline__ void RowPassGradients(
      int row, const Stage& stage, bool on_diagonal, bool crosses,
      const float (&products)[kSteps][kGroups][4],
      float (*scores)[kSteps][kGroups][4]) {
    float minus_lse[2 * kSteps];
    float minus_delta[2 * kSteps];
    float minus_factor[2 * kSteps];
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) {
      minus_lse[i] = m_.minus_lse[OwnRow(i)];
      minus_delta[i] = m_.minus_delta[OwnRow(i)];
      minus_factor[i] = System::IsDelta(in_) ? -m_.factors[OwnRow(i)] : -1.0f;
    }
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int column = 8 * n + 2 * quad_ + side;
        const float exponent = stage.exponents[column];
        const int segment = kMasked && crosses ? stage.segments[column] : 0;
#pragma unroll
        for (int i = 0; i < 2 * kSteps; ++i) {
          float& score = (*scores)[i / 2][n][i % 2 * 2 + side];
          const float product = products[i / 2][n][i % 2 * 2 + side];
          float p = Exp2(fmaf(score, exponent, minus_lse[i]));
          if (kMasked && on_diagonal && row + column >= RowOf(i)) p = 0;
          if (kMasked && crosses && segment != m_.segments[OwnRow(i)]) p = 0;
          const float d_score =
              p * fmaf(minus_factor[i], product, minus_delta[i]);
          row_sums_[i] += d_score;
          if (System::IsDelta(in_)) {
            products_[i] = fmaf(p, product, products_[i]);
          }
          score = exponent * d_score;
        }
      }
    }
  }

  // The warp's 16 scored own rows (kSteps = 1, bf16).
  __device__ __forceinline__ void LoadOwnFragments(
      BFloat16Products::Left (&rows)[kDim / 16]) const {
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      BFloat16Products::LoadLeft<OwnTile>(Elements(m_.scored), own_row_, 16 * k,
                                          rows + k);
    }
  }

  // The scored own rows as a thread's rows of sums_ meet them: each element by
  // itself from shared memory, or all as fragments.
  class OwnRows {
   public:
    __device__ __forceinline__ explicit OwnRows(const GradientRows& rows)
        : rows_(rows) {
      if constexpr (Memory::kOwnByFragments) {
        rows.LoadOwnFragments(own_);
      }
    }
    // Columns 8 n + 2 quad and the next of row i.
    __device__ __forceinline__ float2 Pair(int i, int n) const {
      if constexpr (Memory::kOwnByFragments) {
        const uint32_t pair = own_[n / 2].x[n % 2 * 2 + i];
        return __bfloat1622float2(
            reinterpret_cast<const __nv_bfloat162&>(pair));
      } else {
        return LoadPair(
            Elements(rows_.m_.scored) +
            OwnTile::Offset(rows_.OwnRow(i), 8 * n + 2 * rows_.quad_));
      }
    }

   private:
    const GradientRows& rows_;
    BFloat16Products::Left own_[kDim / 16];
  };

  // Turns the rows of sums_ back by their positions. Column c turns with column
  // c + kDim / 2, which is in the same thread: no column is padding here. Rows
  // beyond the sequence turn by the last angles, so that no load waits for a
  // branch.
  __device__ __forceinline__ void TurnBack() {
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) {
      const float* angles =
          in_.rotary_table +
          static_cast<int64_t>(min(RowOf(i), in_.seq_len - 1)) * kDim;
#pragma unroll
      for (int n = 0; n < kDim / 16; ++n) {
        Angles<2> pair;
        pair.Load(angles, kDim / 2, 8 * n + 2 * quad_, -1.0f);
        float* low = sums_[i / 2][n] + i % 2 * 2;
        float* high = sums_[i / 2][n + kDim / 16] + i % 2 * 2;
        pair.Turn(0, low, high);
        pair.Turn(1, low + 1, high + 1);
      }
    }
  }

  // Writes the rows of sums_ times `factor`.
  __device__ __forceinline__ void StoreSums(const DeviceHeads& heads,
                                            float factor) {
    Element* target = heads.Head<Element>(b_, h_);
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) {
      const int row = RowOf(i);
      if (row >= in_.seq_len) continue;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const float* sums = sums_[i / 2][n] + i % 2 * 2;
        StorePairBefore(target + row * heads.seq_stride, 8 * n + 2 * quad_,
                        in_.head_dim, heads.vectors, factor * sums[0],
                        factor * sums[1]);
      }
    }
  }

  // Own rows as keys are complete, but for KRR's own score: Delta's are
  // written, KRR's, times log2(e), are where the second pass's sums begin.
  __device__ __forceinline__ void FinishColumns() {
    if (System::IsDelta(in_)) {
      StoreSums(in_.d_keys, in_.scale);
      ClearSums();
      return;
    }
    const OwnRows own(*this);
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) {
      const float exponent = kLog2E * m_.column_scale[OwnRow(i)];
      float dot = 0;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        float* sums = sums_[i / 2][n] + i % 2 * 2;
        const float2 r = own.Pair(i, n);
        dot = fmaf(sums[1], r.y, fmaf(sums[0], r.x, dot));
        sums[0] *= exponent;
        sums[1] *= exponent;
      }
      dot = QuadSum(dot);
      if (quad_ == 0) m_.key_dots[OwnRow(i)] = dot;
    }
  }

  // The rows of sums_ become the gradient times log2(e); the scalars' are
  // written.
  __device__ __forceinline__ void FinishRows() {
    if (System::IsDelta(in_)) {
      StoreBetaGradients();
      return;
    }
    FinishKrrRows();
    if (in_.rotary_table != nullptr) TurnBack();
  }
  __device__ __forceinline__ void StoreBetaGradients() {
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) {
      const int row = RowOf(i);
      const float product = QuadSum(products_[i]);
      if (quad_ != 0 || row >= in_.seq_len) continue;
      in_.d_beta.Head<Element>(b_, h_)[row * in_.d_beta.seq_stride] =
          FromFloat<Element>(-product);
    }
  }
  // A row of KRR's dS sums to zero, so dS_ii is taken from the rest of the row:
  // where P is near the identity, dP_ii - delta_i has no correct digit.
  __device__ __forceinline__ void FinishKrrRows() {
    const OwnRows own(*this);
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) {
      const int row = RowOf(i);
      const float self = -QuadSum(row_sums_[i]);
      const float scale = m_.column_scale[OwnRow(i)];
      float square = 0;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const float2 r = own.Pair(i, n);
        square = fmaf(r.y, r.y, fmaf(r.x, r.x, square));
      }
      square = QuadSum(square);
      float d_column_scale = m_.key_dots[OwnRow(i)] + self * square;
      float own_factor = 2 * scale * self;
      if (in_.normalised) {
        const float inverse = rsqrtf(square + in_.norm_epsilon);
        own_factor -= d_column_scale * scale * inverse * inverse;
        d_column_scale *= inverse;
      }
      if (quad_ == 0 && row < in_.seq_len) {
        in_.d_column_scale[row0_ + row] = d_column_scale;
      }
      own_factor *= kLog2E;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        float* sums = sums_[i / 2][n] + i % 2 * 2;
        const float2 r = own.Pair(i, n);
        sums[0] = fmaf(own_factor, r.x, sums[0]);
        sums[1] = fmaf(own_factor, r.y, sums[1]);
      }
    }
  }

  const AdjointArguments& in_;
  const int b_;
  const int h_;
  const int first_;
  Memory& m_;
  int group_;
  int quad_;
  int own_row_;  // first row of the warp, in the block
  int64_t row0_;
  const int32_t* segments_;
  float row_sums_[2 * kSteps];  // of dS
  float products_[2 * kSteps];  // sum_j P_ij Y_i . X_j, for d_beta
  float sums_[kSteps][kDim / 8][4];
};

// d_log_lambda_h += -lambda sum of Y . X; one warp, in a fixed order.
__device__ __forceinline__ void AddLogLambdaGradient(const AdjointArguments& in,
                                                     int h) {
  const int num_blocks = (in.seq_len + kSolveBlock - 1) / kSolveBlock;
  const int lane = threadIdx.x % 32;
  float sum = 0;
  for (int b = 0; b < in.batch; ++b) {
    const float* partials =
        in.lambda_partials +
        static_cast<int64_t>(b * in.num_heads + h) * num_blocks;
    for (int i = lane; i < num_blocks; i += 32) sum += partials[i];
  }
  sum = WarpSum(sum);
  if (lane == 0) in.d_log_lambda[h] += -expf(in.log_lambda[h]) * sum;
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_GRADIENT_ROWS_CUH_
