// SPDX-License-Identifier: Apache-2.0

#include <cstdint>

#include "ops/cuda/chunk_views.h"
#include "runtime/check.h"

namespace cubit {
namespace cuda {
namespace {

ChunkHeads HeadsOf(const ConstHeadTensor& x, const char* name,
                   const ConstHeadTensor& like, int64_t seq_len,
                   int64_t head_dim, ChunkDTypes dtypes) {
  CUBIT_CHECK(x.batch == like.batch && x.seq_len == seq_len &&
              x.num_heads == like.num_heads && x.head_dim == head_dim)
      << name << ": got " << x.batch << ", " << x.seq_len << ", " << x.num_heads
      << ", " << x.head_dim << ", wanted " << like.batch << ", " << seq_len
      << ", " << like.num_heads << ", " << head_dim;
  const bool narrow = x.dtype == DType::kBFloat16;
  CUBIT_CHECK(x.dtype == DType::kFloat32 ||
              (narrow && dtypes == ChunkDTypes::kFloat32OrBFloat16))
      << name << ": dtype " << Name(x.dtype);
  const int64_t size = SizeOf(x.dtype);
  const auto whole = [size](int64_t n) { return n * size % 16 == 0; };
  ChunkHeads heads;
  // The kernels write through the views of outputs alone.
  heads.data = const_cast<void*>(x.data);
  heads.batch_stride = x.batch_stride;
  heads.seq_stride = x.seq_stride;
  heads.head_stride = x.head_stride;
  heads.bfloat16 = narrow;
  heads.vectors = reinterpret_cast<uintptr_t>(x.data) % 16 == 0 &&
                  whole(x.batch_stride) && whole(x.seq_stride) &&
                  whole(x.head_stride) && whole(x.head_dim);
  return heads;
}

// Documents [B, T] of a chunk like `like`, or null.
const int32_t* SegmentsOf(const ConstTensor& segments,
                          const ConstHeadTensor& like) {
  if (segments.empty()) return nullptr;
  CUBIT_CHECK_SHAPE(segments, {like.batch, like.seq_len});
  return segments.data<int32_t>();
}

}  // namespace

ChunkHeads ChunkHeadsOf(const ConstHeadTensor& x, const char* name,
                        const ConstHeadTensor& like, ChunkDTypes dtypes) {
  return HeadsOf(x, name, like, like.seq_len, like.head_dim, dtypes);
}

ChunkHeads OtherChunkHeadsOf(const ConstHeadTensor& x, const char* name,
                             const ConstHeadTensor& like, ChunkDTypes dtypes) {
  return HeadsOf(x, name, like, x.seq_len, like.head_dim, dtypes);
}

ChunkHeads ChunkScalarsOf(const ConstHeadTensor& x, const char* name,
                          const ConstHeadTensor& like, ChunkDTypes dtypes) {
  return HeadsOf(x, name, like, like.seq_len, 1, dtypes);
}

void CheckChunkScalars(const ConstTensor& x, const char* name,
                       const ConstHeadTensor& like) {
  const Shape wanted = {like.batch, like.num_heads, like.seq_len};
  CUBIT_CHECK(x.shape() == wanted) << name << ": wanted " << wanted.ToString()
                                   << ", got " << x.shape().ToString();
}

ChunkArguments PairOfChunks(const ConstHeadTensor& a, const char* a_name,
                            const ConstHeadTensor& b, const char* b_name,
                            const ChunkMask& mask, bool strict, float scale) {
  constexpr auto kEither = ChunkDTypes::kFloat32OrBFloat16;
  ChunkArguments in;
  in.a = ChunkHeadsOf(a, a_name, a, kEither);
  in.b = OtherChunkHeadsOf(b, b_name, a, kEither);
  in.batch = static_cast<int>(a.batch);
  in.num_heads = static_cast<int>(a.num_heads);
  in.head_dim = static_cast<int>(a.head_dim);
  in.num_rows = static_cast<int>(a.seq_len);
  in.num_columns = static_cast<int>(b.seq_len);
  CUBIT_CHECK_EQ(mask.query_segments.empty(), mask.key_segments.empty());
  in.row_segments = SegmentsOf(mask.query_segments, a);
  in.column_segments = SegmentsOf(mask.key_segments, b);
  if (mask.diagonal) CUBIT_CHECK_EQ(a.seq_len, b.seq_len);
  in.diagonal = mask.diagonal;
  in.strict = strict;
  in.scale = scale;
  return in;
}

void SetChunkSums(const RowSums& sums, const ConstHeadTensor& a,
                  ChunkArguments* in) {
  CheckChunkScalars(sums.row_max, "row_max", a);
  CheckChunkScalars(sums.row_sum, "row_sum", a);
  in->weighted =
      ChunkHeadsOf(sums.weighted, "weighted", a, ChunkDTypes::kFloat32);
  in->row_max = sums.row_max.data<float>();
  in->row_sum = sums.row_sum.data<double>();
}

ChunkProducts ProductsOf(const ConstHeadTensor& a, ChunkProducts of_float32) {
  return a.dtype == DType::kBFloat16 ? ChunkProducts::kBFloat16 : of_float32;
}

}  // namespace cuda
}  // namespace cubit
