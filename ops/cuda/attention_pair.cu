// SPDX-License-Identifier: Apache-2.0
//
// Attention of a pair of chunks as a whole attention of its own, by cuDNN,
// whose results are then added to what the chunks have summed: per row
//   out_pair, lse_pair -> m = max(row_max, lse_pair), and sums relative to m.

#include <algorithm>
#include <cstdint>

#include "ops/cuda/attention_engines.h"
#include "ops/cuda/chunk_arguments.h"
#include "ops/cuda/chunk_views.h"
#include "ops/cuda/memory_pass.cuh"
#include "runtime/check.h"
#include "runtime/cuda_check.h"
#include "runtime/memory.h"

namespace cubit {
namespace cuda {
namespace {

constexpr int kElements = 8;  // of a thread: 16 bytes of bf16
// Of a row, in one half of a warp; head dims go up to 128.
constexpr int kRowThreads = 16;
constexpr int kBlockRows = 16;
constexpr int kThreads = kRowThreads * kBlockRows;

using Part = Pack<__nv_bfloat16, kElements>;
struct alignas(16) Sums {
  float values[kElements];
};

struct MergeArguments {
  const __nv_bfloat16* out;  // [B, T, H, K], of the pair alone
  const float* lse;          // [B, H, T], likewise
  ChunkHeads weighted;
  float* row_max;
  double* row_sum;
  int num_heads, seq_len, head_dim;
};

// Grid (blocks of kBlockRows rows, B H).
__global__ void __launch_bounds__(kThreads)
    MergeKernel(const __grid_constant__ MergeArguments in) {
  const int row = blockIdx.x * kBlockRows + threadIdx.x / kRowThreads;
  const int column = threadIdx.x % kRowThreads * kElements;
  const int b = blockIdx.y / in.num_heads;
  const int h = blockIdx.y % in.num_heads;
  const bool valid = row < in.seq_len;
  const int64_t scalar =
      static_cast<int64_t>(blockIdx.y) * in.seq_len + (valid ? row : 0);
  const float old_max = in.row_max[scalar];
  const float lse = in.lse[scalar];
  const double sum = in.row_sum[scalar];
  __syncwarp();  // all of the row have read
  const float maximum = fmaxf(old_max, lse);
  // Of what was there, which may be nothing, and of the pair's.
  const float keep = old_max == -INFINITY ? 0.0f : __expf(old_max - maximum);
  const float add = __expf(lse - maximum);
  if (valid && column == 0) {
    in.row_max[scalar] = maximum;
    in.row_sum[scalar] =
        sum * static_cast<double>(keep) + static_cast<double>(add);
  }
  if (!valid || column >= in.head_dim) return;
  const Part part = LoadPack<__nv_bfloat16, kElements>(
      in.out +
      ((static_cast<int64_t>(b) * in.seq_len + row) * in.num_heads + h) *
          in.head_dim +
      column);
  float* target =
      in.weighted.Head<float>(b, h) + row * in.weighted.seq_stride + column;
  Sums sums = *reinterpret_cast<const Sums*>(target);
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    sums.values[i] = sums.values[i] * keep + add * ToFloat(part.values[i]);
  }
  *reinterpret_cast<Sums*>(target) = sums;
}

// `part` [B, T, H, K] is added to `sums`.
struct Addition {
  const __nv_bfloat16* part;
  ChunkHeads sums;
  int seq_len;
};
struct AddArguments {
  Addition additions[3];
  int num_heads, head_dim;
};

// Grid (blocks of kBlockRows rows, B H, additions).
__global__ void __launch_bounds__(kThreads)
    AddKernel(const __grid_constant__ AddArguments in) {
  const Addition& addition = in.additions[blockIdx.z];
  const int row = blockIdx.x * kBlockRows + threadIdx.x / kRowThreads;
  const int column = threadIdx.x % kRowThreads * kElements;
  const int b = blockIdx.y / in.num_heads;
  const int h = blockIdx.y % in.num_heads;
  if (row >= addition.seq_len || column >= in.head_dim) return;
  const Part part = LoadPack<__nv_bfloat16, kElements>(
      addition.part +
      ((static_cast<int64_t>(b) * addition.seq_len + row) * in.num_heads + h) *
          in.head_dim +
      column);
  float* target =
      addition.sums.Head<float>(b, h) + row * addition.sums.seq_stride + column;
  Sums sums = *reinterpret_cast<const Sums*>(target);
#pragma unroll
  for (int i = 0; i < kElements; ++i) sums.values[i] += ToFloat(part.values[i]);
  *reinterpret_cast<Sums*>(target) = sums;
}

dim3 GridOf(int64_t rows, const ConstHeadTensor& like, unsigned depth) {
  return dim3(static_cast<unsigned>((rows + kBlockRows - 1) / kBlockRows),
              static_cast<unsigned>(like.batch * like.num_heads), depth);
}

// Parts of pairs, one after the other in memory that the process keeps.
class PartSpace {
 public:
  PartSpace(int64_t bytes, Stream& stream)
      : next_(static_cast<char*>(GrowWorkspace(bytes, Memory(), stream))) {}

  // [B, rows, H, K] like `like`.
  HeadTensor Rows(const ConstHeadTensor& like, int64_t rows) {
    const Tensor tensor(next_, DType::kBFloat16,
                        {like.batch, rows, like.num_heads * like.head_dim});
    next_ += Aligned(tensor.size_bytes());
    return HeadsOf(tensor, 0, like.num_heads, like.head_dim);
  }
  // [B, H, T].
  Tensor Scalars(const ConstHeadTensor& like) {
    const Tensor tensor(next_, DType::kFloat32,
                        {like.batch, like.num_heads, like.seq_len});
    next_ += Aligned(tensor.size_bytes());
    return tensor;
  }
  static int64_t Aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

 private:
  static Buffer* Memory() {
    static Buffer* const buffer = new Buffer;  // outlives every stream
    return buffer;
  }

  char* next_;
};

// Whether the passes here take the sums of heads like `q`.
bool AreVectors(const HeadTensor& sums) {
  return ChunkHeadsOf(sums, "sums", sums, ChunkDTypes::kFloat32).vectors;
}

int64_t BytesOf(const ConstHeadTensor& q, const ConstHeadTensor& k) {
  return CudnnChunkBytes(q.batch, q.num_heads, q.seq_len, k.seq_len,
                         q.head_dim);
}

bool HasDocuments(const ChunkMask& mask) {
  return !mask.query_segments.empty() || !mask.key_segments.empty();
}

AttentionMask MaskOf(const ChunkMask& mask) {
  AttentionMask whole;
  whole.causal = mask.diagonal;
  return whole;
}

}  // namespace

int64_t CudnnChunkBytes(int64_t batch, int64_t num_heads, int64_t num_queries,
                        int64_t num_keys, int64_t head_dim) {
  if (CudnnAttentionBackwardBytes(batch, num_heads, num_queries, num_keys) ==
      0) {
    return 0;
  }
  const auto rows = [&](int64_t count) {
    return PartSpace::Aligned(batch * num_heads * count * head_dim *
                              SizeOf(DType::kBFloat16));
  };
  // The backward's: d_q, d_k, d_v and delta; the forward has out and lse.
  return rows(num_queries) + 2 * rows(num_keys) +
         PartSpace::Aligned(batch * num_heads * num_queries *
                            SizeOf(DType::kFloat32));
}

bool CudnnChunkForward(const ConstHeadTensor& q, const ConstHeadTensor& k,
                       const ConstHeadTensor& v, float scale,
                       const ChunkMask& mask, const RowSums& sums,
                       Stream& stream) {
  const int64_t bytes = BytesOf(q, k);
  if (bytes == 0 || HasDocuments(mask) || !AreVectors(sums.weighted)) {
    return false;
  }
  PartSpace space(bytes, stream);
  const AttentionForwardCall call = {
      q, k, v, scale, MaskOf(mask), space.Rows(q, q.seq_len), space.Scalars(q)};
  if (!CudnnAttentionForward(call, stream)) return false;
  MergeArguments in;
  in.out = static_cast<const __nv_bfloat16*>(call.out.data);
  in.lse = call.lse.data<float>();
  in.weighted =
      ChunkHeadsOf(sums.weighted, "weighted", q, ChunkDTypes::kFloat32);
  in.row_max = sums.row_max.data<float>();
  in.row_sum = sums.row_sum.data<double>();
  in.num_heads = static_cast<int>(q.num_heads);
  in.seq_len = static_cast<int>(q.seq_len);
  in.head_dim = static_cast<int>(q.head_dim);
  MergeKernel<<<GridOf(q.seq_len, q, 1), kThreads, 0, CudaStream(stream)>>>(in);
  CUBIT_CUDA_CHECK_LAUNCH();
  return true;
}

bool CudnnChunkBackward(const AttentionChunkRows& rows,
                        const ConstHeadTensor& k, const ConstHeadTensor& v,
                        float scale, const ChunkMask& mask,
                        const AttentionChunkGradients& gradients,
                        Stream& stream) {
  const ConstHeadTensor& q = rows.q;
  const int64_t bytes = BytesOf(q, k);
  if (bytes == 0 || rows.out.empty() || HasDocuments(mask)) return false;
  const HeadTensor* const sums[] = {&gradients.d_q, &gradients.d_k,
                                    &gradients.d_v};
  for (const HeadTensor* target : sums) {
    if (!AreVectors(*target)) return false;
  }
  PartSpace space(bytes, stream);
  const HeadTensor d_q = space.Rows(q, q.seq_len);
  const HeadTensor d_k = space.Rows(q, k.seq_len);
  const HeadTensor d_v = space.Rows(q, k.seq_len);
  const AttentionBackwardCall call = {
      q,  k,   v,   rows.out, rows.lse,        rows.d_out, scale, MaskOf(mask),
      {}, d_q, d_k, d_v,      space.Scalars(q)};
  if (!CudnnAttentionBackward(call, stream)) return false;
  AddArguments in;
  const HeadTensor* const parts[] = {&d_q, &d_k, &d_v};
  for (int i = 0; i < 3; ++i) {
    in.additions[i].part = static_cast<const __nv_bfloat16*>(parts[i]->data);
    in.additions[i].sums =
        ChunkHeadsOf(*sums[i], "gradients", *sums[i], ChunkDTypes::kFloat32);
    in.additions[i].seq_len = static_cast<int>(sums[i]->seq_len);
  }
  in.num_heads = static_cast<int>(q.num_heads);
  in.head_dim = static_cast<int>(q.head_dim);
  AddKernel<<<GridOf(std::max(q.seq_len, k.seq_len), q, 3), kThreads, 0,
              CudaStream(stream)>>>(in);
  CUBIT_CUDA_CHECK_LAUNCH();
  return true;
}

}  // namespace cuda
}  // namespace cubit
