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

// Where the package puts a folder for each version, such as 5.36.0/pod.
constexpr char kPerlFolder[] = "/usr/share/perl";

// The pages that read as English, sorted; each is one document. Left out are
// pages in other languages, tables, pages generated from others (a sentence of
// the validation split would also be in the training split), release notes
// (which repeat one another) and pages that only say where another one is.
// NotFound, with the package to install, where there is no manual below
// `perl_folder`.
absl::StatusOr<std::vector<std::string>> DefaultCorpusFiles(
    const std::string& perl_folder = kPerlFolder);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_DEFAULT_CORPUS_H_
