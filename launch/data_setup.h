// SPDX-License-Identifier: Apache-2.0
//
// From what the user names (--data, data.path, or nothing) to folders of token
// shards: text is prepared into a cache first, once.

#ifndef CUBIT_LAUNCH_DATA_SETUP_H_
#define CUBIT_LAUNCH_DATA_SETUP_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "data/token_dataset.h"
#include "data/tokenizer.h"
#include "launch/run.pb.h"

namespace cubit {

struct RunData {
  std::vector<std::string> folders;
  std::unique_ptr<TokenDataset> train;
  std::unique_ptr<Tokenizer> tokenizer;
};

// Resolves data.path of `config`: a folder with an index.json is a data set as
// it stands; text files, folders or patterns are prepared together into the
// user's cache (named by their names, sizes, times and the tokenizer); no path
// at all is the default corpus. Mixing both kinds is an error.
absl::StatusOr<RunData> PrepareRunData(const RunConfig& config);

// The tokenizer that PrepareRunData would give, without preparing anything.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadRunTokenizer(
    const RunConfig& config);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_DATA_SETUP_H_
