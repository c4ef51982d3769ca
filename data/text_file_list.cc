// SPDX-License-Identifier: Apache-2.0

#include <glob.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <system_error>

#include "absl/strings/str_cat.h"

#include "data/text_format.h"
#include "data/text_source.h"
#include "runtime/command_line.h"
#include "runtime/file_system.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

namespace fs = std::filesystem;

bool IsHidden(const fs::path& path) {
  return path.filename().string().front() == '.';
}

bool IsSupported(const fs::path& path) {
  return TextFormatOf(path.string()) != TextFormat::kNone;
}

absl::Status CannotList(const std::string& folder,
                        const std::error_code& error) {
  return absl::InvalidArgumentError(
      absl::StrCat(folder, ": cannot list the folder: ", error.message()));
}

// Data sets, in contrast to whatever else has text in it.
bool IsRecords(const std::string& path) {
  const TextFormat format = TextFormatOf(path);
  return format == TextFormat::kJsonLines || format == TextFormat::kParquet;
}

// Token files are too like other binaries to be taken unless they are named.
bool IsInFolder(const fs::path& path) {
  return IsSupported(path) && !HoldsTokens(TextFormatOf(path.string()));
}

// What below a folder is documents. Where there are .jsonl or .parquet files,
// they are the data and the rest describes it (a README, a licence).
absl::Status AddFolder(const fs::path& folder,
                       std::vector<std::string>* paths) {
  std::vector<std::string> found;
  std::error_code error;
  fs::recursive_directory_iterator entry(folder, error);
  if (error) return CannotList(folder.string(), error);
  for (; entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    const fs::path& path = entry->path();
    if (IsHidden(path)) {
      entry.disable_recursion_pending();
      continue;
    }
    std::error_code ignored;  // a link to nothing is no file
    if (fs::is_regular_file(path, ignored) && IsInFolder(path)) {
      found.push_back(path.lexically_normal().string());
    }
  }
  if (error) return CannotList(folder.string(), error);
  const bool has_records = std::any_of(found.begin(), found.end(), IsRecords);
  std::copy_if(
      found.begin(), found.end(), std::back_inserter(*paths),
      [&](const std::string& path) { return !has_records || IsRecords(path); });
  return absl::OkStatus();
}

// A file or folder that a pattern matched.
absl::Status AddMatch(const fs::path& path, std::vector<std::string>* paths) {
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) return AddFolder(path, paths);
  if (fs::is_regular_file(path, ignored) && IsSupported(path)) {
    paths->push_back(path.lexically_normal().string());
  }
  return absl::OkStatus();
}

absl::Status AddPattern(const std::string& pattern,
                        std::vector<std::string>* paths) {
  glob_t matches = {};
  const int result =
      glob(pattern.c_str(), GLOB_NOSORT | GLOB_ERR, nullptr, &matches);
  absl::Status status;
  if (result != 0 && result != GLOB_NOMATCH) {
    status = absl::InvalidArgumentError(
        absl::StrCat("pattern \"", pattern,
                     "\": a folder of it is missing or cannot be read"));
  }
  for (size_t i = 0; status.ok() && i < matches.gl_pathc; ++i) {
    status = AddMatch(matches.gl_pathv[i], paths);
  }
  globfree(&matches);
  return status;
}

// What to say of a path that does not exist.
absl::Status NoSuchFile(const std::string& input) {
  const std::string folder = FolderOf(input);
  std::string hint;
  const auto names = FileSystem::Posix().List(folder);
  if (!names.ok()) {
    hint = absl::StrCat("; there is no folder \"", folder, "\" either");
  } else {
    const std::string nearest =
        NearestWord(fs::path(input).filename().string(), *names);
    if (!nearest.empty()) {
      hint =
          absl::StrCat("; did you mean \"", JoinPath(folder, nearest), "\"?");
    }
  }
  return absl::NotFoundError(
      absl::StrCat("input \"", input, "\": no such file or folder", hint));
}

absl::Status AddInput(const std::string& input,
                      std::vector<std::string>* paths) {
  std::error_code error;
  const fs::file_status status = fs::status(input, error);
  if (fs::is_directory(status)) return AddFolder(input, paths);
  if (fs::is_regular_file(status)) {
    if (!IsSupported(input)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "input \"", input,
          "\": this kind of file is not read; wanted: ", kTextFormats));
    }
    paths->push_back(fs::path(input).lexically_normal().string());
    return absl::OkStatus();
  }
  if (fs::exists(status)) {
    return absl::InvalidArgumentError(
        absl::StrCat("input \"", input, "\": is neither a file nor a folder"));
  }
  if (input.find_first_of("*?") != std::string::npos) {
    return AddPattern(input, paths);
  }
  if (error && error != std::errc::no_such_file_or_directory &&
      error != std::errc::not_a_directory) {
    return absl::PermissionDeniedError(
        absl::StrCat("input \"", input, "\": ", error.message()));
  }
  return NoSuchFile(input);
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ListTextFiles(
    const std::vector<std::string>& inputs) {
  std::vector<std::string> paths;
  if (inputs.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("no input is named; wanted: files, folders or patterns "
                     "of ",
                     kTextFormats));
  }
  for (const std::string& input : inputs) {
    const size_t before = paths.size();
    CUBIT_RETURN_IF_ERROR(AddInput(input, &paths));
    if (paths.size() == before) {
      return absl::NotFoundError(absl::StrCat(
          "input \"", input, "\" holds no text files; wanted: ", kTextFormats));
    }
  }
  std::sort(paths.begin(), paths.end());
  paths.erase(std::unique(paths.begin(), paths.end()), paths.end());
  return paths;
}

}  // namespace cubit
