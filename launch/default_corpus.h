// SPDX-License-Identifier: Apache-2.0
//
// The text that a new machine trains on: the manual of Perl, real English prose
// that Debian's package perl-doc brings
// (docs/decisions/0012-default-corpus.md).

#ifndef CUBIT_LAUNCH_DEFAULT_CORPUS_H_
#define CUBIT_LAUNCH_DEFAULT_CORPUS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace cubit {

constexpr char kDefaultCorpusName[] = "the Perl manual (Debian's perl-doc)";

// Its files, sorted. An error names the package where they are missing.
absl::StatusOr<std::vector<std::string>> DefaultCorpusFiles();

}  // namespace cubit

#endif  // CUBIT_LAUNCH_DEFAULT_CORPUS_H_
