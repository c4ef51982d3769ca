// SPDX-License-Identifier: Apache-2.0

#include "ops/cuda/attention_launch.cuh"

namespace cubit {
namespace cuda {
namespace {

// Columns: head dim, warps, tiles of 16 rows a warp, columns a tile, stages.
template <int kDim, int kWarps, int kMTiles, int kColumns, int kStages>
using Tiles =
    AttentionTiles<__nv_bfloat16, kDim, kWarps, kMTiles, kColumns, kStages>;

}  // namespace

void LaunchAttentionBackward(
    const AttentionBackwardArguments<__nv_bfloat16>& arguments, int batch,
    cudaStream_t stream) {
  const int dim = arguments.q.head_dim;
  if (dim <= 32) {
    LaunchBackwardTiles<Tiles<32, 4, 2, 32, 2>, Tiles<32, 4, 2, 64, 2>>(
        arguments, batch, stream);
  } else if (dim <= 64) {
    LaunchBackwardTiles<Tiles<64, 4, 1, 64, 2>, Tiles<64, 4, 1, 64, 2>>(
        arguments, batch, stream);
  } else if (dim <= 80) {
    LaunchBackwardTiles<Tiles<80, 4, 1, 64, 2>, Tiles<80, 4, 2, 32, 2>>(
        arguments, batch, stream);
  } else {
    LaunchBackwardTiles<Tiles<128, 4, 1, 64, 2>, Tiles<128, 4, 2, 32, 2>>(
        arguments, batch, stream);
  }
}

}  // namespace cuda
}  // namespace cubit
