// SPDX-License-Identifier: Apache-2.0
//
// Tensor-core products and asynchronous copies of sm_80 and newer, one function
// per instruction (PTX ISA, sections "mma" and "ldmatrix"). Fragments are those
// of the instruction: with lane = threadIdx.x % 32, group = lane / 4, quad =
// lane % 4,
//   accumulator 16 x 8: c[0], c[1] at row group, columns 2 quad, 2 quad + 1;
//                       c[2], c[3] at row group + 8.

#ifndef CUBIT_OPS_CUDA_MMA_CUH_
#define CUBIT_OPS_CUDA_MMA_CUH_

#include <cstdint>

#include <cuda_bf16.h>

namespace cubit {
namespace cuda {

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Two floats as bf16, the first in the low half.
__device__ __forceinline__ uint32_t PackBFloat16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

// Four 8 x 8 matrices of 2-byte elements; lane l gives the row address of row
// l % 8 of matrix l / 8.
__device__ __forceinline__ void LoadMatrix4(uint32_t address,
                                            uint32_t (&r)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}
__device__ __forceinline__ void LoadMatrix4Transposed(uint32_t address,
                                                      uint32_t (&r)[4]) {
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
      : "r"(address));
}

// The inverse of LoadMatrix4; sm_90 and newer.
__device__ __forceinline__ void StoreMatrix4(uint32_t address,
                                             const uint32_t (&r)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};\n" ::"r"(
          address),
      "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
      : "memory");
#endif
}

// c += a b: bf16 operands, fp32 sums. a 16 x 16 by rows, b 16 x 8 by columns.
__device__ __forceinline__ void MmaBFloat16(float (&c)[4],
                                            const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c += a b: tf32 operands. a 16 x 8 by rows, b 8 x 8 by columns.
__device__ __forceinline__ void MmaTFloat32(float (&c)[4],
                                            const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// `x` rounded to tf32, as its bits.
__device__ __forceinline__ uint32_t RoundToTFloat32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(x));
  return bits;
}

// Copies 16 bytes to shared memory in the background; zeros if !valid (the
// source is then not read).
__device__ __forceinline__ void CopyAsync16(uint32_t shared, const void* global,
                                            bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared),
               "l"(global), "r"(bytes));
}
// The same for 4 bytes.
__device__ __forceinline__ void CopyAsync4(uint32_t shared, const void* global,
                                           bool valid) {
  const int bytes = valid ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared),
               "l"(global), "r"(bytes));
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;\n");
}
// Waits until at most `kPending` of the committed groups are under way.
template <int kPending>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending));
}

// e^x = 2^(kLog2E x).
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// 2^x, the special-function unit's approximation (2 ulp); -inf gives 0.
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// The transpose of an 8 x 8 matrix of 2-byte elements held by the warp (lane:
// row group, columns 2 quad and 2 quad + 1): turns an accumulator, packed, into
// the b operand of the next product.
__device__ __forceinline__ uint32_t TransposeMatrix(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n"
               : "=r"(y)
               : "r"(x));
  return y;
}

// Meeting points of part of a thread block: `count` threads in all, those that
// wait and those that only report.
__device__ __forceinline__ void WaitAtBarrier(int id, int count) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(count) : "memory");
}
__device__ __forceinline__ void ReportAtBarrier(int id, int count) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(count) : "memory");
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_MMA_CUH_
