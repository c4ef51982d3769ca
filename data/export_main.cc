// SPDX-License-Identifier: Apache-2.0
//
// //data:export: token shards to token files of other programs.

#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

#include "data/token_file_writer.h"
#include "runtime/command_line.h"
#include "runtime/file_system.h"
#include "runtime/logging.h"
#include "runtime/status_macros.h"

ABSL_FLAG(std::string, to, "",
          "\"llm.c\" (OUT_SPLIT_000000.bin and on) or \"megatron\" "
          "(OUT_SPLIT.bin and .idx); needed");
ABSL_FLAG(std::string, out, "",
          "what the names of the files begin with, folder included; needed");
ABSL_FLAG(std::string, split, "",
          "\"train\" or \"validation\"; default: each that the data set has");
ABSL_FLAG(int64_t, file_tokens, cubit::TokenExportOptions().file_tokens,
          "llm.c: tokens of a file at most, unless one document is longer");

namespace cubit {
namespace {

constexpr char kUsage[] =
    R"(Writes token shards as the token files of llm.c or Megatron.

  export DIR --to=llm.c --out=PREFIX
  export DIR --to=megatron --out=PREFIX

llm.c gets the stream as it is, with the end of text before every document;
Megatron a sequence for every document, with the end of text behind it.
//data:prepare reads both back to the same documents.

Examples:
  bazel run //data:export -- shards --to=llm.c --out=llmc/edu_fineweb
  bazel run //data:export -- shards --to=megatron --out=megatron/edu_text_document

Exit status: 0 done; 1 a wrong request or bad input; 2 failed, can be repeated.
)";

absl::StatusOr<TokenExportOptions> OptionsFromFlags(
    const std::vector<std::string>& folders) {
  if (folders.size() != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(folders.size(),
                     " folders given, 1 wanted: a folder of "
                     "token shards"));
  }
  TokenExportOptions options;
  options.data = folders[0];
  options.out = absl::GetFlag(FLAGS_out);
  if (options.out.empty()) {
    return absl::InvalidArgumentError(
        "--out is missing: what the names of the files begin with");
  }
  const std::string to = absl::GetFlag(FLAGS_to);
  if (to != "llm.c" && to != "megatron") {
    return absl::InvalidArgumentError(
        absl::StrCat("--to is \"", to, "\"; \"llm.c\" or \"megatron\" wanted"));
  }
  options.format =
      to == "llm.c" ? TokenFileFormat::kLlmc : TokenFileFormat::kMegatron;
  options.file_tokens = absl::GetFlag(FLAGS_file_tokens);
  return options;
}

absl::Status ExportSplit(TokenExportOptions options, const std::string& split) {
  options.split = split;
  CUBIT_ASSIGN_OR_RETURN(const TokenExportReport report,
                         ExportTokens(options, FileSystem::Posix()));
  LogInfo(absl::StrFormat("%s: %d documents, %d tokens: %s", split,
                          report.documents, report.tokens,
                          absl::StrJoin(report.files, " ")));
  return absl::OkStatus();
}

absl::Status Run(const std::vector<std::string>& folders) {
  CUBIT_ASSIGN_OR_RETURN(const TokenExportOptions options,
                         OptionsFromFlags(folders));
  const std::string split = absl::GetFlag(FLAGS_split);
  if (!split.empty()) return ExportSplit(options, split);
  CUBIT_RETURN_IF_ERROR(ExportSplit(options, "train"));
  const absl::Status status = ExportSplit(options, "validation");
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  return cubit::ExitStatus(
      cubit::Run(cubit::ParseCommandLine(argc, argv, cubit::kUsage)));
}
