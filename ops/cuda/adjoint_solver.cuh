// SPDX-License-Identifier: Apache-2.0
//
// Y = L^-T dX, the first half of adjoint.h, and what follows from it row by
// row. With D = P_jj + lambda (KRR) or 1 and g = 1 / D (KRR) or beta,
//
//   U_j + sum_{i>j} g_i P_ij U_i = dX_j,   Y = U / D,
//
// so a block of 64 rows of U needs the Y of every later block: it streams them,
// subtracts P^T (f Y), and multiplies by the inverse of its own unit
// upper-triangular block, which was made before and is kept less the identity.
//
// V and X of the rows and the diagonal of P are at hand here: so is the health
// of KRR's solve, where it is wanted (krr_health.cuh).
//
// A solved block is published by a flag in device memory (release), awaited by
// its readers (acquire). Every sum has a fixed order. The kernel, and the order
// of blocks, are in adjoint_solve.cuh.

#ifndef CUBIT_OPS_CUDA_ADJOINT_SOLVER_CUH_
#define CUBIT_OPS_CUDA_ADJOINT_SOLVER_CUH_

#include <cstdint>
#include <type_traits>

#include "ops/cuda/adjoint.h"
#include "ops/cuda/diagonal.cuh"
#include "ops/cuda/head_tile.cuh"
#include "ops/cuda/krr_health.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/products.cuh"
#include "ops/cuda/solve_queue.cuh"
#include "ops/cuda/tile.cuh"
#include "ops/cuda/unit_upper.cuh"
#include "ops/cuda/warp_products.cuh"
#include "ops/cuda/warpgroup.cuh"

namespace cubit {
namespace cuda {

constexpr int kSolveThreads = 128;

// Called by one warp: the first of the solved blocks that end in `block` (at
// most 32 back), block + 1 if it is not solved. The flag of block i is
// flags[-i * stride].
__device__ __forceinline__ int FindSolved(const uint32_t* flags, int64_t stride,
                                          uint32_t launch, int block) {
  const int mine = block - static_cast<int>(threadIdx.x % 32);
  const bool ready = mine >= 0 && LoadAcquire(flags - mine * stride) == launch;
  const uint32_t waiting = ~__ballot_sync(0xffffffffu, ready);
  return block + 1 - (waiting == 0 ? 32 : __ffs(waiting) - 1);
}
// The same once `block` is solved, by block `own`.
__device__ __forceinline__ int AwaitSolved(const uint32_t* flags,
                                           int64_t stride, uint32_t launch,
                                           int block, int own) {
  AwaitReady(flags - block * stride, launch, block - own);
  return block - own > kNearBlocks ? FindSolved(flags, stride, launch, block)
                                   : block;
}

template <typename Products, int kDim, bool kWarpgroup = false>
struct AdjointSolveMemory {
  using Element = typename Products::Element;
  using HeadTile = Tile<Element, kSolveBlock, kDim>;
  using FloatTile = Tile<float, kSolveBlock, kDim>;

  alignas(1024) char keys[HeadTile::kBytes];
  // Later the right-hand side: in fp32, or for a warpgroup in two bf16 parts,
  // one of which takes the place of dX.
  union {
    alignas(1024) char queries[2][HeadTile::kBytes];
    float rhs[kWarpgroup ? 1 : FloatTile::kBytes / 4];
  };
  // Later Y in fp32.
  union {
    alignas(1024) char y[2][HeadTile::kBytes];
    float solution[FloatTile::kBytes / 4];
  };
  alignas(16) float inverse[UnitUpperTile::kBytes / 4];
  // A warpgroup's inverse as left operands, high and low parts: of warp w those
  // of columns from 16 w on, each by the lane that reads it.
  uint4 inverse_parts[kWarpgroup ? 10 : 1][2][32];
  float lse[2][kSolveBlock];
  float factors[2][kSolveBlock];  // Delta: beta
  int segments[2][kSolveBlock];
  float g[kSolveBlock];  // g above; KRR: also 1 / D
  float dot_partials[kSolveThreads / 32];
  // Of what each thread has seen of all its items: here, because registers are
  // short and nobody else is to be waited for.
  float health[kHealthNumbers][kSolveThreads];
  int item;
  int ready;
};

// What one block of threads works on.
struct SolveItem {
  int b, h, block;
  int first;        // row
  int64_t row0;     // of [B, H, T]
  uint32_t launch;  // number of this launch
};

// kWarpgroup (bf16): the four warps multiply tiles together. kOnlyY (a
// warpgroup's, KRR): dX is fp32, and what follows from Y is left to others.
template <typename Products, int kDim, bool kWarpgroup = false,
          bool kOnlyY = false>
class AdjointSolver {
 public:
  using Memory = AdjointSolveMemory<Products, kDim, kWarpgroup>;
  using Element = typename Memory::Element;
  using HeadTile = typename Memory::HeadTile;
  using FloatTile = typename Memory::FloatTile;
  static_assert(!kOnlyY || kWarpgroup);

  __device__ __forceinline__ AdjointSolver(const AdjointArguments& in,
                                           const SolveItem& item, Memory* m)
      : in_(in), item_(item), m_(*m) {
    own_row_ = 16 * (threadIdx.x / 32);
    group_ = threadIdx.x % 32 / 4;
    quad_ = threadIdx.x % 4;
  }

  __device__ void Run() {
    LoadHeads(in_.keys, item_.first, Keys());
    LoadQueries(item_.block, 0);
    CommitCopies();
    int last = LastBlock();
    // The compiler must see that all lanes have the same blocks.
    if constexpr (kWarpgroup) last = __shfl_sync(0xffffffffu, last, 0);
    LoadQueriesOrRightHandSide(last, 1);
    if constexpr (kWarpgroup && !kOnlyY) {
      SetZero(sums_);
    } else {
      LoadRightHandSide();
    }
    CommitCopies();
    // Behind the copies, which do not wait for it.
    ReadScalars();
    if (threadIdx.x < 32) {
      const int first = FindSolved(Flag(0), NumPairs(), item_.launch, last);
      if (threadIdx.x == 0) m_.ready = first;
    }
    WaitForCopies<1>();
    ShareTiles();
    FinishScalars();
    const int ready = m_.ready;
    if (last > item_.block && last >= ready) {
      LoadHeads(in_.y, last * kSolveBlock, Y(1));
    }
    CommitCopies();
    FormInverse();
    if constexpr (kWarpgroup) KeepInverse();
    Stream(last, ready);
    if constexpr (kWarpgroup) {
      FinishWarpgroup(/*d_x_stage=*/(last - item_.block + 1) % 2);
    } else {
      Finish();
    }
  }

 private:
  static constexpr int kStride = FloatTile::kStride;

  // Behind the wait for copies: the tiles are everybody's.
  __device__ __forceinline__ static void ShareTiles() {
    if constexpr (kWarpgroup) ShowToTensorCores();
    __syncthreads();
  }

  __device__ __forceinline__ Element* Keys() {
    return reinterpret_cast<Element*>(m_.keys);
  }
  __device__ __forceinline__ Element* Queries(int stage) {
    return reinterpret_cast<Element*>(m_.queries[stage]);
  }
  __device__ __forceinline__ Element* Y(int stage) {
    return reinterpret_cast<Element*>(m_.y[stage]);
  }

  // Of the head and of the lane's rows; nothing here waits for what is read.
  __device__ __forceinline__ void ReadScalars() {
    lambda_ = in_.is_delta() ? -INFINITY : in_.log_lambda[item_.h];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = item_.first + own_row_ + group_ + 8 * half;
      const bool valid = row < in_.seq_len;
      float scale = in_.scale;
      if (!in_.is_delta()) {
        scale = valid ? in_.column_scale[item_.row0 + row] : 0.0f;
      }
      exponent_[half] = scale;
      if constexpr (!kOnlyY) {
        minus_lse_[half] = valid ? -in_.lse[item_.row0 + row] : 0.0f;
      }
      if constexpr (kWarpgroup && !kOnlyY) {
        value_scale_[half] =
            in_.is_delta() || !valid ? 1.0f : in_.value_scale[item_.row0 + row];
      }
      key_segment_[half] =
          in_.segments != nullptr && valid
              ? in_.segments[static_cast<int64_t>(item_.b) * in_.seq_len + row]
              : -1;
    }
  }

  __device__ __forceinline__ void FinishScalars() {
    lambda_ = expf(lambda_);
    exponent_[0] *= kLog2E;
    exponent_[1] *= kLog2E;
    if constexpr (!kOnlyY) StoreExponents();
  }
  // For the score gradients.
  __device__ __forceinline__ void StoreExponents() {
    if (quad_ != 0) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = item_.first + own_row_ + group_ + 8 * half;
      if (row >= in_.seq_len) continue;
      in_.minus_lse[item_.row0 + row] = kLog2E * minus_lse_[half];
      if (in_.is_delta()) continue;
      in_.key_exponents[item_.row0 + row] = exponent_[half];
    }
  }

  // Whether all rows are whole 16-byte vectors; warpgroups take no others.
  __device__ __forceinline__ static bool Vectors(const DeviceHeads& heads) {
    return kWarpgroup || heads.vectors;
  }
  __device__ __forceinline__ void LoadHeads(const DeviceHeads& heads, int row,
                                            Element* tile) {
    CopyRows<HeadTile, HeadTile::kRows, kSolveThreads>(
        tile,
        heads.Head<const Element>(item_.b, item_.h) + row * heads.seq_stride,
        heads.seq_stride, in_.seq_len - row, in_.head_dim, Vectors(heads));
  }

  // Last block with a row that sees a key of this block.
  __device__ __forceinline__ int LastBlock() const {
    int end = in_.seq_len;
    if (in_.segments != nullptr) {
      end = DocumentEnd(
          in_.segments + static_cast<int64_t>(item_.b) * in_.seq_len,
          min(item_.first + kSolveBlock, in_.seq_len) - 1, in_.seq_len);
    }
    return (end - 1) / kSolveBlock;
  }

  // Queries of a block and their scalars.
  __device__ __forceinline__ void LoadQueries(int block, int stage) {
    const int first = block * kSolveBlock;
    LoadHeads(in_.queries, first, Queries(stage));
    const int i = threadIdx.x % kSolveBlock;
    const int row = first + i;
    const bool valid = row < in_.seq_len;
    if (threadIdx.x < kSolveBlock) {
      CopyAsync4(SharedAddress(&m_.lse[stage][i]),
                 in_.lse + item_.row0 + (valid ? row : 0), valid);
      if (in_.is_delta()) {
        m_.factors[stage][i] = valid ? Beta(row) : 0.0f;
      }
    } else if (in_.segments != nullptr) {
      CopyAsync4(SharedAddress(&m_.segments[stage][i]),
                 in_.segments + static_cast<int64_t>(item_.b) * in_.seq_len +
                     (valid ? row : 0),
                 valid);
    }
  }

  __device__ __forceinline__ float Beta(int row) const {
    return ToFloat(in_.beta.Head<const Element>(
        item_.b, item_.h)[row * in_.beta.seq_stride]);
  }

  // Queries of a later block; a warpgroup has dX come behind the last of them.
  __device__ __forceinline__ void LoadQueriesOrRightHandSide(int block,
                                                             int stage) {
    if (block > item_.block) {
      LoadQueries(block, stage);
    } else if constexpr (kWarpgroup && !kOnlyY) {
      LoadHeads(in_.d_x, item_.first, Queries(stage));
    }
  }
  // sums_ = -dX.
  __device__ __forceinline__ void LoadRightHandSide() {
    using RightElement = std::conditional_t<kOnlyY, float, Element>;
    const auto* d_x = in_.d_x.Head<const RightElement>(item_.b, item_.h);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = item_.first + own_row_ + group_ + 8 * half;
      const RightElement* source = d_x + row * in_.d_x.seq_stride;
      const int end = row < in_.seq_len ? in_.head_dim : 0;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const int column = n * 8 + quad_ * 2;
        const float2 pair =
            LoadPairBefore(source, column, end, Vectors(in_.d_x));
        sums_[n][2 * half] = -pair.x;
        sums_[n][2 * half + 1] = -pair.y;
      }
    }
  }

  // weights_ = P^T on the tile of own rows (keys) and the queries of a stage.
  template <bool kDiagonal>
  __device__ __forceinline__ void Weigh(int stage, bool compare_segments) {
    MultiplyKeys(stage);
    if (compare_segments) {
      Exponentiate<kDiagonal, true>(stage);
    } else {
      Exponentiate<kDiagonal, false>(stage);
    }
  }
  template <bool kDiagonal, bool kCompareSegments>
  __device__ __forceinline__ void Exponentiate(int stage) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int query = n * 8 + quad_ * 2 + e % 2;
        const int half = e / 2;
        float p = Exp2(fmaf(weights_[n][e], exponent_[half],
                            -kLog2E * m_.lse[stage][query]));
        if (kCompareSegments &&
            m_.segments[stage][query] != key_segment_[half]) {
          p = 0;
        }
        if (kDiagonal && query < own_row_ + group_ + 8 * half) p = 0;
        weights_[n][e] = p;
      }
    }
  }

  // weights_ = own rows (keys) . queries of a stage.
  __device__ __forceinline__ void MultiplyKeys(int stage) {
    if constexpr (kWarpgroup) {
      HoldAccumulators(weights_);
      FenceProducts();
#pragma unroll
      for (int k = 0; k < kDim; k += 16) {
        MultiplyWarpgroup(weights_, RowsOperand<HeadTile>(Keys(), 0, k),
                          RowsOperand<HeadTile>(Queries(stage), 0, k), k > 0);
      }
      FinishProducts(weights_);
      return;
    }
    MultiplyTransposed<Products, HeadTile, HeadTile>(Keys(), own_row_,
                                                     Queries(stage), weights_);
  }

  template <int kCount>
  __device__ __forceinline__ static void FinishProducts(float (&c)[kCount][4]) {
    CommitProducts();
    WaitForProducts<0>();
    HoldAccumulators(c);
  }

  // Whether some query of [first, first + 64) is in another document than some
  // own key.
  __device__ __forceinline__ bool CrossesDocuments(int first) const {
    if (in_.segments == nullptr) return false;
    const int32_t* segments =
        in_.segments + static_cast<int64_t>(item_.b) * in_.seq_len;
    return segments[item_.first] !=
           segments[min(first + kSolveBlock, in_.seq_len) - 1];
  }

  // m_.inverse = (I + N)^-1, N_ji = g_i P_ij for i > j; less I but for a
  // warpgroup, which takes it away later.
  __device__ __forceinline__ void FormInverse() {
    Weigh</*kDiagonal=*/true>(/*stage=*/0, CrossesDocuments(item_.first));
    if (HoldsDiagonal()) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int key = own_row_ + group_ + 8 * half;
        float g = 0;
        if (item_.first + key < in_.seq_len) {
          g = in_.is_delta() ? m_.factors[0][key] : InverseOfDiagonal(half);
        }
        m_.g[key] = g;
      }
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int query = n * 8 + quad_ * 2 + e % 2;
        const int key = own_row_ + group_ + e / 2 * 8;
        // A padded query has g = 0, but a weight that may be infinite.
        float value = m_.g[query] == 0 ? 0 : m_.g[query] * weights_[n][e];
        if (query == key) value = 1;
        m_.inverse[key * kUnitUpperStride + query] = value;
      }
    }
    __syncthreads();
    InvertUnitUpper(m_.inverse);
    if constexpr (kWarpgroup) return;
    // Less the identity, whose part of a product is exact without one.
    if (threadIdx.x < kSolveBlock) {
      m_.inverse[threadIdx.x * (kUnitUpperStride + 1)] = 0;
    }
    __syncthreads();
  }

  // 1 / D of the lane's upper or lower row, where HoldsDiagonal().
  __device__ __forceinline__ float InverseOfDiagonal(int half) {
    const float p = DiagonalElement(weights_, own_row_ / 16, half);
    NoteHealth(kMinusDiagonal, -p);
    return 1.0f / (p + lambda_);
  }

  __device__ __forceinline__ void NoteHealth(HealthNumber number, float x) {
    if (kOnlyY || in_.health_parts == nullptr) return;
    float& largest = m_.health[number][threadIdx.x];
    largest = Larger(x, largest);
  }

  // sums_ += P^T (f Y) over the later blocks, the last first. Blocks from
  // `ready` on are known to be solved.
  __device__ __forceinline__ void Stream(int last, int ready) {
    bool loaded = last >= ready;  // Y of this block is on its way
    int stage = 1;
    for (int block = last; block > item_.block; --block, stage ^= 1) {
      // Everyone is done with the other stage.
      __syncthreads();
      LoadQueriesOrRightHandSide(block - 1, stage ^ 1);
      CommitCopies();
      const bool load_next = block - 1 > item_.block && block - 1 >= ready;
      if (load_next) {
        LoadHeads(in_.y, (block - 1) * kSolveBlock, Y(stage ^ 1));
      }
      CommitCopies();
      WaitForCopies<2>();
      ShareTiles();
      Weigh</*kDiagonal=*/false>(stage, CrossesDocuments(block * kSolveBlock));
      if (in_.is_delta()) MultiplyByFactors(stage);
      if (!loaded) {
        if (threadIdx.x < 32) {
          const int first = AwaitSolved(Flag(0), NumPairs(), item_.launch,
                                        block, item_.block);
          if (threadIdx.x == 0) m_.ready = first;
        }
        __syncthreads();
        ready = m_.ready;
        LoadHeads(in_.y, block * kSolveBlock, Y(stage));
        CommitCopies();
        WaitForCopies<0>();
        ShareTiles();
      }
      AddWeighted(Y(stage));
      loaded = load_next;
    }
  }

  __device__ __forceinline__ void MultiplyByFactors(int stage) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        weights_[n][e] *= m_.factors[stage][n * 8 + quad_ * 2 + e % 2];
      }
    }
  }

  __device__ __forceinline__ void AddWeighted(const Element* y) {
    if constexpr (kWarpgroup) {
      typename Products::Left a[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        a[k] = Products::FromAccumulators(weights_[2 * k], weights_[2 * k + 1]);
      }
      HoldAccumulators(sums_);
      FenceProducts();
#pragma unroll
      for (int k = 0; k < 4; ++k)
        MultiplyTileRows<HeadTile>(sums_, a[k].x, y, 16 * k, true);
      FinishProducts(sums_);
      return;
    }
    MultiplyAdd<Products, HeadTile>(weights_, y, sums_);
  }

  __device__ __forceinline__ int NumBlocks() const {
    return (in_.seq_len + kSolveBlock - 1) / kSolveBlock;
  }
  __device__ __forceinline__ int NumPairs() const {
    return in_.batch * in_.num_heads;
  }
  __device__ __forceinline__ int Pair() const {
    return item_.b * in_.num_heads + item_.h;
  }
  // Published when a block of this head is solved; the last block comes first.
  __device__ __forceinline__ uint32_t* Flag(int block) const {
    return in_.queue->ready +
           static_cast<int64_t>(NumBlocks() - 1 - block) * NumPairs() + Pair();
  }

  // Stores an accumulator of all own rows, times factor(row in block).
  template <typename Factor>
  __device__ __forceinline__ void StoreSums(const Factor& factor,
                                            float* target) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = own_row_ + group_ + 8 * half;
      const float f = factor(row);
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        *reinterpret_cast<float2*>(target + row * kStride + n * 8 + quad_ * 2) =
            make_float2(f * sums_[n][2 * half], f * sums_[n][2 * half + 1]);
      }
    }
  }

  // sums_ becomes the right-hand side.
  __device__ __forceinline__ void Negate() {
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums_[n][e] = -sums_[n][e];
    }
  }

  // Y = diag(1 / D) (rhs + m_.inverse rhs); publishes it; then the rows' other
  // results.
  __device__ __forceinline__ void Finish() {
    __syncthreads();  // everyone is done with the stages
    Negate();
    StoreSums([](int) { return 1.0f; }, m_.rhs);
    __syncthreads();
    MultiplyAddExactly<UnitUpperTile, FloatTile>(m_.inverse, own_row_, own_row_,
                                                 kSolveBlock, m_.rhs, sums_);
    StoreSums([this](int row) { return in_.is_delta() ? 1.0f : m_.g[row]; },
              m_.solution);
    __syncwarp();
    StoreRows(in_.y, nullptr);
    PublishReady(Flag(item_.block), item_.launch);
    StoreRows(in_.d_v, in_.is_delta() ? nullptr : in_.value_scale + item_.row0);
    FinishDots();
  }

  // The warp's rows of the inverse less the identity as left operands: not in
  // registers, which the tiles need, until the end.
  __device__ __forceinline__ void KeepInverse() {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (16 * k < own_row_) continue;
      float c[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = own_row_ + group_ + i % 2 * 8;
        const int column = 16 * k + quad_ * 2 + i / 2 * 8;
        const float2 x = LoadPair(m_.inverse + row * kUnitUpperStride + column);
        c[i / 2][i % 2 * 2] = row == column ? 0.0f : x.x;
        c[i / 2][i % 2 * 2 + 1] = row == column + 1 ? 0.0f : x.y;
      }
      const SplitLeft a = SplitLeft::FromAccumulators(c[0], c[1]);
      uint4(&parts)[2][32] = m_.inverse_parts[PartsOfInverse(k)];
      parts[0][threadIdx.x % 32] =
          make_uint4(a.high[0], a.high[1], a.high[2], a.high[3]);
      parts[1][threadIdx.x % 32] =
          make_uint4(a.low[0], a.low[1], a.low[2], a.low[3]);
    }
  }
  __device__ __forceinline__ int PartsOfInverse(int k) const {
    const int warp = own_row_ / 16;
    return warp * (7 - warp) / 2 + k;
  }
  __device__ __forceinline__ SplitLeft LoadInverse(int k) const {
    SplitLeft a = {};
    if (16 * k < own_row_) return a;  // zeros below the diagonal
    const uint4(&parts)[2][32] = m_.inverse_parts[PartsOfInverse(k)];
    const uint4 high = parts[0][threadIdx.x % 32];
    const uint4 low = parts[1][threadIdx.x % 32];
    return {{high.x, high.y, high.z, high.w}, {low.x, low.y, low.z, low.w}};
  }

  // Finish, with as little as possible between the last Y of others and the
  // flag: the right-hand side in two bf16 parts, twelve products a panel. V and
  // X of the rows come meanwhile. dX is in a stage of the queries, where a lane
  // overwrites what it alone has read.
  __device__ __forceinline__ void FinishWarpgroup(int d_x_stage) {
    SplitLeft inverse[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) inverse[k] = LoadInverse(k);
    WaitForCopies<0>();  // dX, where nothing was streamed
    __syncthreads();     // everyone is done with the stages
    if constexpr (!kOnlyY) {
      LoadHeads(in_.v, item_.first, Y(0));
      LoadHeads(in_.x, item_.first, Y(1));
      CommitCopies();
    }
    const Element* d_x = Queries(d_x_stage);
    Element* high = Queries(0);
    Element* low = Queries(1);
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int offset =
            HeadTile::Offset(own_row_ + group_ + 8 * half, 8 * n + 2 * quad_);
        float2 target = make_float2(0, 0);  // kOnlyY: in the sums
        if constexpr (!kOnlyY) target = LoadPair(d_x + offset);
        float* sums = sums_[n] + 2 * half;
        sums[0] = target.x - sums[0];
        sums[1] = target.y - sums[1];
        const SplitPair pair = Split(sums[0], sums[1]);
        *reinterpret_cast<uint32_t*>(high + offset) = pair.high;
        *reinterpret_cast<uint32_t*>(low + offset) = pair.low;
      }
    }
    ShareTiles();
    HoldAccumulators(sums_);
    FenceProducts();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      MultiplyTileRows<HeadTile>(sums_, inverse[k].low, high, 16 * k, true);
      MultiplyTileRows<HeadTile>(sums_, inverse[k].high, low, 16 * k, true);
      MultiplyTileRows<HeadTile>(sums_, inverse[k].high, high, 16 * k, true);
    }
    FinishProducts(sums_);
    DivideByDiagonal();
    constexpr float kOnes[2] = {1, 1};
    WriteSums(in_.y, kOnes);
    PublishReady(Flag(item_.block), item_.launch);
    if constexpr (kOnlyY) return;
    WriteSums(in_.d_v, value_scale_);
    WaitForCopies<0>();
    __syncthreads();
    FinishDotsWarpgroup();
    if (in_.d_v_sums != nullptr) StoreColumnSums();
  }

  // Y = U / D.
  __device__ __forceinline__ void DivideByDiagonal() {
    if (in_.is_delta()) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float g = m_.g[own_row_ + group_ + 8 * half];
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        sums_[n][2 * half] *= g;
        sums_[n][2 * half + 1] *= g;
      }
    }
  }

  // sums_ of a warpgroup, times `scales` of the lane's rows, to memory in whole
  // vectors, by way of the keys' tile.
  __device__ __forceinline__ void WriteSums(const DeviceHeads& heads,
                                            const float (&scales)[2]) {
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* sums = sums_[n] + 2 * half;
        StorePair(Keys() + HeadTile::Offset(own_row_ + group_ + 8 * half,
                                            8 * n + 2 * quad_),
                  scales[half] * sums[0], scales[half] * sums[1]);
      }
    }
    StoreWarpRows<HeadTile>(Keys(), own_row_, heads, item_.b, item_.h,
                            item_.first, in_.seq_len, in_.head_dim);
    __syncwarp();
  }

  // Rows of m_.solution of the own warp, times `scales` (null: 1), to memory.
  __device__ __forceinline__ void StoreRows(const DeviceHeads& heads,
                                            const float* scales) {
    Element* target = heads.Head<Element>(item_.b, item_.h);
#pragma unroll 4
    for (int i = 0; i < 16; ++i) {
      const int row = item_.first + own_row_ + i;
      if (row >= in_.seq_len) break;
      const float scale = scales == nullptr ? 1.0f : scales[row];
      for (int c = threadIdx.x % 32; c < in_.head_dim; c += 32) {
        target[row * heads.seq_stride + c] = FromFloat<Element>(
            scale * m_.solution[(own_row_ + i) * kStride + c]);
      }
    }
  }

  __device__ __forceinline__ void FinishDots();
  __device__ __forceinline__ void FinishDotsWarpgroup();
  __device__ __forceinline__ void StoreDots(int row, float value_scale,
                                            float y_dot_v, float y_dot_x);
  __device__ __forceinline__ void StoreLambdaPartial(float y_dot_x_of_warp);
  __device__ __forceinline__ void WeighRows();
  __device__ __forceinline__ void StoreColumnSums();

  const AdjointArguments& in_;
  const SolveItem item_;
  Memory& m_;
  int own_row_;  // first row of the warp, in the block
  int group_;
  int quad_;
  float lambda_;
  float exponent_[2];
  float minus_lse_[2];    // of the lane's rows as queries
  float value_scale_[2];  // of a warpgroup; Delta: 1
  int key_segment_[2];
  float weights_[8][4];
  float sums_[kDim / 8][4];
};

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_ADJOINT_SOLVER_CUH_
