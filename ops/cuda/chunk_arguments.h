// SPDX-License-Identifier: Apache-2.0
//
// Pairs of chunks (chunked_attention.h, chunked_solve.h) as one computation.
// Per head, with rows i of one chunk and columns j of another or the same:
//
//   S_ij = (a_i . b_j) c_j             c: column_scale (KRR), or `scale`
//   E_ij = exp(S_ij - row_max_i)       forward: added to running sums
//   P_ij = exp(S_ij - lse_i)           backward
//   dS_ij = P_ij (f_i y_i . x_j - delta_i)
//
//            a, b    x      y       f
//   attention q, k    v      d_out   1
//   KRR       r, r    X      Y       -1
//   Delta     w, k    X      Y       -beta_i
//
//   sums_i     += E_ij x_j             ChunkForward
//   d_values_j += f_i P_ij y_i         ChunkColumns; of the solves, the adjoint
//   d_columns_j += column_factor dS_ij a_i            ChunkColumns
//   d_rows_i   += dS_ij c_j b_j, row_sums_i += dS_ij  ChunkRows
//
// chunk_pair.cuh has these kernels, chunk_solve.cuh the solves of a chunk on
// its own diagonal; where warpgroups serve them, those of whole sequences do
// (chunk_warpgroup.h).

#ifndef CUBIT_OPS_CUDA_CHUNK_ARGUMENTS_H_
#define CUBIT_OPS_CUDA_CHUNK_ARGUMENTS_H_

#include <cstdint>

#include <cuda_runtime.h>

namespace cubit {

class Stream;

namespace cuda {

struct SolveQueue;

// [B, T, H, K] in device memory, fp32 or bf16.
struct ChunkHeads {
  void* data = nullptr;
  int64_t batch_stride = 0;  // elements
  int64_t seq_stride = 0;
  int64_t head_stride = 0;
  bool bfloat16 = false;
  bool vectors = false;  // every row is whole 16-byte vectors

  __host__ __device__ bool empty() const { return data == nullptr; }
  template <typename T>
  __device__ __forceinline__ T* Head(int b, int h) const {
    return static_cast<T*>(data) + b * batch_stride + h * head_stride;
  }
};

struct ChunkArguments {
  int batch = 0;
  int num_heads = 0;
  int head_dim = 0;
  int num_rows = 0;
  int num_columns = 0;

  ChunkHeads a, y;                        // of rows
  ChunkHeads b, x;                        // of columns
  const int32_t* row_segments = nullptr;  // [B, num_rows], both or none
  const int32_t* column_segments = nullptr;
  bool diagonal = false;
  bool strict = false;  // on the diagonal a row does not see its own column
  const float* column_scale = nullptr;  // [B, H, num_columns]; null: `scale`
  float scale = 1;

  // Forward: sums of rows, gone on with. A head whose `row_scale` [B, H,
  // num_rows] is positive keeps its row_max; null: no head does.
  const float* row_scale = nullptr;
  float* row_max = nullptr;  // [B, H, num_rows]
  double* row_sum = nullptr;
  ChunkHeads weighted;

  // Backward.
  const float* lse = nullptr;  // [B, H, num_rows]
  const float* delta = nullptr;
  ChunkHeads beta;  // absent: f = row_factor, else f_i = row_factor beta_i
  float row_factor = 1;
  float column_factor = 1;
  ChunkHeads d_values, d_columns, d_rows;  // added to, fp32
  double* row_sums = nullptr;              // [B, H, num_rows] or null
};

// One chunk's system on its own diagonal: rows and columns are the chunk.
//   forward   X_i + left_i sum_{j<i} E_ij X_j = right_i V_i - left_i weighted_i
//   adjoint   U_j + sum_{i>j} g_i P_ij U_i = g_j, Y = U / D (adjoint_solve.cuh)
struct ChunkSolveArguments {
  ChunkArguments chunk;  // a, b, masks, scales, sums, lse; x and y are written
  ChunkHeads v;          // forward
  ChunkHeads kernel_x;   // forward; may be absent
  ChunkHeads g;          // adjoint
  float* lse = nullptr;  // forward
  // KRR; null for Delta, which has `chunk.beta`.
  const float* value_scale = nullptr;  // [B, H, T]
  const float* log_lambda = nullptr;   // [H]
  SolveQueue* queue = nullptr;

  __host__ __device__ bool is_delta() const { return log_lambda == nullptr; }
};

// Rows that a block of threads owns, and rows of a solve's block.
constexpr int kChunkRows = 64;
constexpr int kChunkThreads = 128;
constexpr int kMaxChunkDim = 128;

// How operands are multiplied: a's dtype says it, and for fp32 the op: solves
// as in krr.h, attention as in attention.h.
enum class ChunkProducts { kBFloat16, kBFloat16x3, kTFloat32x3 };

void ChunkForward(ChunkProducts products, const ChunkArguments& in,
                  cudaStream_t stream);
// d_values and d_columns, whichever are there.
void ChunkColumns(ChunkProducts products, const ChunkArguments& in,
                  cudaStream_t stream);
// d_rows, and row_sums if they are there.
void ChunkRows(ChunkProducts products, const ChunkArguments& in,
               cudaStream_t stream);
// Not in kTFloat32x3.
void ChunkSolve(ChunkProducts products, const ChunkSolveArguments& in,
                Stream& stream);
void ChunkAdjointSolve(ChunkProducts products, const ChunkSolveArguments& in,
                       Stream& stream);

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_CHUNK_ARGUMENTS_H_
