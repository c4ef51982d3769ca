// SPDX-License-Identifier: Apache-2.0
//
// The runs that benchmarks of training steps measure.

#ifndef CUBIT_TESTS_BENCHMARKS_TRAIN_RUNS_H_
#define CUBIT_TESTS_BENCHMARKS_TRAIN_RUNS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "data/batch_loader.h"
#include "launch/run.pb.h"
#include "models/model_config.h"

namespace cubit {

constexpr int64_t kGpt2Vocabulary = 50257;

struct RunSpec {
  std::string preset;
  int64_t seq_len = 0;
  int64_t tokens = 0;  // whole sequences
};

// "PRESET:SEQ_LEN:TOKENS", separated by commas. InvalidArgument.
absl::StatusOr<std::vector<RunSpec>> ParseRuns(const std::string& text);

// The preset with the run's sequence length and tokens a step, `overrides`
// ("KEY=VALUE") and the precision of this program's device.
absl::StatusOr<RunConfig> ConfigOf(const RunSpec& run,
                                   const std::vector<std::string>& overrides);

// Samples [first_sample, first_sample + count) of an endless random text, whole
// sequences without borders of documents: a sample is the same in every batch.
Batch RandomBatch(const ModelConfig& config, int64_t first_sample,
                  int64_t count);

// The middle of `values`, the larger of two. CHECK: not empty.
double Median(std::vector<double> values);

}  // namespace cubit

#endif  // CUBIT_TESTS_BENCHMARKS_TRAIN_RUNS_H_
