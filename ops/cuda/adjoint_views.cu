// SPDX-License-Identifier: Apache-2.0

#include <cstdint>

#include "ops/cuda/adjoint_views.h"
#include "ops/cuda/column_sums.cuh"
#include "ops/cuda/krr_health.cuh"
#include "ops/cuda/solve_engines.h"
#include "ops/cuda/solve_queue.cuh"
#include "runtime/check.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace cuda {
namespace {

void AddSumParts(const AdjointArguments& in, Stream& stream) {
  const int num_blocks = (in.seq_len + kSolveBlock - 1) / kSolveBlock;
  AddPartialSums(in.sum_parts, in.batch * num_blocks,
                 in.num_heads * in.head_dim, SumTargets<1>{{in.d_v_sums}},
                 stream);
}

}  // namespace

DeviceHeads HeadsOnDevice(const ConstHeadTensor& x, const char* name,
                          const ConstHeadTensor& like, int64_t head_dim) {
  CUBIT_CHECK(x.dtype == like.dtype)
      << name << ": dtype " << Name(x.dtype) << ", wanted " << Name(like.dtype);
  CUBIT_CHECK(x.batch == like.batch && x.seq_len == like.seq_len &&
              x.num_heads == like.num_heads && x.head_dim == head_dim)
      << name << ": got " << x.batch << ", " << x.seq_len << ", " << x.num_heads
      << ", " << x.head_dim << ", wanted " << like.batch << ", " << like.seq_len
      << ", " << like.num_heads << ", " << head_dim;
  const int64_t size = SizeOf(x.dtype);
  const auto whole = [size](int64_t n) { return n * size % 16 == 0; };
  DeviceHeads heads;
  // The kernels write through the views of outputs alone.
  heads.data = const_cast<void*>(x.data);
  heads.batch_stride = x.batch_stride;
  heads.seq_stride = x.seq_stride;
  heads.head_stride = x.head_stride;
  heads.vectors = reinterpret_cast<uintptr_t>(x.data) % 16 == 0 &&
                  whole(x.batch_stride) && whole(x.seq_stride) &&
                  whole(x.head_stride) && whole(x.head_dim);
  return heads;
}

bool RunAdjoint(AdjointArguments in, const ConstHeadTensor& queries,
                const AttentionMask& mask, SolvePrecision precision,
                const ConstTensor& lse, Stream& stream) {
  CUBIT_CHECK(mask.causal)
      << "the dense system of a mixer that is not causal is solved on the CPU "
         "alone: use --device=cpu";
  CUBIT_CHECK_SHAPE(lse, {queries.batch, queries.num_heads, queries.seq_len});
  if (!mask.segment_ids.empty()) {
    CUBIT_CHECK_SHAPE(mask.segment_ids, {queries.batch, queries.seq_len});
    in.segments = mask.segment_ids.data<int32_t>();
  }
  in.lse = lse.data<float>();
  in.batch = static_cast<int>(queries.batch);
  in.num_heads = static_cast<int>(queries.num_heads);
  in.seq_len = static_cast<int>(queries.seq_len);
  in.head_dim = static_cast<int>(queries.head_dim);
  const int64_t pairs = queries.batch * queries.num_heads;
  const int64_t items =
      pairs * ((queries.seq_len + kSolveBlock - 1) / kSolveBlock);
  if (items == 0) {
    CUBIT_CHECK(in.health == nullptr) << "health of no rows";
    return true;
  }
  const int64_t tokens = pairs * queries.seq_len;
  // minus_delta, minus_lse, and factors or exponents.
  const int64_t per_token = 3 * tokens;
  // No more thread blocks than items have a part.
  const int64_t parts = in.health == nullptr ? 0 : kHealthNumbers * items;
  const bool wants_sums = in.d_v_sums != nullptr;
  const int64_t sums = wants_sums ? items * queries.head_dim : 0;
  const int64_t num_floats = per_token + items + parts + sums;
  in.minus_delta = static_cast<float*>(
      CudaWorkspace(num_floats * static_cast<int64_t>(sizeof(float)), stream));
  in.minus_lse = in.minus_delta + tokens;
  (in.is_delta() ? in.factors : in.key_exponents) = in.minus_lse + tokens;
  in.lambda_partials = in.minus_delta + per_token;
  if (in.health != nullptr) in.health_parts = in.lambda_partials + items;
  if (wants_sums) in.sum_parts = in.lambda_partials + items + parts;
  in.queue = GetSolveQueue(items, stream);
  if (queries.dtype == DType::kBFloat16) {
    if (GetSolveEngine() == SolveEngine::kWarpgroup &&
        AdjointWarpgroup(in, CudaStream(stream))) {
      if (wants_sums) AddSumParts(in, stream);
      return true;
    }
    AdjointBFloat16(in, CudaStream(stream));
    return false;
  }
  CUBIT_CHECK(queries.dtype == DType::kFloat32)
      << "dtype " << Name(queries.dtype);
  if (precision == SolvePrecision::kTFloat32) {
    AdjointTFloat32(in, CudaStream(stream));
  } else {
    AdjointBFloat16x3(in, CudaStream(stream));
  }
  return false;
}

}  // namespace cuda
}  // namespace cubit
