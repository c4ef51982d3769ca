// SPDX-License-Identifier: Apache-2.0
//
// prepare.json: what a folder of shards was asked to hold, of which inputs.
// Written first and kept, so that a later call knows whether the folder, whole
// or unfinished, is the one it would make.

#ifndef CUBIT_DATA_PREPARE_REQUEST_H_
#define CUBIT_DATA_PREPARE_REQUEST_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "data/prepare.h"
#include "data/tokenizer.h"
#include "runtime/file_system.h"

namespace cubit {

constexpr char kPrepareRequestName[] = "prepare.json";

// One input file. Equal size and time of modification mean the same contents;
// equal size and digest do too.
struct PrepareInput {
  std::string path;
  int64_t bytes = 0;
  int64_t modified_ns = 0;  // since 1970
  std::string xxh3_128;     // of the contents; empty until computed
};

struct PrepareRequest {
  std::string tokenizer;
  std::string tokenizer_sha256;
  int64_t shard_tokens = 0;
  double validation_fraction = 0;
  std::string source;
  std::vector<PrepareInput> inputs;
};

// InvalidArgumentError that names the first flag with a wrong value.
absl::Status CheckPrepareOptions(const PrepareOptions& options);

// The inputs, without what an earlier call wrote: options.out may lie inside.
absl::StatusOr<std::vector<std::string>> ListPrepareInputs(
    const PrepareOptions& options);

// The request of `options` for input files `paths`, without digests.
absl::StatusOr<PrepareRequest> MakePrepareRequest(
    const PrepareOptions& options, const Tokenizer& tokenizer,
    const std::vector<std::string>& paths);

std::string PrepareRequestToJson(const PrepareRequest& request);
// `path` is for messages.
absl::StatusOr<PrepareRequest> ParsePrepareRequest(absl::string_view json,
                                                   const std::string& path);

// Fills in the digests that are missing, copying those of `known` (may be null)
// where size and time agree.
absl::Status DigestInputs(FileSystem& files, const PrepareRequest* known,
                          PrepareRequest* request);

// "" if `wanted` asks for what `found` did; otherwise what differs, for a
// message: "tokenizer byte there, gpt2 here". Files may have moved: names
// without folders, sizes, and times or digests count. Reads inputs whose time
// differs and puts their digest into `wanted`.
absl::StatusOr<std::string> DifferenceOf(FileSystem& files,
                                         const PrepareRequest& found,
                                         PrepareRequest* wanted);

}  // namespace cubit

#endif  // CUBIT_DATA_PREPARE_REQUEST_H_
