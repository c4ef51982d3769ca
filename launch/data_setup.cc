// SPDX-License-Identifier: Apache-2.0

#include "launch/data_setup.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

#include "data/dataset_index.h"
#include "data/prepare.h"
#include "data/reader_process.h"
#include "data/text_source.h"
#include "launch/default_corpus.h"
#include "runtime/digest.h"
#include "runtime/file_system.h"
#include "runtime/logging.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr char kDefaultTokenizer[] = "byte";
// The default corpus has few, long documents: one in a hundred would be one.
constexpr double kDefaultCorpusValidation = 0.05;

// $XDG_CACHE_HOME/cubit or ~/.cache/cubit; without either, below the folder for
// temporary files.
std::string CacheFolder() {
  if (const char* cache = std::getenv("XDG_CACHE_HOME");
      cache != nullptr && cache[0] == '/') {
    return JoinPath(cache, "cubit");
  }
  if (const char* home = std::getenv("HOME");
      home != nullptr && home[0] == '/') {
    return JoinPath(home, ".cache/cubit");
  }
  return "/tmp/cubit-cache";
}

bool IsDataset(const std::string& path) {
  return FileSystem::Posix().Exists(JoinPath(path, kIndexName));
}

// Names a preparation: what goes in, how it is cut into tokens and split.
std::string CacheKey(const std::vector<std::string>& files,
                     const Tokenizer& tokenizer, double validation_fraction) {
  std::string key = absl::StrCat(tokenizer.sha256(), " ", validation_fraction);
  for (const std::string& file : files) {
    struct stat info = {};
    stat(file.c_str(), &info);
    absl::StrAppend(&key, "\n", file, " ", info.st_size, " ",
                    info.st_mtim.tv_sec, ".", info.st_mtim.tv_nsec);
  }
  return Sha256Hex(key).substr(0, 16);
}

std::vector<std::string> Paths(const RunConfig& config) {
  return {config.data().path().begin(), config.data().path().end()};
}

std::vector<double> Weights(const RunConfig& config) {
  return {config.data().weight().begin(), config.data().weight().end()};
}

// The tokenizer that `spec` names, or the one of text without a word.
absl::StatusOr<std::unique_ptr<Tokenizer>> TextTokenizer(
    const std::string& spec) {
  if (!spec.empty() && spec != kDefaultTokenizer) {
    CUBIT_RETURN_IF_ERROR(TryTokenizer(spec, ReaderLimits()));
  }
  return LoadTokenizer(spec.empty() ? kDefaultTokenizer : spec);
}

// Whether all paths are data sets (or none is); a mix is an error.
absl::StatusOr<bool> AreDatasets(const std::vector<std::string>& paths) {
  const auto datasets = std::count_if(paths.begin(), paths.end(), IsDataset);
  if (datasets == 0) return false;
  if (static_cast<size_t>(datasets) == paths.size()) return true;
  return absl::InvalidArgumentError(
      absl::StrCat("data.path mixes folders of token shards with text (",
                   absl::StrJoin(paths, ", "),
                   "); prepare the text first with //data:prepare"));
}

// Prepares `paths`, or the default corpus if there are none, into a folder of
// the cache, and returns it.
absl::StatusOr<std::string> PrepareIntoCache(
    const std::vector<std::string>& paths, const Tokenizer& tokenizer) {
  const bool is_default = paths.empty();
  std::vector<std::string> files;
  if (is_default) {
    CUBIT_ASSIGN_OR_RETURN(files, DefaultCorpusFiles());
  } else {
    CUBIT_ASSIGN_OR_RETURN(files, ListTextFiles(paths));
  }
  PrepareOptions options;
  options.inputs = files;
  if (is_default) options.validation_fraction = kDefaultCorpusValidation;
  options.out = JoinPath(
      CacheFolder(),
      absl::StrCat("data/", is_default ? "default-" : "text-",
                   CacheKey(files, tokenizer, options.validation_fraction)));
  options.threads =
      static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  // The default corpus is the system's own.
  options.isolate = !is_default;
  options.source = is_default ? kDefaultCorpusName : absl::StrJoin(paths, ", ");
  options.show_progress = true;
  options.wait_for_others = true;
  CUBIT_ASSIGN_OR_RETURN(const PrepareReport report,
                         Prepare(options, tokenizer, FileSystem::Posix()));
  LogInfo(
      absl::StrFormat("data: %s (%s), %d documents", options.source,
                      report.was_complete ? "prepared before" : "prepared now",
                      report.train_documents + report.validation_documents));
  const std::string counts = report.token_counts.ToString();
  if (!counts.empty()) LogInfo(counts);
  return options.out;
}

absl::StatusOr<RunData> PrepareText(const std::vector<std::string>& paths,
                                    const std::vector<double>& weights,
                                    const std::string& tokenizer_spec,
                                    int64_t seq_len) {
  RunData data;
  CUBIT_ASSIGN_OR_RETURN(data.tokenizer, TextTokenizer(tokenizer_spec));
  if (weights.empty()) {
    CUBIT_ASSIGN_OR_RETURN(const std::string folder,
                           PrepareIntoCache(paths, *data.tokenizer));
    data.folders = {folder};
  } else {
    for (const std::string& path : paths) {
      CUBIT_ASSIGN_OR_RETURN(const std::string folder,
                             PrepareIntoCache({path}, *data.tokenizer));
      data.folders.push_back(folder);
    }
  }
  CUBIT_ASSIGN_OR_RETURN(data.train, BlendedDataset::Open(data.folders, weights,
                                                          "train", seq_len));
  return data;
}

absl::StatusOr<RunData> OpenDatasets(const std::vector<std::string>& paths,
                                     const std::vector<double>& weights,
                                     const std::string& tokenizer_spec,
                                     int64_t seq_len) {
  RunData data;
  data.folders = paths;
  CUBIT_ASSIGN_OR_RETURN(
      data.train, BlendedDataset::Open(paths, weights, "train", seq_len));
  const DatasetInfo& info = data.train->info();
  CUBIT_ASSIGN_OR_RETURN(
      data.tokenizer,
      LoadTokenizer(tokenizer_spec.empty() ? info.tokenizer_folder
                                           : tokenizer_spec));
  if (data.tokenizer->sha256() != info.tokenizer_sha256) {
    return absl::InvalidArgumentError(absl::StrCat(
        paths[0], ": its shards were made with tokenizer ", info.tokenizer,
        " (sha256 ", info.tokenizer_sha256, "), but ",
        tokenizer_spec.empty()
            ? absl::StrCat("their folder ", info.tokenizer_folder, " has now ")
            : absl::StrCat("data.tokenizer=", tokenizer_spec, " names "),
        data.tokenizer->name(), " (sha256 ", data.tokenizer->sha256(), "); ",
        tokenizer_spec.empty() ? "" : "--set data.tokenizer= takes theirs, or ",
        "prepare the text again"));
  }
  return data;
}

}  // namespace

absl::StatusOr<RunData> PrepareRunData(const RunConfig& config) {
  const std::vector<std::string> paths = Paths(config);
  const std::string& tokenizer = config.data().tokenizer();
  const int64_t seq_len = config.model().seq_len();
  CUBIT_ASSIGN_OR_RETURN(const bool datasets, AreDatasets(paths));
  return datasets ? OpenDatasets(paths, Weights(config), tokenizer, seq_len)
                  : PrepareText(paths, Weights(config), tokenizer, seq_len);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadRunTokenizer(
    const RunConfig& config) {
  const std::vector<std::string> paths = Paths(config);
  CUBIT_ASSIGN_OR_RETURN(const bool datasets, AreDatasets(paths));
  if (!datasets) return TextTokenizer(config.data().tokenizer());
  CUBIT_ASSIGN_OR_RETURN(RunData data, OpenDatasets(paths, Weights(config),
                                                    config.data().tokenizer(),
                                                    config.model().seq_len()));
  return std::move(data.tokenizer);
}

absl::StatusOr<std::vector<PositionRange>> SkippedPositions(
    const RunConfig& config) {
  const int64_t samples = config.batch().global_batch_size();
  std::vector<PositionRange> ranges;
  for (const std::string& text : config.data().skip_steps()) {
    const std::vector<absl::string_view> ends = absl::StrSplit(text, '-');
    int64_t first = 0;
    int64_t last = 0;
    if (ends.size() != 2 || !absl::SimpleAtoi(ends[0], &first) ||
        !absl::SimpleAtoi(ends[1], &last) || first < 1 || last < first ||
        last > int64_t{1} << 40) {
      return absl::InvalidArgumentError(
          absl::StrCat("data.skip_steps is \"", text,
                       "\"; FIRST-LAST is wanted, two steps counted from 1"));
    }
    if (!ranges.empty() && (first - 1) * samples < ranges.back().end) {
      return absl::InvalidArgumentError(absl::StrCat(
          "data.skip_steps ", text,
          " does not begin after the range before it; give them in order"));
    }
    ranges.push_back({(first - 1) * samples, last * samples});
  }
  return ranges;
}

absl::Status CheckSkippedOnResume(const RunConfig& saved,
                                  const RunConfig& requested,
                                  int64_t position) {
  CUBIT_ASSIGN_OR_RETURN(const auto before, SkippedPositions(saved));
  CUBIT_ASSIGN_OR_RETURN(const auto after, SkippedPositions(requested));
  // Equal at the last sample that was used, both skip the same before it.
  const bool same = position == 0 || SkipPositions(before, position - 1) ==
                                         SkipPositions(after, position - 1);
  if (same) return absl::OkStatus();
  const int64_t samples = requested.batch().global_batch_size();
  return absl::InvalidArgumentError(absl::StrCat(
      "data.skip_steps ", absl::StrJoin(requested.data().skip_steps(), ","),
      " touches data that the run has used; its next unused data is of step ",
      SkipPositions(before, position) / samples + 1,
      " (and what it skipped before must stay: ",
      before.empty() ? "nothing"
                     : absl::StrJoin(saved.data().skip_steps(), ","),
      ")"));
}

}  // namespace cubit
