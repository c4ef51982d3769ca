// SPDX-License-Identifier: Apache-2.0

#include <mutex>
#include <string>

#include "absl/strings/str_format.h"

#include "ops/attention.h"
#include "ops/cuda/attention_engines.h"
#include "ops/cuda/attention_launch.cuh"
#include "runtime/check.h"
#include "runtime/logging.h"

namespace cubit {
namespace {

void CheckHeads(const ConstHeadTensor& x, const char* name,
                const ConstHeadTensor& q, int64_t seq_len) {
  CUBIT_CHECK(x.batch == q.batch && x.seq_len == seq_len &&
              x.num_heads == q.num_heads && x.head_dim == q.head_dim)
      << name << ": wanted [" << q.batch << ", " << seq_len << ", "
      << q.num_heads << ", " << q.head_dim << "], got [" << x.batch << ", "
      << x.seq_len << ", " << x.num_heads << ", " << x.head_dim << "]";
  CUBIT_CHECK(x.dtype == q.dtype)
      << name << ": " << Name(x.dtype) << " beside " << Name(q.dtype);
}

void CheckCommon(const ConstHeadTensor& q, float scale) {
  CUBIT_CHECK_LE(q.head_dim, cuda::kMaxAttentionDim);
  // Row maxima are taken of the products, before they are scaled.
  CUBIT_CHECK_GT(scale, 0.0f);
}

// Says once for each pass which implementation serves the run's first call.
void LogEngine(const char* pass, bool cudnn, const ConstHeadTensor& q,
               std::once_flag* said) {
  std::call_once(*said, [&] {
    LogDebug(absl::StrFormat("attention %s: %s ([%d, %d, %d, %d] %s)", pass,
                             cudnn ? "cuDNN" : "the project's kernels", q.batch,
                             q.seq_len, q.num_heads, q.head_dim,
                             std::string(Name(q.dtype))));
  });
}

bool IsEmpty(const ConstHeadTensor& q) {
  return q.batch * q.seq_len * q.num_heads * q.head_dim == 0;
}

}  // namespace

void AttentionForward(ConstHeadTensor q, ConstHeadTensor k, ConstHeadTensor v,
                      float scale, const AttentionMask& mask, HeadTensor out,
                      Tensor lse, Stream& stream) {
  CheckHeads(k, "k", q, k.seq_len);
  CheckHeads(v, "v", q, k.seq_len);
  CheckHeads(out, "out", q, q.seq_len);
  CUBIT_CHECK_LE(q.seq_len, k.seq_len);
  CUBIT_CHECK_SHAPE(lse, {q.batch, q.num_heads, q.seq_len});
  CheckCommon(q, scale);
  if (IsEmpty(q)) return;
  const cuda::AttentionForwardCall call{q, k, v, scale, mask, out, lse};
  static std::once_flag said;
  const bool cudnn = cuda::CudnnAttentionForward(call, stream);
  if (!cudnn) cuda::OwnAttentionForward(call, stream);
  LogEngine("forward", cudnn, q, &said);
}

void AttentionBackward(ConstHeadTensor q, ConstHeadTensor k, ConstHeadTensor v,
                       ConstHeadTensor out, ConstTensor lse,
                       ConstHeadTensor d_out, float scale,
                       const AttentionMask& mask,
                       const AttentionAccumulate& accumulate, HeadTensor d_q,
                       HeadTensor d_k, HeadTensor d_v, Tensor delta,
                       Stream& stream) {
  CheckHeads(k, "k", q, q.seq_len);
  CheckHeads(v, "v", q, q.seq_len);
  CheckHeads(out, "out", q, q.seq_len);
  CheckHeads(d_out, "d_out", q, q.seq_len);
  CheckHeads(d_q, "d_q", q, q.seq_len);
  CheckHeads(d_k, "d_k", q, q.seq_len);
  CheckHeads(d_v, "d_v", q, q.seq_len);
  CUBIT_CHECK_SHAPE(lse, {q.batch, q.num_heads, q.seq_len});
  CUBIT_CHECK_SHAPE(delta, {q.batch, q.num_heads, q.seq_len});
  CheckCommon(q, scale);
  if (IsEmpty(q)) return;
  const cuda::AttentionBackwardCall call{
      q, k, v, out, lse, d_out, scale, mask, accumulate, d_q, d_k, d_v, delta};
  static std::once_flag said;
  const bool cudnn = cuda::CudnnAttentionBackward(call, stream);
  if (!cudnn) cuda::OwnAttentionBackward(call, stream);
  LogEngine("backward", cudnn, q, &said);
}

}  // namespace cubit
