// SPDX-License-Identifier: Apache-2.0
//
// A model as a Hugging Face folder: safetensors, config.json, the tokenizer and
// one modelling file, which transformers loads offline with trust_remote_code.
// docs/interchange.md has the layout; import.h reads the weights back.

#ifndef CUBIT_LAUNCH_EXPORT_H_
#define CUBIT_LAUNCH_EXPORT_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"

#include "launch/checkpoint_model.h"
#include "runtime/dtype.h"
#include "runtime/file_system.h"

namespace cubit {

struct ExportOptions {
  // Of the weights: kFloat32 (bit for bit) or kBFloat16 (rounded to nearest
  // even).
  DType dtype = DType::kFloat32;
  // A weight file holds at most this, or one tensor.
  int64_t max_file_bytes = int64_t{4} << 30;
};

// Makes the folder `out`. It is written aside and renamed when it is whole; on
// an error nothing is left. AlreadyExists if `out` exists and is not an empty
// folder.
absl::Status ExportHuggingFace(const CheckpointModel& model,
                               const std::string& out,
                               const ExportOptions& options, FileSystem& files);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_EXPORT_H_
