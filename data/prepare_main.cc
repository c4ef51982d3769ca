// SPDX-License-Identifier: Apache-2.0
//
// //data:prepare: text, or token ids of other programs, to HDF5 token shards.

#include <algorithm>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

#include "data/prepare.h"
#include "data/reader_process.h"
#include "runtime/command_line.h"
#include "runtime/logging.h"

ABSL_FLAG(std::vector<std::string>, input, {},
          "files, folders or patterns, separated by commas; or give them "
          "without a flag");
ABSL_FLAG(std::string, out, "", "folder for the shards; needed");
ABSL_FLAG(std::string, tokenizer, "byte",
          "\"byte\", a Hugging Face tokenizer.json, a tiktoken file, or a "
          "folder with encoder.json and vocab.bpe; copied to OUT/tokenizer");
ABSL_FLAG(int, threads, 0, "that tokenise; 0: one per processor");
ABSL_FLAG(int64_t, shard_tokens, cubit::PrepareOptions().shard_tokens,
          "tokens of a shard at most, unless one document is longer");
ABSL_FLAG(double, validation_fraction,
          cubit::PrepareOptions().validation_fraction,
          "share of the documents for split \"validation\", at least one of "
          "two (of a single document its end); 0: none");
ABSL_FLAG(std::string, source, "",
          "where the text is from, kept in every shard; default: the names of "
          "the inputs");

namespace {

constexpr char kUsage[] =
    R"(Turns text into HDF5 token shards for training.

  prepare --input=FILES --out=DIR [--tokenizer=byte or PATH]

Inputs are .txt (one document a file), .jsonl (one JSON object a line, the text
in field "text"), both plain or .gz, .xz, .zst, and .parquet (column "text");
folders stand for all such files below them. Token ids come from llm.c's .bin and
Megatron's .idx, with the --tokenizer that made them. Where documents state their
token_count, as FineWeb's do, it is compared. Inputs are parsed in processes with
limits on memory and time. The same inputs and flags give the same shards, whatever --threads.
Set SOURCE_DATE_EPOCH (seconds since 1970) for files that are equal byte for
byte. A run that was interrupted continues when the same command is given again;
a folder that holds the same data set already is left as it is.

Examples:
  bazel run //data:prepare -- --input=book.txt --out=shards
  bazel run //data:prepare -- 'texts/*.jsonl.zst' --out=shards \
      --tokenizer=gpt2/tokenizer.json --threads=8
  ./bazelw run //data:prepare -- 'sample/10BT/*.parquet' --out=shards \
      --tokenizer=gpt2/tokenizer.json
  bazel run //data:prepare -- edu_fineweb_train_000001.bin --out=shards \
      --tokenizer=gpt2/tokenizer.json
  bazel run //data:prepare -- a.txt b.txt --out=all --validation_fraction=0
  bazel run //data:inspect -- shards --verify

Exit status: 0 done; 1 a wrong request, bad input or no room (nothing half
written is left); 2 the run failed and can be repeated.
)";

// "" unless SOURCE_DATE_EPOCH is set, as reproducible builds do.
std::string CreatedFromEnvironment() {
  const char* const text = std::getenv("SOURCE_DATE_EPOCH");
  int64_t seconds = 0;
  if (text == nullptr || !absl::SimpleAtoi(text, &seconds)) return "";
  return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::FromUnixSeconds(seconds),
                          absl::UTCTimeZone());
}

void PrintReport(const std::string& out, const cubit::PrepareReport& report) {
  if (report.was_complete) {
    cubit::LogInfo(absl::StrCat(
        out, ": holds this data set already, nothing to do (", report.shards,
        " shards, ", report.train_tokens + report.validation_tokens,
        " tokens)"));
    return;
  }
  cubit::LogInfo(absl::StrFormat(
      "%s: %d shards (%d of them from an earlier run), train %d documents with "
      "%d tokens, validation %d with %d; %.1f MB of text in %.1f s, %.2f MB/s",
      out, report.shards, report.reused_shards, report.train_documents,
      report.train_tokens, report.validation_documents,
      report.validation_tokens, static_cast<double>(report.text_bytes) / 1e6,
      report.seconds,
      static_cast<double>(report.text_bytes) / 1e6 /
          std::max(report.seconds, 1e-9)));
  const std::string counts = report.token_counts.ToString();
  if (!counts.empty()) cubit::LogInfo(counts);
}

}  // namespace

int main(int argc, char** argv) {
  if (const auto status = cubit::RunReaderProcess(argc, argv)) return *status;
  const std::vector<std::string> positional =
      cubit::ParseCommandLine(argc, argv, kUsage);
  cubit::PrepareOptions options;
  options.inputs = absl::GetFlag(FLAGS_input);
  options.inputs.insert(options.inputs.end(), positional.begin(),
                        positional.end());
  options.out = absl::GetFlag(FLAGS_out);
  const int processors = static_cast<int>(std::thread::hardware_concurrency());
  options.threads = absl::GetFlag(FLAGS_threads) == 0
                        ? std::max(1, processors)
                        : absl::GetFlag(FLAGS_threads);
  options.shard_tokens = absl::GetFlag(FLAGS_shard_tokens);
  options.validation_fraction = absl::GetFlag(FLAGS_validation_fraction);
  options.source = absl::GetFlag(FLAGS_source);
  options.created = CreatedFromEnvironment();
  options.isolate = true;
  options.show_progress = true;
  const auto report = cubit::Prepare(options, absl::GetFlag(FLAGS_tokenizer));
  if (report.ok()) {
    PrintReport(options.out, *report);
    return cubit::kExitDone;
  }
  const int exit_status = cubit::ExitStatus(report.status());
  // Whoever asked must make room first; trying again by itself is no use.
  const bool full = absl::IsResourceExhausted(report.status());
  if (full || exit_status == cubit::kExitFailed) {
    cubit::LogInfo(absl::StrCat("finished shards are kept; ",
                                full ? "free some space and " : "",
                                "give the same command again to continue"));
  }
  return full ? cubit::kExitWrongRequest : exit_status;
}
