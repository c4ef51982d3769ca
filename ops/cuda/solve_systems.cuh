// SPDX-License-Identifier: Apache-2.0
//
// The systems that triangular_solve.cuh solves, KRR's and Delta's, and the
// arguments of its kernels.

#ifndef CUBIT_OPS_CUDA_SOLVE_SYSTEMS_CUH_
#define CUBIT_OPS_CUDA_SOLVE_SYSTEMS_CUH_

#include <cstdint>

#include "ops/cuda/element.cuh"

namespace cubit {
namespace cuda {

struct SolveQueue;

// Strides of a per-head view, in elements.
struct HeadStrides {
  int64_t batch;
  int64_t seq;
  int64_t head;
};

// Everything a launch needs; pointers to device memory.
struct SolveArguments {
  const void* query;  // [B, T, H, K]: r, or Delta's w
  const void* key;    // r, or Delta's k
  const void* v;
  void* x;
  HeadStrides query_strides, key_strides, v_strides, x_strides;
  const int32_t* segments;  // [B, T] or null
  float* lse;               // [B, H, T]

  const float* column_scale;  // KRR [B, H, T]
  const float* value_scale;   // KRR [B, H, T]
  const float* log_lambda;    // KRR [H]
  const void* beta;           // Delta [B, T, H, 1]
  HeadStrides beta_strides;
  float scale;  // Delta

  int num_pairs;  // B * H
  int num_heads;
  int seq_len;
  int head_dim;
  int first_row;
  int first_block;
  int num_items;
  bool aligned;  // all rows begin at multiples of 16 bytes
  SolveQueue* queue;

  // A solve that continues (ForwardSolver): what the rows have met before their
  // first key here, sums of exp(S - start_max) and of these times X.
  const float* start_max;   // [B, H, T]
  const double* start_sum;  // [B, H, T]
  const float* start_weighted;
  HeadStrides start_strides;
  float* kernel_x;  // P X, written where lambda > 1; null: never
  HeadStrides kernel_x_strides;
};

// What a system reads for one row, loaded long before it is used.
struct RowInput {
  float x;
  float y;
};

// Row i of the system: X_i + left sum_j E_ij X_j = right V_i.
struct RowEquation {
  float left;
  float right;
};

// (P + lambda I) X = diag(value_scale) V.
struct KrrSystem {
  static constexpr bool kStrict = false;
  static constexpr bool kQueriesAreKeys = true;

  // Is the diagonal the row's maximum (scale_h > 0)? Of any key's factor.
  __device__ static bool DiagonalIsMaximum(float score_factor) {
    return score_factor > 0;
  }
  __device__ static float ScoreFactor(const SolveArguments& in, int pair,
                                      int key) {
    return in.column_scale[static_cast<int64_t>(pair) * in.seq_len + key];
  }
  template <typename Element>
  __device__ static RowInput LoadRow(const SolveArguments& in, int pair,
                                     int row) {
    return {in.log_lambda[pair % in.num_heads],
            in.value_scale[static_cast<int64_t>(pair) * in.seq_len + row]};
  }
  __device__ static RowEquation Equation(RowInput input, float self,
                                         float sum) {
    const float left = 1.0f / (self + expf(input.x) * sum);
    return {left, left * sum * input.y};
  }
};

// (I + diag(beta) W) X = V.
struct DeltaSystem {
  static constexpr bool kStrict = true;
  static constexpr bool kQueriesAreKeys = false;

  __device__ static bool DiagonalIsMaximum(float) { return false; }
  __device__ static float ScoreFactor(const SolveArguments& in, int, int) {
    return in.scale;
  }
  template <typename Element>
  __device__ static RowInput LoadRow(const SolveArguments& in, int pair,
                                     int row) {
    const HeadStrides& strides = in.beta_strides;
    const Element* beta = static_cast<const Element*>(in.beta);
    return {
        ToFloat(beta[(pair / in.num_heads) * strides.batch + row * strides.seq +
                     (pair % in.num_heads) * strides.head]),
        0.0f};
  }
  __device__ static RowEquation Equation(RowInput input, float, float sum) {
    // The first row of a document sees no key: X = V.
    return {sum == 0.0f ? 0.0f : input.x / sum, 1.0f};
  }
};

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_SOLVE_SYSTEMS_CUH_
