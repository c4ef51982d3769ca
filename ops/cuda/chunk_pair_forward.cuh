// SPDX-License-Identifier: Apache-2.0
//
// The forward of a pair of chunks (chunk_pair.cuh): the maxima, sums and
// weighted sums of rows go on over the columns of another chunk.

#ifndef CUBIT_OPS_CUDA_CHUNK_PAIR_FORWARD_CUH_
#define CUBIT_OPS_CUDA_CHUNK_PAIR_FORWARD_CUH_

#include "ops/cuda/chunk_arguments.h"
#include "ops/cuda/chunk_mask.h"
#include "ops/cuda/chunk_pair.cuh"
#include "ops/cuda/chunk_running_rows.cuh"
#include "ops/cuda/chunk_tiles.cuh"
#include "ops/cuda/warp_products.cuh"

namespace cubit {
namespace cuda {

template <typename Products, int kDim>
using ChunkForwardMemory =
    ChunkMemory<Products, kDim,
                sizeof(typename Products::Element) == 2 ? 64 : 32, false>;

template <typename Products, int kDim>
class ChunkForwardPass
    : public ChunkPass<ChunkForwardMemory<Products, kDim>, kDim> {
  using Base = ChunkPass<ChunkForwardMemory<Products, kDim>, kDim>;
  using Stage = typename Base::Stage;
  static constexpr int kStreamed = Base::kStreamed;

 public:
  __device__ __forceinline__ ChunkForwardPass(const ChunkArguments& in,
                                              typename Base::Memory* memory)
      : Base(in, memory) {}

  __device__ void Run() {
    if (blocks_.empty()) return;
    const ChunkArguments& in = this->in_;
    this->template Load<typename Base::OwnTile>(in.a, this->first_, in.num_rows,
                                                this->m_.scored);
    rows_.keeps_max = KeepsRowMax(in.row_scale, this->row0_);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      ranges_[half] = ColumnsOf(this->mask_, this->Own(half));
      rows_.Load(in, this->b_, this->h_, this->row0_, half, this->Own(half));
    }
    this->ForEachTile(
        blocks_.some,
        [this](int column, Stage* stage) { this->LoadColumns(column, stage); },
        [this](int column, const Stage& stage) { Compute(column, stage); });
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      rows_.Store(in, this->b_, this->h_, this->row0_, half, this->Own(half));
    }
  }

 private:
  __device__ __forceinline__ void Compute(int column, const Stage& stage) {
    float weights[kStreamed / 8][4];
    this->template Multiply</*kBoth=*/false>(stage, weights, weights);
    if (blocks_.NeedsMask(column, column + kStreamed)) {
      rows_.template Weigh<kStreamed, true>(ranges_, column, stage.scale,
                                            weights);
    } else {
      rows_.template Weigh<kStreamed, false>(ranges_, column, stage.scale,
                                             weights);
    }
    MultiplyAdd<Products, typename Base::StreamedTile>(
        weights, this->Elements(stage.weighed), rows_.weighted);
  }

  const BlockRanges blocks_ =
      ColumnsOfBlock(this->mask_, this->first_, Base::kOwnRows);
  ChunkRange ranges_[2];
  RunningRows<kDim> rows_;
};

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_CHUNK_PAIR_FORWARD_CUH_
