// SPDX-License-Identifier: Apache-2.0

#include "launch/default_corpus.h"

#include "data/text_source.h"

namespace cubit {

absl::StatusOr<std::vector<std::string>> DefaultCorpusFiles() {
  auto files = ListTextFiles({"/usr/share/perl/5.*/pod/*.pod"});
  if (files.ok()) return files;
  return absl::NotFoundError(
      "the default corpus (the manual of Perl) is not installed: run "
      "apt-get install perl-doc, or name text of your own with --data");
}

}  // namespace cubit
