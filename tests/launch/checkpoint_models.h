// SPDX-License-Identifier: Apache-2.0
//
// Models as LoadCheckpointModel gives them, without a checkpoint.

#ifndef CUBIT_TESTS_LAUNCH_CHECKPOINT_MODELS_H_
#define CUBIT_TESTS_LAUNCH_CHECKPOINT_MODELS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "launch/checkpoint_model.h"

namespace cubit {
namespace testing {

// A small model over bytes with the further keys of `text` (text proto), its
// weights drawn with `seed`; every bias and scalar has a value of its own.
CheckpointModel MakeSmallModel(const std::string& text, uint64_t seed);
// The same over the ids of `tokenizer`.
CheckpointModel MakeSmallModel(const std::string& text, uint64_t seed,
                               std::unique_ptr<Tokenizer> tokenizer);

// One configuration of each kind that changes names, shapes or the function.
std::vector<std::string> ModelKinds();

// All weights with the padding between them.
std::vector<float> Weights(const CheckpointModel& model);

}  // namespace testing
}  // namespace cubit

#endif  // CUBIT_TESTS_LAUNCH_CHECKPOINT_MODELS_H_
