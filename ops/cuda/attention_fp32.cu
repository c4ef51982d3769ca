// SPDX-License-Identifier: Apache-2.0

#include "ops/cuda/attention_launch.cuh"

namespace cubit {
namespace cuda {
namespace {

// fp32 serves comparisons with the CPU: one size for all, small enough for
// 128 columns in shared memory.
template <int kDim>
using Tiles = AttentionTiles<float, kDim, 4, 1, 32, 2>;

}  // namespace

void LaunchAttentionForward(const AttentionForwardArguments<float>& arguments,
                            int batch, cudaStream_t stream) {
  const int dim = arguments.q.head_dim;
  if (dim <= 32) {
    LaunchForwardTiles<Tiles<32>>(arguments, batch, stream);
  } else if (dim <= 64) {
    LaunchForwardTiles<Tiles<64>>(arguments, batch, stream);
  } else {
    LaunchForwardTiles<Tiles<128>>(arguments, batch, stream);
  }
}

void LaunchAttentionBackward(const AttentionBackwardArguments<float>& arguments,
                             int batch, cudaStream_t stream) {
  const int dim = arguments.q.head_dim;
  if (dim <= 32) {
    LaunchBackwardTiles<Tiles<32>, Tiles<32>>(arguments, batch, stream);
  } else if (dim <= 64) {
    LaunchBackwardTiles<Tiles<64>, Tiles<64>>(arguments, batch, stream);
  } else {
    LaunchBackwardTiles<Tiles<128>, Tiles<128>>(arguments, batch, stream);
  }
}

}  // namespace cuda
}  // namespace cubit
