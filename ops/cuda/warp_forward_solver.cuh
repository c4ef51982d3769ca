// SPDX-License-Identifier: Apache-2.0
//
// The forward solve of a block of rows (triangular_solve.cuh), products and
// inverses warp by warp (`mma.sync`): sm_80 and newer, all precisions, any head
// dim and alignment.

#ifndef CUBIT_OPS_CUDA_WARP_FORWARD_SOLVER_CUH_
#define CUBIT_OPS_CUDA_WARP_FORWARD_SOLVER_CUH_

#include "ops/cuda/forward_tiles.cuh"
#include "ops/cuda/lanes.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/pairs.cuh"
#include "ops/cuda/products.cuh"
#include "ops/cuda/solve_systems.cuh"

namespace cubit {
namespace cuda {

template <typename System, typename ProductsType, int kDimOfHead, int kNumWarps>
class WarpForwardSolver
    : public ForwardTiles<System, ProductsType, kDimOfHead, kNumWarps,
                          /*kWarpgroup=*/false, /*kContinues=*/false,
                          /*kFewHeads=*/false> {
  using Base = ForwardTiles<System, ProductsType, kDimOfHead, kNumWarps, false,
                            false, false>;
  using Products = typename Base::Products;
  using Left = typename Base::Left;
  using Right = typename Base::Right;
  using KeyTile = typename Base::KeyTile;
  using BlockTile = typename Base::BlockTile;
  static constexpr int kDim = Base::kDim;
  static constexpr int kWarps = Base::kWarps;
  static constexpr int kKeys = Base::kKeys;
  static constexpr int kDiagonalTiles = Base::kDiagonalTiles;
  static constexpr int kInverseStride = Base::kInverseStride;

 protected:
  __device__ WarpForwardSolver(const SolveArguments& in,
                               typename Base::Shared* shared)
      : Base(in, shared) {}

  // Phases 1 to 3 of an item.
  __device__ void SolveItem() {
    Stream();
    FactorBlock();
    SolveBlock();
  }

 private:
  // Phase 1, and the tiles of E of phase 2.
  __device__ void Stream() {
    this->StreamTiles(this->diagonal_tile_);
    ClearDiagonal();
#pragma unroll
    for (int d = 0; d < kDiagonalTiles; ++d) {
      WaitForCopies<0>();
      this->ShareTiles();
      if (d + 1 < kDiagonalTiles) this->CopyKeys(this->diagonal_tile_ + d + 1);
      KeepDiagonal(d);
    }
  }

  // Before an item: or what the last one left would stay in registers until
  // KeepDiagonal.
  __device__ void ClearDiagonal() {
#pragma unroll
    for (int t = 0; t < kWarps - 1; ++t) lower_[t] = Left();
#pragma unroll
    for (int i = 0; i < 8; ++i) own_[i / 4][i % 4] = 0;
  }

  // The warp's sub-blocks of diagonal tile `d` of E: those before its own are
  // kept as operands, its own as it is; later ones it does not see.
  __device__ void KeepDiagonal(int d) {
    const int tile = this->diagonal_tile_ + d;
#pragma unroll
    for (int p = 0; p < kKeys / 16; ++p) {
      const int t = d * (kKeys / 16) + p;
      if (t > this->warp_) continue;
      float e[2][4] = {};
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) {
        Right b[2];
        Products::template LoadRight<KeyTile>(this->Keys(tile % 2), p * 16,
                                              k * 16, b);
        Products::Multiply(e[0], this->query_[k], b[0]);
        Products::Multiply(e[1], this->query_[k], b[1]);
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        this->ExponentiateColumns(tile, 2 * p + n, true, e[n]);
      }
      if (t < kWarps - 1 && t < this->warp_) {
        lower_[t] = Products::FromAccumulators(e[0], e[1]);
      }
      if (t != this->warp_) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        own_[i / 4][i % 4] = e[i / 4][i % 4];
        const int column = (i / 4) * 8 + this->quad_ * 2 + i % 2;
        const int row = this->group_ + ((i / 2) % 2) * 8;
        if (column == row) {
          this->TakeSelf((i / 2) % 2, e[i / 4][i % 4]);
        }
      }
    }
  }

  // Phase 2: the rows' equations and the inverse of D_s.
  __device__ void FactorBlock() {
    this->MakeEquations();
    // Column j of D_s below the diagonal is row j of `inverse`.
    float* inverse = this->shared_.inverse + this->warp_ * 16 * kInverseStride;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int column = (i / 4) * 8 + this->quad_ * 2 + i % 2;
      const int row = this->group_ + ((i / 2) % 2) * 8;
      inverse[column * kInverseStride + row] =
          row > column ? own_[i / 4][i % 4] * this->equation_[(i / 2) % 2].left
                       : 0.0f;
    }
    __syncwarp();
    InvertUnitLower(inverse);
    __syncwarp();
    float c[2][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x =
          LoadPair(inverse + (this->group_ + (i % 2) * 8) * kInverseStride +
                   this->quad_ * 2 + (i / 2) * 8);
      c[i / 2][(i % 2) * 2] = x.x;
      c[i / 2][(i % 2) * 2 + 1] = x.y;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int column = (i / 4) * 8 + this->quad_ * 2 + i % 2;
      if (column == this->group_ + ((i / 2) % 2) * 8) c[i / 4][i % 4] = 0;
    }
    inverse_ = SplitLeft::FromAccumulators(c[0], c[1]);
  }

  // By one warp: `m` holds, transposed, the part below the diagonal of a
  // 16 x 16 unit lower-triangular matrix; it receives the inverse. Lane c
  // substitutes column c. (The product form (I - N)(I + N^2)(I + N^4)(I + N^8)
  // would need powers that grow to 3432 for a flat kernel and cancel.)
  __device__ static void InvertUnitLower(float* m) {
    const int column = threadIdx.x % 16;
    float y[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) y[i] = i == column ? 1.0f : 0.0f;
#pragma unroll
    for (int j = 0; j < 15; ++j) {
#pragma unroll
      for (int i = (j + 1) / 4 * 4; i < 16; i += 4) {
        const float4 n =
            *reinterpret_cast<const float4*>(m + j * kInverseStride + i);
        if (i > j) y[i] -= n.x * y[j];
        if (i + 1 > j) y[i + 1] -= n.y * y[j];
        if (i + 2 > j) y[i + 2] -= n.z * y[j];
        if (i + 3 > j) y[i + 3] -= n.w * y[j];
      }
    }
    __syncwarp();
    if (threadIdx.x % 32 >= 16) return;
#pragma unroll
    for (int i = 0; i < 16; ++i) m[i * kInverseStride + column] = y[i];
  }

  // Phase 3.
  __device__ void SolveBlock() {
#pragma unroll
    for (int s = 0; s < kWarps; ++s) {
      const int participants = 32 * (kWarps - s);
      if (this->warp_ == s) {
        SolveRows();
        if (s < kWarps - 1) ReportAtBarrier(1 + s, participants);
        __syncwarp();
        this->WriteRows();
      } else if (this->warp_ > s) {
        WaitAtBarrier(1 + s, participants);
#pragma unroll
        for (int n = 0; n < kDim / 16; ++n) {
          Right b[2];
          Products::template LoadRightDirect<BlockTile>(this->Block(), s * 16,
                                                        n * 16, b);
          Products::Multiply(this->acc_[2 * n], lower_[s], b[0]);
          Products::Multiply(this->acc_[2 * n + 1], lower_[s], b[1]);
        }
      }
    }
  }

  // The warp's 16 rows of X, in the block's tile.
  __device__ void SolveRows() {
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      float b[4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 v = LoadPair(this->RightHandSide(n, half));
        const RowEquation& e = this->equation_[half];
        b[2 * half] = e.right * v.x - e.left * this->acc_[n][2 * half];
        b[2 * half + 1] = e.right * v.y - e.left * this->acc_[n][2 * half + 1];
      }
      float x[4] = {b[0], b[1], b[2], b[3]};
      MultiplySplit(x, inverse_, b);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (this->Row(half) < this->in_.first_row)
          continue;  // known, stays as it is
        StorePair(this->RightHandSide(n, half), x[2 * half], x[2 * half + 1]);
      }
    }
  }

  Left lower_[kWarps - 1];  // sub-blocks of E before the warp's own
  float own_[2][4];         // its own
  SplitLeft inverse_;
};

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_WARP_FORWARD_SOLVER_CUH_
