// SPDX-License-Identifier: Apache-2.0
//
// Memory that ops take for themselves. The CPU's take none of the device's; on
// CUDA they share one work space (CudaWorkspace in cuda_check.h) and the
// libraries have their own. Asked before a run, so that its plan is exact.

#ifndef CUBIT_OPS_WORKSPACE_H_
#define CUBIT_OPS_WORKSPACE_H_

#include <cstdint>

#include "runtime/dtype.h"

namespace cubit {

// The extents of a training step.
struct WorkspaceQuery {
  int64_t batch = 0;
  int64_t seq_len = 0;
  int64_t num_heads = 0;
  int64_t head_dim = 0;
  int64_t hidden_size = 0;
  int64_t ffn_hidden_size = 0;
  int64_t vocab_size = 0;
  int64_t num_elements = 0;  // of all parameters, padding included
  DType dtype = DType::kFloat32;
  // Attention is over whole sequences and not masked by documents.
  bool plain_attention = true;
  // Attention is over pairs of chunks (chunked_attention.h), not masked by
  // documents, of so many sequences, heads and rows at a time; 0: it is not.
  int64_t pair_sequences = 0;
  int64_t pair_heads = 0;
  int64_t pair_rows = 0;
};

// Bytes of device memory that the ops of this back end come to hold in steps of
// these extents. Needs no device.
int64_t OpsWorkspaceBytes(const WorkspaceQuery& query);

// Bytes of device memory that a process of this back end holds besides what it
// allocates: the context and the code of the kernels. An allowance.
int64_t ProcessDeviceBytes();

}  // namespace cubit

#endif  // CUBIT_OPS_WORKSPACE_H_
