// SPDX-License-Identifier: Apache-2.0
//
// Copies to shared memory by the copy engine of sm_90 (PTX ISA,
// "cp.async.bulk"): one thread starts them, a PhaseBarrier counts their bytes.
// Rows of a head come as tiles in the swizzle of tile.cuh, zeros beyond the
// sequence and the head dim (tensor_map.cuh).

#ifndef CUBIT_OPS_CUDA_BULK_COPY_CUH_
#define CUBIT_OPS_CUDA_BULK_COPY_CUH_

#include <cstdint>

#include "ops/cuda/mma.cuh"
#include "ops/cuda/tensor_map.cuh"
#include "ops/cuda/warpgroup.cuh"

namespace cubit {
namespace cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// What InitBarrier wrote is seen by the copy engine; before a barrier of the
// block.
__device__ __forceinline__ void ShowBarriersToCopies() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
// Reports, and holds the phase until `bytes` more have arrived.
__device__ __forceinline__ void ReportAndExpect(PhaseBarrier* barrier,
                                                uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(
                   SharedAddress(barrier)),
               "r"(bytes)
               : "memory");
}
// Columns [column, column + 64) of rows [row, row + kRowsOfMap) of head (b, h).
__device__ __forceinline__ void BulkCopyPanel(const TensorMap& map, int column,
                                              int row, int h, int b,
                                              void* panel,
                                              PhaseBarrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::"
      "bytes [%0], [%1, {%3, %4, %5, %6}], [%2];\n" ::"r"(SharedAddress(panel)),
      "l"(&map), "r"(SharedAddress(barrier)), "r"(column), "r"(row), "r"(h),
      "r"(b)
      : "memory");
}
// `bytes` and both addresses are multiples of 16.
__device__ __forceinline__ void BulkCopyBytes(const void* source,
                                              uint32_t bytes, void* target,
                                              PhaseBarrier* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1], %2, [%3];\n" ::"r"(SharedAddress(target)),
      "l"(source), "r"(bytes), "r"(SharedAddress(barrier))
      : "memory");
}

#else

__device__ __forceinline__ void ShowBarriersToCopies() {}
__device__ __forceinline__ void ReportAndExpect(PhaseBarrier*, uint32_t) {}
__device__ __forceinline__ void BulkCopyPanel(const TensorMap&, int, int, int,
                                              int, void*, PhaseBarrier*) {}
__device__ __forceinline__ void BulkCopyBytes(const void*, uint32_t, void*,
                                              PhaseBarrier*) {}

#endif

// A whole tile of a head's rows, in copies of kRowsOfMap; counts
// TileType::kBytes at the barrier.
template <typename TileType>
__device__ __forceinline__ void BulkCopyTile(const TensorMap& map, int row,
                                             int h, int b, char* tile,
                                             PhaseBarrier* barrier) {
  static_assert(TileType::kSwizzled, "panels of 64 columns");
#pragma unroll
  for (int panel = 0; panel < TileType::kDim / 64; ++panel) {
#pragma unroll
    for (int i = 0; i < TileType::kRows; i += kRowsOfMap) {
      BulkCopyPanel(map, 64 * panel, row + i, h, b,
                    tile + (panel * TileType::kRows + i) * 128, barrier);
    }
  }
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_BULK_COPY_CUH_
