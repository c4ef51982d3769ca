// SPDX-License-Identifier: Apache-2.0

#include <algorithm>

#include "ops/cuda/attention_engines.h"
#include "ops/workspace.h"

namespace cubit {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

// cuBLASLt's (ops/cuda/lt_problem.h), so the least that CudaWorkspace becomes.
constexpr int64_t kProductBytes = 32 * kMiB;
// Thread blocks whose sums of columns stand beside each other
// (ops/cuda/norm.cuh on 132 multiprocessors).
constexpr int64_t kNormBlocks = 132 * 16;
// Context and code of the kernels and of the libraries: an allowance, which
// //tests/benchmarks:train_step prints beside what the device shows.
constexpr int64_t kProcessBytes = 640 * kMiB;

}  // namespace

int64_t OpsWorkspaceBytes(const WorkspaceQuery& query) {
  const int64_t rows = query.batch * query.seq_len;
  // Sums of gradients of the norms' weights and biases.
  const int64_t norms = kNormBlocks * 2 * query.hidden_size * 4;
  // Attention's backward keeps a few numbers a row, or as many as cuDNN's.
  const bool by_cudnn =
      query.dtype == DType::kBFloat16 && query.plain_attention;
  const int64_t attention = std::max(
      rows * query.num_heads * (query.head_dim + 2) * 4,
      by_cudnn ? cuda::CudnnAttentionBackwardBytes(query.batch, query.num_heads,
                                                   query.seq_len, query.seq_len)
               : 0);
  // Pairs of chunks: the same of a pair, and memory for its parts.
  const bool pairs = query.dtype == DType::kBFloat16 && query.pair_rows > 0;
  const int64_t of_pair = pairs ? cuda::CudnnAttentionBackwardBytes(
                                      query.pair_sequences, query.pair_heads,
                                      query.pair_rows, query.pair_rows)
                                : 0;
  const int64_t parts =
      pairs ? cuda::CudnnChunkBytes(query.pair_sequences, query.pair_heads,
                                    query.pair_rows, query.pair_rows,
                                    query.head_dim)
            : 0;
  // Tokens sorted by id, twice over with their places.
  const int64_t tokens = rows * 4 * 6;
  return std::max({kProductBytes, norms, attention, of_pair, tokens}) + parts;
}

int64_t ProcessDeviceBytes() { return kProcessBytes; }

}  // namespace cubit
