// SPDX-License-Identifier: Apache-2.0
//
// Products of a warpgroup (four warps, the first a multiple of four) on the
// tensor cores of sm_90a, which read the right operand from shared memory once
// for 64 rows (PTX ISA, "wgmma"). A warp's part of the left operand and of the
// result are fragments of mma.sync (mma.cuh) of its 16 rows, so that code on
// fragments serves both.
//
// Order of things: what threads wrote to shared memory is shown to the tensor
// cores (ShowToTensorCores) before the barrier that hands it over;
// FenceProducts once before a batch of products whose registers were touched
// since; CommitProducts behind the batch; WaitForProducts before the results,
// the left operands' registers or the tiles are touched again.

#ifndef CUBIT_OPS_CUDA_WARPGROUP_CUH_
#define CUBIT_OPS_CUDA_WARPGROUP_CUH_

#include <cstdint>

#include "ops/cuda/mma.cuh"
#include "ops/cuda/tile.cuh"

namespace cubit {
namespace cuda {

// Whether this translation unit is compiled for the architecture that has these
// instructions; elsewhere the kernels trap, and the host does not launch them.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHasWarpgroupProducts = true;
#else
constexpr bool kHasWarpgroupProducts = false;
#endif

// Shared memory at `address`, in the 128-byte swizzle of Tile: groups of eight
// rows of 128 bytes lie 1024 bytes apart. Either rows are the operand's 64 or
// more rows (or columns) and k runs along 64 columns of a panel, or k runs down
// the rows and a panel's 64 columns are the operand's columns.
__device__ __forceinline__ uint64_t SwizzledOperand(uint32_t address) {
  constexpr uint64_t kGroupStride = 1024 >> 4;
  constexpr uint64_t kSwizzle128 = 1;
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | uint64_t{1} << 16 |
         kGroupStride << 32 | kSwizzle128 << 62;
}

// The operand that begins `offset` elements behind the tile's begin: what is
// added to the tile's own is a constant, so that the products of a tile have
// one base between them.
template <typename Element>
__device__ __forceinline__ uint64_t PartOfTile(const Element* tile,
                                               int offset) {
  static_assert(sizeof(Element) == 2, "bf16");
  return SwizzledOperand(SharedAddress(tile)) +
         static_cast<uint64_t>(offset * 2 >> 4);
}

// Rows [row, row + 64) of a tile as the right operand's columns (tile^T) or as
// the left operand's rows; k is [column, column + 16). `row` is a multiple
// of 8.
template <typename TileType>
__device__ __forceinline__ uint64_t
RowsOperand(const typename TileType::Element* tile, int row, int column) {
  static_assert(TileType::kSwizzled, "wgmma reads swizzled panels");
  return PartOfTile(
      tile, (column / 64) * TileType::kRows * 64 + row * 64 + column % 64);
}
// Columns [column, column + 64) of a tile as the right operand's columns; k is
// rows [row, row + 16). `row` is a multiple of 8, `column` of 64.
template <typename TileType>
__device__ __forceinline__ uint64_t
ColumnsOperand(const typename TileType::Element* tile, int row, int column) {
  static_assert(TileType::kSwizzled, "wgmma reads swizzled panels");
  return PartOfTile(tile, (column / 64) * TileType::kRows * 64 + row * 64);
}

// Accumulators stay where they are across this line: the compiler does not see
// that products write them until they are waited for.
template <int kCount>
__device__ __forceinline__ void HoldAccumulators(float (&c)[kCount][4]) {
#pragma unroll
  for (int n = 0; n < kCount; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(c[n][i])::"memory");
  }
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ void ShowToTensorCores() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}
__device__ __forceinline__ void FenceProducts() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
__device__ __forceinline__ void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// Until at most `kPending` of the committed batches are under way.
template <int kPending>
__device__ __forceinline__ void WaitForProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending)
               : "memory");
}

#define CUBIT_ACCUMULATORS(c)                                                \
  "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), \
      "+f"(c[1][1]), "+f"(c[1][2]), "+f"(c[1][3]), "+f"(c[2][0]),            \
      "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]),            \
      "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]),            \
      "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]),            \
      "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), "+f"(c[6][0]),            \
      "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]), "+f"(c[7][0]),            \
      "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3])
#define CUBIT_ACCUMULATOR_NAMES                                            \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, "     \
  "%15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, " \
  "%29, %30, %31}"

// c (64 x 64) = a b, or c += a b if `add`: one step of k = 16. `a` in
// registers. kColumns: b is a ColumnsOperand, else a RowsOperand.
template <bool kColumns>
__device__ __forceinline__ void MultiplyWarpgroup(float (&c)[8][4],
                                                  const uint32_t (&a)[4],
                                                  uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16."
      "bf16 " CUBIT_ACCUMULATOR_NAMES
      ", {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"
      : CUBIT_ACCUMULATORS(c)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),
        "r"(static_cast<int>(add)), "n"(kColumns ? 1 : 0));
}
// The same with both operands RowsOperands.
__device__ __forceinline__ void MultiplyWarpgroup(float (&c)[8][4], uint64_t a,
                                                  uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16."
      "bf16 " CUBIT_ACCUMULATOR_NAMES ", %32, %33, p, 1, 1, 0, 0;\n}\n"
      : CUBIT_ACCUMULATORS(c)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}

#undef CUBIT_ACCUMULATORS
#undef CUBIT_ACCUMULATOR_NAMES

#else

__device__ __forceinline__ void ShowToTensorCores() {}
__device__ __forceinline__ void FenceProducts() {}
__device__ __forceinline__ void CommitProducts() {}
template <int kPending>
__device__ __forceinline__ void WaitForProducts() {}
template <bool kColumns>
__device__ __forceinline__ void MultiplyWarpgroup(float (&)[8][4],
                                                  const uint32_t (&)[4],
                                                  uint64_t, bool) {}
__device__ __forceinline__ void MultiplyWarpgroup(float (&)[8][4], uint64_t,
                                                  uint64_t, bool) {}

#endif

// c = a . rows [row, row + 16) of a tile, or += if `add`; `a` in registers, the
// tile's columns are those of c.
template <typename TileType>
__device__ __forceinline__ void MultiplyTileRows(
    float (&c)[TileType::kDim / 8][4], const uint32_t (&a)[4],
    const typename TileType::Element* tile, int row, bool add) {
#pragma unroll
  for (int panel = 0; panel < TileType::kDim / 64; ++panel) {
    MultiplyWarpgroup</*kColumns=*/true>(
        reinterpret_cast<float(&)[8][4]>(c[8 * panel]), a,
        ColumnsOperand<TileType>(tile, row, 64 * panel), add);
  }
}

// A barrier in shared memory that threads report to and wait at separately.
// Phases alternate; whoever waits says which one.
struct PhaseBarrier {
  uint64_t state;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// By one thread, before a barrier of the block. `count` reports end a phase.
__device__ __forceinline__ void InitBarrier(PhaseBarrier* barrier, int count) {
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(SharedAddress(barrier)),
      "r"(count)
      : "memory");
}
__device__ __forceinline__ void Report(PhaseBarrier* barrier) {
  asm volatile(
      "mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(SharedAddress(barrier))
      : "memory");
}
// Returns once the phase of parity `parity` (0 for the first) has ended.
__device__ __forceinline__ void AwaitPhase(PhaseBarrier* barrier,
                                           uint32_t parity) {
  uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.b32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(SharedAddress(barrier)), "r"(parity)
        : "memory");
  }
}

#else

__device__ __forceinline__ void InitBarrier(PhaseBarrier*, int) { __trap(); }
__device__ __forceinline__ void Report(PhaseBarrier*) {}
__device__ __forceinline__ void AwaitPhase(PhaseBarrier*, uint32_t) {}

#endif

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_WARPGROUP_CUH_
