// SPDX-License-Identifier: Apache-2.0

#include "data/text_format.h"

#include <utility>

#include "absl/strings/match.h"

#include "data/compressed_reader.h"

namespace cubit {

const char kTextFormats[] =
    ".txt, .pod, .md, .rst or no suffix (one document a file) and .jsonl (one "
    "JSON object a line with the text in field \"text\"), plain or with .gz, "
    ".dz, .xz or .zst after it; .parquet (column \"text\"); token ids in "
    "llm.c's .bin or Megatron's .idx with its .bin";

TextFormat TextFormatOf(absl::string_view path) {
  const absl::string_view whole = path;
  path = WithoutCompressionSuffix(path);
  const size_t slash = path.rfind('/');
  const absl::string_view name =
      slash == absl::string_view::npos ? path : path.substr(slash + 1);
  const size_t dot = name.rfind('.');
  // The dot that a hidden file's name begins with starts no suffix.
  if (dot == absl::string_view::npos || dot == 0) {
    return name.empty() ? TextFormat::kNone : TextFormat::kPlain;
  }
  const absl::string_view suffix = name.substr(dot);
  if (absl::EqualsIgnoreCase(suffix, ".jsonl")) return TextFormat::kJsonLines;
  for (const char* plain : {".txt", ".pod", ".md", ".rst"}) {
    if (absl::EqualsIgnoreCase(suffix, plain)) return TextFormat::kPlain;
  }
  if (path.size() != whole.size()) return TextFormat::kNone;
  for (const auto& [binary, format] :
       {std::make_pair(".parquet", TextFormat::kParquet),
        std::make_pair(".bin", TextFormat::kLlmc),
        std::make_pair(".idx", TextFormat::kMegatron)}) {
    if (absl::EqualsIgnoreCase(suffix, binary)) return format;
  }
  return TextFormat::kNone;
}

bool HoldsTokens(TextFormat format) {
  return format == TextFormat::kLlmc || format == TextFormat::kMegatron;
}

}  // namespace cubit
