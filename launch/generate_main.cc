// SPDX-License-Identifier: Apache-2.0
//
// //launch:generate: text from a checkpoint.

#include <cstdio>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "launch/checkpoint_model.h"
#include "launch/prompts.h"
#include "launch/sampler.h"
#include "launch/text_printer.h"
#include "runtime/command_line.h"
#include "runtime/logging.h"
#include "runtime/status_macros.h"

ABSL_FLAG(std::string, checkpoint, "",
          "run folder, its checkpoints folder, or one step of it");
ABSL_FLAG(std::string, prompt, "",
          "text to continue; may be given any number of times; none: a new "
          "document");
ABSL_FLAG(std::string, prompts_file, "",
          "more prompts: one a line, or a .jsonl file with the field "
          "\"prompt\"; plain, .gz, .xz or .zst");
ABSL_FLAG(int64_t, max_tokens, 200, "new tokens at most, for each prompt");
ABSL_FLAG(double, temperature, 0.8, "0: always the most likely token");
ABSL_FLAG(int64_t, top_k, 0, "choose among the k most likely; 0: all");
ABSL_FLAG(double, top_p, 1.0,
          "choose among the smallest set of tokens with this probability");
ABSL_FLAG(uint64_t, seed, 0, "of the choice of tokens");
ABSL_FLAG(std::string, stop, "",
          "a text ends before the first of these; may be given any number of "
          "times");
ABSL_FLAG(bool, json, false,
          "print one JSON object a prompt: prompt, text, finish_reason, "
          "tokens");

namespace cubit {
namespace {

constexpr char kUsage[] = R"(Continues prompts with a trained model.

Examples:
  bazel run //launch:generate -- --checkpoint=runs/tiny --prompt="The "
  bazel run //launch:generate -- --checkpoint=runs/tiny/checkpoints/step_00001200 \
      --temperature=0 --max_tokens=50
  bazel run //launch:generate -- --checkpoint=runs/tiny --prompt="One " \
      --prompt="Two " --stop=$'\n' --top_k=40 --top_p=0.95 --seed=7
  bazel run //launch:generate -- --checkpoint=runs/tiny \
      --prompts_file=prompts.jsonl --json > texts.jsonl

A text depends on the model, its prompt and the flags alone: the same with other
prompts beside it, bit for bit.
)";

// What the user gave more than once.
struct RepeatedFlags {
  std::vector<std::string> prompts;
  std::vector<std::string> stop;
};

absl::StatusOr<SamplingOptions> OptionsFromFlags(
    const std::vector<std::string>& stop) {
  SamplingOptions options;
  options.temperature = absl::GetFlag(FLAGS_temperature);
  options.top_k = absl::GetFlag(FLAGS_top_k);
  options.top_p = absl::GetFlag(FLAGS_top_p);
  options.seed = absl::GetFlag(FLAGS_seed);
  options.max_tokens = absl::GetFlag(FLAGS_max_tokens);
  options.stop = stop;
  CUBIT_RETURN_IF_ERROR(CheckSamplingOptions(options));
  return options;
}

absl::StatusOr<std::vector<std::string>> Prompts(
    std::vector<std::string> prompts) {
  const std::string file = absl::GetFlag(FLAGS_prompts_file);
  if (!file.empty()) {
    CUBIT_ASSIGN_OR_RETURN(const std::vector<std::string> more,
                           ReadPrompts(file));
    prompts.insert(prompts.end(), more.begin(), more.end());
  }
  if (prompts.empty()) prompts.emplace_back();
  return prompts;
}

// Beyond the trained length, positions were never seen.
void WarnOfLength(const CheckpointModel& loaded,
                  const std::vector<std::string>& prompts,
                  const SamplingOptions& options) {
  size_t longest = 0;
  for (const std::string& prompt : prompts) {
    std::vector<int32_t> ids;
    loaded.tokenizer->Encode(prompt, &ids);
    longest = std::max(longest, ids.size());
  }
  const int64_t trained = loaded.config.model().seq_len();
  const int64_t length = static_cast<int64_t>(longest) + 1 + options.max_tokens;
  if (length <= trained) return;
  LogWarning(absl::StrFormat(
      "prompt and new tokens may reach %d, but the model was trained on %d; "
      "text beyond that may be poor",
      length, trained));
}

absl::Status Generate(const RepeatedFlags& repeated) {
  CUBIT_ASSIGN_OR_RETURN(const SamplingOptions options,
                         OptionsFromFlags(repeated.stop));
  if (absl::GetFlag(FLAGS_checkpoint).empty()) {
    return absl::InvalidArgumentError(
        "--checkpoint is missing; give a run's folder, for example "
        "--checkpoint=runs/tiny");
  }
  CUBIT_ASSIGN_OR_RETURN(const std::vector<std::string> prompts,
                         Prompts(repeated.prompts));
  CUBIT_ASSIGN_OR_RETURN(const CheckpointModel loaded,
                         LoadCheckpointModel(absl::GetFlag(FLAGS_checkpoint)));
  WarnOfLength(loaded, prompts, options);
  TextPrinter printer(prompts, absl::GetFlag(FLAGS_json), stdout);
  Stream stream;
  return GenerateTexts(
             *loaded.model, *loaded.tokenizer, prompts, options, stream,
             [&](size_t index, absl::string_view piece) {
               printer.OnText(index, piece);
             },
             [&](size_t index, const GeneratedText& text) {
               printer.OnFinish(index, text);
             })
      .status();
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  cubit::RepeatedFlags repeated;
  repeated.prompts = cubit::TakeRepeatedFlag("prompt", &argc, argv);
  repeated.stop = cubit::TakeRepeatedFlag("stop", &argc, argv);
  const std::vector<std::string> rest =
      cubit::ParseCommandLine(argc, argv, cubit::kUsage);
  if (!rest.empty()) {
    return cubit::ExitStatus(absl::InvalidArgumentError(
        absl::StrCat("\"", rest[0],
                     "\" is not a flag; did you forget the "
                     "quotes of --prompt? --help lists all flags")));
  }
  return cubit::ExitStatus(cubit::Generate(repeated));
}
