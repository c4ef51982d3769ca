// SPDX-License-Identifier: Apache-2.0
//
// The forward solve of a block of rows (triangular_solve.cuh), products by a
// warpgroup (`wgmma`, Hopper) in bf16: the block is inverted as a whole, before
// the last solution that it waits for has come.

#ifndef CUBIT_OPS_CUDA_WARPGROUP_FORWARD_SOLVER_CUH_
#define CUBIT_OPS_CUDA_WARPGROUP_FORWARD_SOLVER_CUH_

#include <cstdint>

#include "ops/cuda/diagonal.cuh"
#include "ops/cuda/forward_tiles.cuh"
#include "ops/cuda/lanes.cuh"
#include "ops/cuda/pairs.cuh"
#include "ops/cuda/products.cuh"
#include "ops/cuda/solve_systems.cuh"
#include "ops/cuda/unit_upper.cuh"
#include "ops/cuda/warpgroup.cuh"

namespace cubit {
namespace cuda {

template <typename System, typename ProductsType, int kDimOfHead, int kNumWarps,
          bool kContinues, bool kFewHeads>
class WarpgroupForwardSolver
    : public ForwardTiles<System, ProductsType, kDimOfHead, kNumWarps,
                          /*kWarpgroup=*/true, kContinues, kFewHeads> {
  using Base = ForwardTiles<System, ProductsType, kDimOfHead, kNumWarps, true,
                            kContinues, kFewHeads>;
  using Element = typename Base::Element;
  using Left = typename Base::Left;
  using Scores = typename Base::Scores;
  using KeyTile = typename Base::KeyTile;
  using BlockTile = typename Base::BlockTile;
  static constexpr int kDim = Base::kDim;
  static constexpr int kKeys = Base::kKeys;

 protected:
  __device__ WarpgroupForwardSolver(const SolveArguments& in,
                                    typename Base::Shared* shared)
      : Base(in, shared) {}

  // Phases 1 to 3 of an item.
  __device__ void SolveItem() {
    StreamAhead();
    if constexpr (kContinues) {
      if (KeepsKernelX()) {
        // Of the keys before the block.
        ForEachOfKernelX(
            [](int, float2* target, float2 sums) { *target = sums; });
      }
    }
    SolveBlock();
    if constexpr (kContinues) {
      if (KeepsKernelX()) FinishKernelX();
    }
  }

 private:
  // Phases 1 and 2. What the next block of rows waits for comes
  // last: the block's own tile and its inverse need all scores but no X, so the
  // solution of the block before is awaited behind them. Where heads are few,
  // so is the one before that: or two blocks of a head would wait for each
  // other's inverses.
  __device__ void StreamAhead() {
    const int last = this->diagonal_tile_ - 1;
    const int before = last - 1;
    const bool has_last = this->first_tile_ <= last;
    const bool keeps = kFewHeads && this->first_tile_ <= before;
    this->StreamTiles(kFewHeads ? before : last);
    const bool before_is_ready = keeps && this->IsReady(before);
    if (keeps) {
      WaitForCopies<2>();
      this->ShareTiles();
      this->CopyKeys(last);
      if (before_is_ready) this->CopyX(before);
      CommitCopies();
      Left e[kKeys / 16];
      WeighTile(before, e);
      Keep(e);
      CommitCopies();
    }
    const bool last_is_ready = has_last && this->IsReady(last);
    Left e[kKeys / 16];
    if (has_last) {
      WaitForCopies<2>();
      this->ShareTiles();
      CopyOwnKeys();
      if (last_is_ready) this->CopyX(last);
      CommitCopies();
      WeighTile(last, e);
    } else {
      CommitCopies();
    }
    WaitForCopies<1>();
    this->ShareTiles();
    FactorBlock();
    if (keeps) {
      // All warps: they need not have seen the same flags.
      if (!before_is_ready) this->CopyX(before);
      CommitCopies();
      WaitForCopies<0>();
      this->ShareTiles();
      AccumulateKept(this->X(before % 2));
    }
    if (has_last && !last_is_ready) this->CopyX(last);
    CommitCopies();
    WaitForCopies<0>();
    this->ShareTiles();
    if (has_last) this->Accumulate(this->X(last % 2), e);
  }
  // e = E of a tile.
  __device__ void WeighTile(int tile, Left (&e)[kKeys / 16]) {
    Scores s;
    this->ComputeScores(tile, s);
    this->Exponentiate(tile, s);
    this->Pack(s, e);
  }
  // E of a tile until its X is there: not in registers, which the inverse
  // needs.
  __device__ void Keep(const Left (&e)[kKeys / 16]) {
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      this->shared_.kept[k][threadIdx.x] =
          make_uint4(e[k].x[0], e[k].x[1], e[k].x[2], e[k].x[3]);
    }
  }
  __device__ void AccumulateKept(const Element* x) {
    Left e[kKeys / 16];
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      const uint4 kept = this->shared_.kept[k][threadIdx.x];
      e[k] = {{kept.x, kept.y, kept.z, kept.w}};
    }
    this->Accumulate(x, e);
  }

  // The keys of the block's own rows; KRR has them already as queries.
  __device__ void CopyOwnKeys() {
    if constexpr (System::kQueriesAreKeys) {
      this->ShareColumns(this->diagonal_tile_);
      CommitCopies();
    } else {
      this->CopyKeys(this->diagonal_tile_);
    }
  }

  // Exponentiate for the block's own tile where all rows are of one document:
  // rows and columns are compared within the block.
  __device__ void ExponentiateOwnTile(Scores& s) {
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      const float2 factor =
          LoadPair(this->shared_.factor[this->diagonal_tile_ % 2] + n * 8 +
                   this->quad_ * 2);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = n * 8 + this->quad_ * 2 + i % 2;
        const int row = this->warp_ * 16 + this->group_ + i / 2 * 8;
        const float e = Exp2(fmaf(s[n][i], i % 2 == 0 ? factor.x : factor.y,
                                  -this->maximum_[i / 2]));
        s[n][i] = (System::kStrict ? column < row : column <= row) ? e : 0.0f;
        this->sum_[i / 2] += s[n][i];
      }
    }
  }

  // Phase 2: the inverse of the whole block, D = I + g E, less
  // the identity, in registers. Transposed D is unit upper-triangular.
  __device__ void FactorBlock() {
    Scores e;
    this->ComputeScores(System::kQueriesAreKeys
                            ? this->Queries()
                            : this->Keys(this->diagonal_tile_ % 2),
                        e);
    if (this->segments_ == nullptr) {
      ExponentiateOwnTile(e);
    } else {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        this->ExponentiateColumns(this->diagonal_tile_, n, true, e[n]);
      }
    }
    FindSelf(e);
    this->MakeEquations();
    if (!System::kQueriesAreKeys)
      __syncthreads();  // all are done with the keys
    float* inverse = this->shared_.block_inverse;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = n * 8 + this->quad_ * 2 + i % 2;
        const int row = this->warp_ * 16 + this->group_ + i / 2 * 8;
        const float left = this->equation_[i / 2].left;
        // A row without an equation has left = 0, but may have infinite E.
        float value = left == 0 || column > row ? 0.0f : left * e[n][i];
        if (column == row) value = 1.0f;
        inverse[column * kUnitUpperStride + row] = value;
      }
    }
    __syncthreads();
    InvertUnitUpper(inverse);
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      float c[2][4];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int column = 16 * k + this->quad_ * 2 + i % 2 + i / 4 * 8;
        const int row = this->warp_ * 16 + this->group_ + i / 2 % 2 * 8;
        c[i / 4][i % 4] =
            column == row ? 0.0f : inverse[column * kUnitUpperStride + row];
      }
      block_inverse_[k] = SplitLeft::FromAccumulators(c[0], c[1]);
    }
  }

  // E_ii, from the block's own tile.
  __device__ void FindSelf(const Scores& e) {
    if (!HoldsDiagonal()) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      this->TakeSelf(half, DiagonalElement(e, this->warp_, half));
    }
  }

  // Phase 3: X = b + (D^-1 - I) b with b = h V - g acc, operands
  // in two bf16 parts.
  __device__ void SolveBlock() {
    static_assert(KeyTile::kBytes == BlockTile::kBytes,
                  "the right-hand side takes the keys' place");
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 v = LoadPair(this->RightHandSide(n, half));
        const RowEquation& q = this->equation_[half];
        float* b = this->acc_[n] + 2 * half;
        b[0] = q.right * v.x - q.left * b[0];
        b[1] = q.right * v.y - q.left * b[1];
        const SplitPair parts = Split(b[0], b[1]);
        const int offset =
            BlockTile::Offset(this->warp_ * 16 + this->group_ + half * 8,
                              n * 8 + this->quad_ * 2);
        *reinterpret_cast<uint32_t*>(this->Keys(0) + offset) = parts.high;
        *reinterpret_cast<uint32_t*>(this->Keys(1) + offset) = parts.low;
      }
    }
    this->ShareTiles();
    HoldAccumulators(this->acc_);
    FenceProducts();
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      const SplitLeft& a = block_inverse_[k];
      MultiplyTileRows<KeyTile>(this->acc_, a.low, this->Keys(0), 16 * k, true);
      MultiplyTileRows<KeyTile>(this->acc_, a.high, this->Keys(1), 16 * k,
                                true);
      MultiplyTileRows<KeyTile>(this->acc_, a.high, this->Keys(0), 16 * k,
                                true);
    }
    CommitProducts();
    WaitForProducts<0>();
    HoldAccumulators(this->acc_);
    // A lane overwrites what it alone has read.
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        StorePair(this->RightHandSide(n, half), this->acc_[n][2 * half],
                  this->acc_[n][2 * half + 1]);
      }
    }
    __syncwarp();
    this->WriteRows();
  }

  // P X = value_scale V - lambda X has no correct digit for a large lambda: an
  // experiment, which may take its time.
  __device__ bool KeepsKernelX() const {
    return this->in_.kernel_x != nullptr && this->row_input_[0].x > 0;
  }
  // body(half, pair of kernel_x, the same of acc_) for the lane's.
  template <typename Body>
  __device__ void ForEachOfKernelX(const Body& body) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (this->Row(half) >= this->in_.seq_len) continue;
      float* target = this->in_.kernel_x +
                      this->HeadOffset(this->in_.kernel_x_strides) +
                      this->Row(half) * this->in_.kernel_x_strides.seq;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const int column = n * 8 + this->quad_ * 2;
        if (column >= this->in_.head_dim) continue;
        body(half, reinterpret_cast<float2*>(target + column),
             make_float2(this->acc_[n][2 * half], this->acc_[n][2 * half + 1]));
      }
    }
  }
  // Adds the block's own keys, whose X are in its tile, and divides.
  __device__ void FinishKernelX() {
    const float inverse[2] = {1.0f / QuadSum(this->sum_[0]),
                              1.0f / QuadSum(this->sum_[1])};
    Scores e;
    this->ComputeScores(this->Queries(), e);
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      this->ExponentiateColumns(this->diagonal_tile_, n, true, e[n]);
    }
    this->ClearSums();
    this->ShareTiles();
    this->Accumulate(this->Block(), e);
    ForEachOfKernelX([&inverse](int half, float2* target, float2 sums) {
      *target = make_float2((target->x + sums.x) * inverse[half],
                            (target->y + sums.y) * inverse[half]);
    });
  }

  SplitLeft block_inverse_[kKeys / 16];
};

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_WARPGROUP_FORWARD_SOLVER_CUH_
