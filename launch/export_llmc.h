// SPDX-License-Identifier: Apache-2.0
//
// A Transformer as one .bin file of llm.c (Karpathy), which trains and samples
// GPT-2: 256 int32 of header, then every weight, layers of a kind together.

#ifndef CUBIT_LAUNCH_EXPORT_LLMC_H_
#define CUBIT_LAUNCH_EXPORT_LLMC_H_

#include <string>

#include "absl/status/status.h"

#include "launch/checkpoint_model.h"
#include "runtime/dtype.h"
#include "runtime/file_system.h"

namespace cubit {

// Writes `out` atomically, in version 3 (kFloat32) or 5 (kBFloat16). The error
// (FailedPrecondition) lists every reason for which the model is not one that
// llm.c computes: it has GPT-2's architecture alone. Of that, learned positions
// and biases may be absent here; they are written as zeros.
absl::Status ExportLlmC(const CheckpointModel& model, const std::string& out,
                        DType dtype, FileSystem& files);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_EXPORT_LLMC_H_
