// SPDX-License-Identifier: Apache-2.0
//
// Reading, changing and writing the configuration of a run (run.proto). Keys
// are dotted paths, "model.num_layers". Presets are in presets.h; whether the
// values make sense together is config_checks.h's question.

#ifndef CUBIT_LAUNCH_CONFIG_H_
#define CUBIT_LAUNCH_CONFIG_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "launch/run.pb.h"

namespace cubit {

// Parses text proto. `origin` (a path, a preset) begins every error, which
// names line and column, and for an unknown key or word the nearest valid one.
absl::StatusOr<RunConfig> ParseConfig(absl::string_view text,
                                      const std::string& origin);

// ParseConfig of a file of at most 1 MiB.
absl::StatusOr<RunConfig> LoadConfigFile(const std::string& path);

// Applies "model.num_layers=2". Words of choices may be in any case, truth
// values are true, false, yes, no, 1 or 0, and lists are set as a whole,
// "data.path=a,b" ("data.path=" empties it). Nothing changes on an error, which
// names the nearest key, the valid words, or the type that was wanted.
absl::Status ApplyOverride(absl::string_view assignment, RunConfig* config);

// Puts `steps` into schedule.total_steps, and where warm-up and decay no longer
// fit, shortens both to their share of the steps. Returns whether it had to.
bool SetTotalSteps(int64_t steps, RunConfig* config);

// Every key with its value, defaults included, but for the options of mixers
// that are not chosen (ValidateConfig refuses those that were set: call it
// first). What follows from other keys is filled in (model.ffn_hidden_size,
// schedule.decay_steps of wsd).
RunConfig ResolveConfig(const RunConfig& config);

// ResolveConfig as text proto that ParseConfig reads back.
std::string ResolvedText(const RunConfig& config);

// The rows of an embedding for a tokenizer's vocabulary: up to a multiple of
// 64.
int64_t PaddedVocabSize(int64_t tokenizer_vocab_size);

// One key and its value as text; a list is comma-separated.
struct ConfigValue {
  std::string key;
  std::string value;
};

// All keys of a resolved configuration.
std::vector<ConfigValue> ListConfigValues(const RunConfig& config);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_CONFIG_H_
