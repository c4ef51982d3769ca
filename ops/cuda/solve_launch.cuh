// SPDX-License-Identifier: Apache-2.0
//
// Host side of triangular_solve.cuh: views become arguments, and the kernel is
// chosen by element type, precision and head dim.

#ifndef CUBIT_OPS_CUDA_SOLVE_LAUNCH_CUH_
#define CUBIT_OPS_CUDA_SOLVE_LAUNCH_CUH_

#include <algorithm>
#include <cstdint>

#include "ops/attention.h"
#include "ops/cuda/solve_engines.h"
#include "ops/cuda/triangular_solve.cuh"
#include "ops/solve_precision.h"
#include "runtime/check.h"
#include "runtime/cuda_check.h"
#include "runtime/tensor.h"

namespace cubit {
namespace cuda {

// Shapes of the kernel. bf16: 128 rows share each key tile, two blocks of
// threads a multiprocessor where registers allow. fp32: tiles are twice as
// large and operands are made in registers, so 64 rows.
template <typename Products, int kDim>
struct SolveShape {
  static constexpr bool kHalf = sizeof(typename Products::Element) == 2;
  static constexpr int kWarps = kHalf ? 8 : 4;
  static constexpr int kBlocksOfMultiprocessor = kHalf && kDim <= 64 ? 2 : 1;
};

inline HeadStrides StridesOf(const ConstHeadTensor& x) {
  return {x.batch_stride, x.seq_stride, x.head_stride};
}

// Whether every row of `x` begins at a multiple of 16 bytes and ends at one.
inline bool IsAligned(const ConstHeadTensor& x) {
  const int64_t size = SizeOf(x.dtype);
  const auto aligned = [size](int64_t n) { return n * size % 16 == 0; };
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 &&
         aligned(x.batch_stride) && aligned(x.seq_stride) &&
         aligned(x.head_stride) && aligned(x.head_dim);
}

// What both systems have in common.
inline SolveArguments CommonArguments(const ConstHeadTensor& query,
                                      const ConstHeadTensor& key,
                                      const ConstHeadTensor& v,
                                      const AttentionMask& mask,
                                      int64_t first_row, const HeadTensor& x,
                                      const Tensor& lse) {
  SolveArguments in = {};
  in.query = query.data;
  in.key = key.data;
  in.v = v.data;
  in.x = x.data;
  in.query_strides = StridesOf(query);
  in.key_strides = StridesOf(key);
  in.v_strides = StridesOf(v);
  in.x_strides = StridesOf(x);
  in.aligned =
      IsAligned(query) && IsAligned(key) && IsAligned(v) && IsAligned(x);
  if (!mask.segment_ids.empty()) {
    CUBIT_CHECK_SHAPE(mask.segment_ids, {query.batch, query.seq_len});
    in.segments = mask.segment_ids.data<int32_t>();
  }
  in.lse = lse.data<float>();
  in.num_pairs = static_cast<int>(query.batch * query.num_heads);
  in.num_heads = static_cast<int>(query.num_heads);
  in.seq_len = static_cast<int>(query.seq_len);
  in.head_dim = static_cast<int>(query.head_dim);
  in.first_row = static_cast<int>(first_row);
  return in;
}

template <typename Solver, int kBlocks>
void LaunchSolver(SolveArguments in, Stream& stream) {
  constexpr auto* kernel = ForwardSolveKernel<Solver, kBlocks>;
  constexpr int kSharedBytes = sizeof(typename Solver::Shared);
  static const int blocks_of_multiprocessor = [&] {
    CUBIT_CUDA_CHECK(cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
    int count = 0;
    CUBIT_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
        &count, kernel, Solver::kThreads, kSharedBytes));
    CUBIT_CHECK_GT(count, 0) << "the solve's kernel needs " << kSharedBytes
                             << " bytes of shared memory";
    return count;
  }();
  in.first_block = in.first_row / Solver::kRows;
  const int64_t num_blocks =
      (in.seq_len + Solver::kRows - 1) / Solver::kRows - in.first_block;
  const int64_t num_items = num_blocks * in.num_pairs;
  if (num_items == 0) return;
  in.num_items = static_cast<int>(num_items);
  in.queue = GetSolveQueue(num_items, stream);
  const int64_t grid =
      std::min<int64_t>(num_items, static_cast<int64_t>(NumMultiprocessors()) *
                                       blocks_of_multiprocessor);
  kernel<<<static_cast<unsigned>(grid), Solver::kThreads, kSharedBytes,
           CudaStream(stream)>>>(in);
  CUBIT_CUDA_CHECK_LAUNCH();
}

template <typename System, typename Products, int kDim>
void LaunchForDim(const SolveArguments& in, Stream& stream) {
  using Shape = SolveShape<Products, kDim>;
  LaunchSolver<ForwardSolver<System, Products, kDim, Shape::kWarps>,
               Shape::kBlocksOfMultiprocessor>(in, stream);
}

constexpr int64_t kMaxSolveHeadDim = 128;

// Head dims between these are padded with zeros.
template <typename System, typename Products>
void LaunchForProducts(const SolveArguments& in, Stream& stream) {
  if (in.head_dim <= 32) return LaunchForDim<System, Products, 32>(in, stream);
  if (in.head_dim <= 64) return LaunchForDim<System, Products, 64>(in, stream);
  if (in.head_dim <= 80) return LaunchForDim<System, Products, 80>(in, stream);
  CUBIT_CHECK(in.head_dim <= kMaxSolveHeadDim)
      << "head_dim " << in.head_dim << "; the GPU's solve takes up to 128";
  LaunchForDim<System, Products, 128>(in, stream);
}

// Instantiated in forward_bfloat16.cu, forward_bfloat16x3.cu and
// forward_tfloat32.cu, which compile at the same time.
extern template void LaunchForProducts<KrrSystem, BFloat16Products>(
    const SolveArguments&, Stream&);
extern template void LaunchForProducts<DeltaSystem, BFloat16Products>(
    const SolveArguments&, Stream&);
extern template void LaunchForProducts<KrrSystem, BFloat16x3Products>(
    const SolveArguments&, Stream&);
extern template void LaunchForProducts<DeltaSystem, BFloat16x3Products>(
    const SolveArguments&, Stream&);
extern template void LaunchForProducts<KrrSystem, TFloat32Products>(
    const SolveArguments&, Stream&);
extern template void LaunchForProducts<DeltaSystem, TFloat32Products>(
    const SolveArguments&, Stream&);

// By warpgroups (solve_engines.h), in forward_warpgroup.cu. False, and nothing
// is done, for a head dim that they do not serve and rows off 16-byte vectors.
template <typename System>
bool LaunchWarpgroupSolve(const SolveArguments& in, Stream& stream);

template <typename System>
void LaunchForwardSolve(DType dtype, SolvePrecision precision,
                        const SolveArguments& in, Stream& stream) {
  if (dtype == DType::kBFloat16) {
    if (GetSolveEngine() == SolveEngine::kWarpgroup &&
        LaunchWarpgroupSolve<System>(in, stream)) {
      return;
    }
    return LaunchForProducts<System, BFloat16Products>(in, stream);
  }
  CUBIT_CHECK(dtype == DType::kFloat32) << "dtype " << Name(dtype);
  if (precision == SolvePrecision::kTFloat32) {
    return LaunchForProducts<System, TFloat32Products>(in, stream);
  }
  LaunchForProducts<System, BFloat16x3Products>(in, stream);
}

// CHECKs that a view has these extents and this dtype; `name` for the message.
inline void CheckView(const ConstHeadTensor& x, const char* name,
                      const ConstHeadTensor& like, int64_t head_dim) {
  CUBIT_CHECK(x.dtype == like.dtype)
      << name << ": dtype " << Name(x.dtype) << ", wanted " << Name(like.dtype);
  CUBIT_CHECK(x.batch == like.batch && x.seq_len == like.seq_len &&
              x.num_heads == like.num_heads && x.head_dim == head_dim)
      << name << ": got " << x.batch << ", " << x.seq_len << ", " << x.num_heads
      << ", " << x.head_dim << ", wanted " << like.batch << ", " << like.seq_len
      << ", " << like.num_heads << ", " << head_dim;
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_SOLVE_LAUNCH_CUH_
