// SPDX-License-Identifier: Apache-2.0
//
// gradient_rows.cuh with products of single warps (mma.sync), for tensors of
// any precision.

#ifndef CUBIT_OPS_CUDA_SCORE_GRADIENTS_CUH_
#define CUBIT_OPS_CUDA_SCORE_GRADIENTS_CUH_

#include "ops/cuda/gradient_rows.cuh"

namespace cubit {
namespace cuda {

template <typename Products, typename MemoryType>
class ScoreGradients : public GradientRows<MemoryType> {
 public:
  using GradientRows<MemoryType>::GradientRows;

  __device__ void Run() {
    this->LoadOwnScalars();
    this->ClearSums();
    Pass<true>();
    this->FinishColumns();
    __syncthreads();
    Pass<false>();
    this->FinishRows();
    this->StoreSums(in_.d_queries, kLn2);
  }

 private:
  using Base = GradientRows<MemoryType>;
  using Base::first_;
  using Base::in_;
  using Base::kDim;
  using Base::kGroups;
  using Base::kStages;
  using Base::kSteps;
  using Base::kStreamed;
  using Base::m_;
  using Base::own_row_;
  using Base::segments_;
  using Base::sums_;
  using typename Base::Element;
  using typename Base::OwnTile;
  using typename Base::Stage;
  using typename Base::StreamedTile;

  template <bool kColumnPass>
  __device__ __forceinline__ void Pass() {
    this->template Load<OwnTile>(kColumnPass ? in_.keys : in_.queries, first_,
                                 m_.scored);
    this->template Load<OwnTile>(kColumnPass ? in_.x : in_.y, first_,
                                 m_.weighed);
    int begin, end;
    this->template Range<kColumnPass>(&begin, &end);
    const int tiles = (end - begin + kStreamed - 1) / kStreamed;
#pragma unroll
    for (int t = 0; t < kStages - 1; ++t) {
      if (t < tiles) {
        this->template LoadStage<kColumnPass>(begin + t * kStreamed,
                                              m_.stages + t);
      }
      CommitCopies();
    }
    int stage = 0;
    for (int t = 0; t < tiles; ++t) {
      WaitForCopies<kStages - 2>();
      __syncthreads();
      const int next = t + kStages - 1;
      int free_stage = stage + kStages - 1;
      if (free_stage >= kStages) free_stage -= kStages;
      if (next < tiles) {
        this->template LoadStage<kColumnPass>(begin + next * kStreamed,
                                              m_.stages + free_stage);
      }
      CommitCopies();
      Tile<kColumnPass>(begin + t * kStreamed, m_.stages[stage]);
      if (++stage == kStages) stage = 0;
    }
    WaitForCopies<0>();
  }

  // sums_ += dS b or dS^T a on one tile.
  template <bool kColumnPass>
  __device__ __forceinline__ void Tile(int row, const Stage& stage) {
    const int own_first = first_ + own_row_;
    const int own_last = own_first + 16 * kSteps - 1;
    // No own row of this warp sees, or is seen from, a row of the tile.
    if (kColumnPass ? row + kStreamed - 1 <= own_first : row >= own_last) {
      return;
    }
    float scores[kSteps][kGroups][4];
    float products[kSteps][kGroups][4];
    MultiplyRows(Base::Elements(m_.scored), Base::Elements(stage.scored),
                 &scores);
    MultiplyRows(Base::Elements(m_.weighed), Base::Elements(stage.weighed),
                 &products);
    const bool on_diagonal =
        kColumnPass ? row <= own_last : row + kStreamed > own_first;
    bool crosses = false;
    if (segments_ != nullptr) {
      const int low = kColumnPass ? first_ : row;
      const int high = kColumnPass ? min(row + kStreamed, in_.seq_len) - 1
                                   : this->OwnEnd() - 1;
      crosses = segments_[low] != segments_[high];
    }
    // d_scores, in place.
    this->template TileGradients<kColumnPass>(row, stage, on_diagonal, crosses,
                                              products, &scores);
    AddProducts(scores, Base::Elements(stage.scored));
  }

  // result = own rows . streamed rows.
  __device__ __forceinline__ void MultiplyRows(
      const Element* own, const Element* streamed,
      float (*result)[kSteps][kGroups][4]) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int n = 0; n < kGroups; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) (*result)[s][n][e] = 0;
      }
    }
#pragma unroll
    for (int k = 0; k < kDim; k += 16) {
      typename Products::Left a[kSteps];
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        Products::template LoadLeft<OwnTile>(own, own_row_ + 16 * s, k, &a[s]);
      }
#pragma unroll
      for (int n = 0; n < kGroups / 2; ++n) {
        typename Products::Right b[2];
        Products::template LoadRight<StreamedTile>(streamed, 16 * n, k, b);
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          Products::Multiply((*result)[s][2 * n], a[s], b[0]);
          Products::Multiply((*result)[s][2 * n + 1], a[s], b[1]);
        }
      }
    }
  }

  __device__ __forceinline__ void AddProducts(
      const float (&weights)[kSteps][kGroups][4], const Element* streamed) {
#pragma unroll
    for (int k = 0; k < kGroups / 2; ++k) {
      typename Products::Left a[kSteps];
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        a[s] = Products::FromAccumulators(weights[s][2 * k],
                                          weights[s][2 * k + 1]);
      }
#pragma unroll
      for (int n = 0; n < kDim / 16; ++n) {
        typename Products::Right b[2];
        Products::template LoadRightDirect<StreamedTile>(streamed, 16 * k,
                                                         16 * n, b);
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          Products::Multiply(sums_[s][2 * n], a[s], b[0]);
          Products::Multiply(sums_[s][2 * n + 1], a[s], b[1]);
        }
      }
    }
  }
};

template <typename Products, typename Memory, int kBlocksPerMultiprocessor>
__global__ void __launch_bounds__(Memory::kThreads, kBlocksPerMultiprocessor)
    ScoreGradientsKernel(const __grid_constant__ AdjointArguments in) {
  extern __shared__ __align__(1024) char shared[];
  const int pair = blockIdx.y;
  const int b = pair / in.num_heads;
  const int h = pair % in.num_heads;
  if (!in.is_delta() && blockIdx.x == 0 && b == 0 && threadIdx.x < 32) {
    AddLogLambdaGradient(in, h);
  }
  ScoreGradients<Products, Memory>(in, b, h, blockIdx.x * Memory::kRows,
                                   reinterpret_cast<Memory*>(shared))
      .Run();
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_SCORE_GRADIENTS_CUH_
