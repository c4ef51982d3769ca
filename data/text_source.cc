// SPDX-License-Identifier: Apache-2.0

#include "data/text_source.h"

#include "absl/strings/str_cat.h"

#include "data/compressed_reader.h"
#include "data/document_reader.h"
#include "data/text_format.h"
#include "runtime/status_macros.h"

namespace cubit {

absl::StatusOr<std::unique_ptr<TextSource>> OpenTextFile(
    const std::string& path) {
  const TextFormat format = TextFormatOf(path);
  if (format == TextFormat::kNone) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": this kind of file is not read; wanted: ", kTextFormats));
  }
  if (format != TextFormat::kPlain && format != TextFormat::kJsonLines) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": does not hold text as lines or a whole"));
  }
  CUBIT_ASSIGN_OR_RETURN(auto reader, OpenCompressedFile(path));
  return format == TextFormat::kJsonLines
             ? MakeJsonLinesSource(std::move(reader), path)
             : MakePlainTextSource(std::move(reader), path);
}

}  // namespace cubit
