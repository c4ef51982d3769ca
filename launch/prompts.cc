// SPDX-License-Identifier: Apache-2.0

#include "launch/prompts.h"

#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

#include "data/compressed_reader.h"
#include "launch/json_rows.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr int64_t kMaxFileBytes = int64_t{256} << 20;

absl::StatusOr<std::vector<std::string>> Lines(const std::string& path) {
  CUBIT_ASSIGN_OR_RETURN(std::unique_ptr<ByteReader> input,
                         OpenCompressedFile(path));
  CUBIT_ASSIGN_OR_RETURN(const std::string text,
                         ReadToEnd(*input, path, kMaxFileBytes));
  std::vector<std::string> prompts;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    if (absl::EndsWith(line, "\r")) line.remove_suffix(1);
    if (!line.empty()) prompts.emplace_back(line);
  }
  return prompts;
}

absl::StatusOr<std::vector<std::string>> Rows(const std::string& path) {
  std::vector<std::string> prompts;
  CUBIT_RETURN_IF_ERROR(ReadJsonRows(path, 0, [&](JsonRow& row) {
    prompts.push_back(row.String("prompt"));
    return row.status();
  }));
  return prompts;
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ReadPrompts(const std::string& path) {
  const bool rows =
      absl::EndsWithIgnoreCase(WithoutCompressionSuffix(path), ".jsonl");
  CUBIT_ASSIGN_OR_RETURN(std::vector<std::string> prompts,
                         rows ? Rows(path) : Lines(path));
  if (prompts.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": holds no prompt; write one a line"));
  }
  return prompts;
}

}  // namespace cubit
