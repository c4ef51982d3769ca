// SPDX-License-Identifier: Apache-2.0
//
// The backward of both triangular solves (krr.h, delta_solve.h) as one
// computation. Forward, per head, with rows i of queries and columns j of keys:
//
//   S_ij = (a_i . b_j) column_scale_j,   P = exp(S - lse_i) over visible j
//   L = P + lambda I (KRR, a = b = r) or I + diag(beta) P (Delta, strict P)
//   L X = diag(value_scale) V (KRR) or V (Delta)
//
// Backward: Y = L^-T dX (adjoint_solve.cuh), then with f = 1 or beta
//
//   dS_ij = P_ij (-f_i Y_i . X_j - delta_i)
//   delta_i = -Y_i . (value_scale_i V_i - lambda X_i) or -Y_i . (V_i - X_i)
//   da_i = sum_j dS_ij column_scale_j b_j,  db_j = column_scale_j sum_i dS_ij
//   a_i                                     (score_gradients.cuh)

#ifndef CUBIT_OPS_CUDA_ADJOINT_H_
#define CUBIT_OPS_CUDA_ADJOINT_H_

#include <cstdint>

#include <cuda_runtime.h>

namespace cubit {
namespace cuda {

struct SolveQueue;

// Rows of Y that are solved at once.
constexpr int kSolveBlock = 64;

// [B, T, H, K] in device memory.
struct DeviceHeads {
  void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t seq_stride = 0;
  int64_t head_stride = 0;
  bool vectors = false;  // every row is whole 16-byte vectors

  template <typename Element>
  __device__ __forceinline__ Element* Head(int b, int h) const {
    return static_cast<Element*>(data) + b * batch_stride + h * head_stride;
  }
};

struct AdjointArguments {
  int batch = 0;
  int num_heads = 0;
  int seq_len = 0;
  int head_dim = 0;

  DeviceHeads queries, keys, v, x, d_x, y;
  DeviceHeads d_queries;  // KRR: d_r, the sum of both parts
  DeviceHeads d_keys;     // Delta
  DeviceHeads d_v;
  const int32_t* segments = nullptr;  // [B, T] or null
  const float* lse = nullptr;         // [B, H, T]

  // KRR: [B, H, T], [H]; null for Delta.
  const float* column_scale = nullptr;
  const float* value_scale = nullptr;
  const float* log_lambda = nullptr;
  float* d_column_scale = nullptr;
  float* d_value_scale = nullptr;
  float* d_log_lambda = nullptr;
  // KRR: what d_queries goes through at the end (KrrBefore in krr.h).
  bool normalised = false;
  float norm_epsilon = 0;
  // [T, K], head dims of kernels alone; null: no rotation.
  const float* rotary_table = nullptr;
  // KRR: the health of the solve (KrrHealth in krr.h), [3]; null: not wanted.
  float* health = nullptr;

  // The sums of d_v over B and T are added, [H, K]; null: not wanted.
  float* d_v_sums = nullptr;

  // Delta.
  float scale = 0;  // of every score
  DeviceHeads beta, d_beta;

  // Work space.
  float* minus_delta = nullptr;  // [B, H, T]
  // Times log2(e), [B, H, T]: -lse, and KRR's column scales.
  float* minus_lse = nullptr;
  float* key_exponents = nullptr;
  float* factors = nullptr;          // Delta: beta, [B, H, T]
  float* lambda_partials = nullptr;  // [B, H, blocks]: sums of Y . X
  // Of every thread block (krr_health.cuh); null where `health` is.
  float* health_parts = nullptr;
  // [B, blocks, H, K]: sums of d_v over the rows of a block; null where they
  // are not wanted.
  float* sum_parts = nullptr;
  SolveQueue* queue = nullptr;

  __device__ __forceinline__ float* VSumPart(int b, int h, int block) const {
    const int num_blocks = (seq_len + kSolveBlock - 1) / kSolveBlock;
    const int64_t part = b * num_blocks + block;
    return sum_parts + (part * num_heads + h) * head_dim;
  }
  __host__ __device__ bool is_delta() const { return column_scale == nullptr; }
};

// Head dims that kernels are made for. Others are padded with zeros to the
// next, and then no thread has both elements that a rotation turns.
constexpr bool IsHeadDimOfKernels(int64_t head_dim) {
  return head_dim == 32 || head_dim == 64 || head_dim == 80 || head_dim == 128;
}

// fp32 tensors by BF16x3 or TF32 products, bf16 tensors; head_dim <= 128.
void AdjointBFloat16(const AdjointArguments& in, cudaStream_t stream);
void AdjointBFloat16x3(const AdjointArguments& in, cudaStream_t stream);
void AdjointTFloat32(const AdjointArguments& in, cudaStream_t stream);
// bf16 tensors by warpgroups (solve_engines.h), with the parts of sums that are
// wanted, which the others do not make. False, and nothing is done, for
// what they do not serve: other head dims than 33 to 64 and 81 to 128, sequence
// lengths that are no multiple of 4, tensors off 16-byte boundaries.
bool AdjointWarpgroup(const AdjointArguments& in, cudaStream_t stream);

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_ADJOINT_H_
