// SPDX-License-Identifier: Apache-2.0
//
// From what the user names (--data, data.path, or nothing) to folders of token
// shards: text is prepared into a cache first, once.

#ifndef CUBIT_LAUNCH_DATA_SETUP_H_
#define CUBIT_LAUNCH_DATA_SETUP_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "data/blended_dataset.h"
#include "data/sample_blend.h"
#include "data/tokenizer.h"
#include "launch/run.pb.h"

namespace cubit {

struct RunData {
  std::vector<std::string> folders;
  std::unique_ptr<BlendedDataset> train;
  std::unique_ptr<Tokenizer> tokenizer;
};

// Resolves data.path of `config`: a folder with an index.json is a data set as
// it stands; text files, folders or patterns are prepared into the user's cache
// (named by their names, sizes, times and the tokenizer), together or, with
// data.weight, each path by itself; no path at all is the default corpus.
// Mixing both kinds is an error. main must call RunReaderProcess.
absl::StatusOr<RunData> PrepareRunData(const RunConfig& config);

// The tokenizer that PrepareRunData would give, without preparing anything.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadRunTokenizer(
    const RunConfig& config);

// data.skip_steps as positions in the order of samples, sorted and joined.
// InvalidArgument for what is no range of steps, or not in order.
absl::StatusOr<std::vector<PositionRange>> SkippedPositions(
    const RunConfig& config);

// Whether a run that was saved after `position` samples may go on with what
// `requested` skips: what was trained on cannot be skipped any more.
absl::Status CheckSkippedOnResume(const RunConfig& saved,
                                  const RunConfig& requested, int64_t position);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_DATA_SETUP_H_
