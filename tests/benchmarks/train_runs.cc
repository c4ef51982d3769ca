// SPDX-License-Identifier: Apache-2.0

#include "tests/benchmarks/train_runs.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

#include "launch/config.h"
#include "launch/config_checks.h"
#include "launch/presets.h"
#include "runtime/check.h"
#include "runtime/device.h"
#include "runtime/philox.h"
#include "runtime/status_macros.h"

namespace cubit {

absl::StatusOr<std::vector<RunSpec>> ParseRuns(const std::string& text) {
  std::vector<RunSpec> runs;
  for (absl::string_view item : absl::StrSplit(text, ',')) {
    const std::vector<std::string> parts = absl::StrSplit(item, ':');
    RunSpec run;
    if (parts.size() != 3 || !absl::SimpleAtoi(parts[1], &run.seq_len) ||
        !absl::SimpleAtoi(parts[2], &run.tokens) || run.seq_len < 2 ||
        run.tokens < run.seq_len || run.tokens % run.seq_len != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--runs has \"", item,
          "\"; wanted PRESET:SEQ_LEN:TOKENS, whole sequences of tokens"));
    }
    run.preset = parts[0];
    runs.push_back(run);
  }
  return runs;
}

absl::StatusOr<RunConfig> ConfigOf(const RunSpec& run,
                                   const std::vector<std::string>& overrides) {
  CUBIT_ASSIGN_OR_RETURN(RunConfig config, LoadPreset(run.preset));
  config.mutable_model()->set_seq_len(run.seq_len);
  config.mutable_batch()->set_global_batch_size(run.tokens / run.seq_len);
  for (const std::string& assignment : overrides) {
    CUBIT_RETURN_IF_ERROR(ApplyOverride(assignment, &config));
  }
  CUBIT_RETURN_IF_ERROR(SettlePrecision(DeviceKind(), &config));
  return config;
}

Batch RandomBatch(const ModelConfig& config, int64_t first_sample,
                  int64_t count) {
  Batch batch;
  for (int64_t sample = first_sample; sample < first_sample + count; ++sample) {
    const Philox random(/*seed=*/1, absl::StrCat("sample ", sample));
    for (int64_t t = 0; t <= config.seq_len; ++t) {
      const auto id =
          static_cast<int32_t>(random.Bits(static_cast<uint64_t>(t)) %
                               static_cast<uint64_t>(config.valid_vocab));
      if (t < config.seq_len) batch.inputs.push_back(id);
      if (t > 0) batch.targets.push_back(id);
    }
  }
  batch.valid_tokens = count * config.seq_len;
  batch.segment_ids.resize(static_cast<size_t>(batch.valid_tokens));
  return batch;
}

double Median(std::vector<double> values) {
  CUBIT_CHECK(!values.empty());
  const auto middle =
      values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace cubit
