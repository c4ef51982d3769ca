// SPDX-License-Identifier: Apache-2.0
//
// Weights from a Hugging Face folder that //launch:export wrote (or
// transformers saved again): a start for training.

#ifndef CUBIT_LAUNCH_IMPORT_H_
#define CUBIT_LAUNCH_IMPORT_H_

#include <string>

#include "absl/status/status.h"

#include "data/tokenizer.h"
#include "models/language_model.h"
#include "runtime/device.h"
#include "runtime/file_system.h"

namespace cubit {

// Fills every parameter of `model`, which may hold any shard of it, from
// `folder`: of a tensor, what this rank has of it is read. Weights in fp32 come
// over bit for bit, bf16 is widened; the copies that products read are made
// anew. Everything is checked before the first parameter changes: config.json
// must describe the same function over the same tokenizer, and the files must
// hold exactly the tensors of the whole model, in its shapes. Errors say what
// was found, what was wanted and what to do: NotFound (no such folder or file),
// InvalidArgument (another model), DataLoss (a damaged file).
absl::Status ImportHuggingFace(const std::string& folder,
                               const Tokenizer& tokenizer, FileSystem& files,
                               LanguageModel* model, Stream& stream);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_IMPORT_H_
