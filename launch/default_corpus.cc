// SPDX-License-Identifier: Apache-2.0

#include "launch/default_corpus.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

#include "data/text_source.h"
#include "runtime/file_system.h"

namespace cubit {
namespace {

// A Perl without its manual still has a page or two, which its modules read.
constexpr size_t kFewestPages = 50;

// "See perlootut": pages whose text has moved.
constexpr int64_t kSmallestPageBytes = 1000;

constexpr absl::string_view kLeftOut[] = {
    // Other languages.
    "perlcn.pod",
    "perljp.pod",
    "perlko.pod",
    "perltw.pod",
    // Tables.
    "perlcheat.pod",
    "perlebcdic.pod",
    "perlgpl.pod",
    "perlhist.pod",
    "perluniprops.pod",
    // Generated from other pages or from source text.
    "perlapi.pod",
    "perlintern.pod",
    "perlmodlib.pod",
    "perltoc.pod",
};

bool IsLeftOut(const std::string& path) {
  const std::string name = path.substr(FolderOf(path).size() + 1);
  if (absl::EndsWith(name, "delta.pod")) return true;  // release notes
  if (std::find(std::begin(kLeftOut), std::end(kLeftOut), name) !=
      std::end(kLeftOut)) {
    return true;
  }
  const absl::StatusOr<int64_t> bytes = FileSystem::Posix().FileSize(path);
  return bytes.ok() && *bytes < kSmallestPageBytes;
}

// The pages of one version; none if the folder has none.
std::vector<std::string> PagesIn(const std::string& folder) {
  absl::StatusOr<std::vector<std::string>> files =
      ListTextFiles({JoinPath(folder, "*.pod")});
  if (!files.ok()) return {};
  files->erase(std::remove_if(files->begin(), files->end(), IsLeftOut),
               files->end());
  return *std::move(files);
}

}  // namespace

absl::StatusOr<std::vector<std::string>> DefaultCorpusFiles(
    const std::string& perl_folder) {
  std::vector<std::string> versions = FileSystem::Posix()
                                          .List(perl_folder)
                                          .value_or(std::vector<std::string>());
  // One version only, the newest: 5.36 is a link to 5.36.0, and a page that was
  // read twice could be in both splits.
  std::reverse(versions.begin(), versions.end());
  for (const std::string& version : versions) {
    std::vector<std::string> pages =
        PagesIn(JoinPath(JoinPath(perl_folder, version), "pod"));
    if (pages.size() >= kFewestPages) return pages;
  }
  return absl::NotFoundError(absl::StrCat(
      "the default corpus, the manual of Perl, is not below ", perl_folder,
      ": run apt-get install perl-doc, or name text of your own with --data"));
}

}  // namespace cubit
