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
#include "launch/sampler.h"
#include "runtime/command_line.h"
#include "runtime/logging.h"
#include "runtime/status_macros.h"

ABSL_FLAG(std::string, checkpoint, "",
          "run folder, its checkpoints folder, or one step of it");
ABSL_FLAG(std::string, prompt, "", "text to continue; empty: a new document");
ABSL_FLAG(int64_t, max_tokens, 200, "new tokens at most");
ABSL_FLAG(double, temperature, 0.8, "0: always the most likely token");
ABSL_FLAG(int64_t, top_k, 0, "choose among the k most likely; 0: all");
ABSL_FLAG(double, top_p, 1.0,
          "choose among the smallest set of tokens with this probability");
ABSL_FLAG(uint64_t, seed, 0, "of the choice of tokens");

namespace cubit {
namespace {

constexpr char kUsage[] = R"(Continues a prompt with a trained model.

Examples:
  bazel run //launch:generate -- --checkpoint=runs/tiny --prompt="The "
  bazel run //launch:generate -- --checkpoint=runs/tiny/checkpoints/step_00001200 \
      --temperature=0 --max_tokens=50
)";

absl::StatusOr<SamplingOptions> OptionsFromFlags() {
  SamplingOptions options;
  options.temperature = absl::GetFlag(FLAGS_temperature);
  options.top_k = absl::GetFlag(FLAGS_top_k);
  options.top_p = absl::GetFlag(FLAGS_top_p);
  options.seed = absl::GetFlag(FLAGS_seed);
  options.max_tokens = absl::GetFlag(FLAGS_max_tokens);
  if (!(options.temperature >= 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--temperature is ", options.temperature, "; give 0 or more"));
  }
  if (options.top_k < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--top_k is ", options.top_k, "; give 0 or more"));
  }
  if (!(options.top_p > 0 && options.top_p <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--top_p is ", options.top_p, "; give a number in (0, 1]"));
  }
  if (options.max_tokens < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--max_tokens is ", options.max_tokens, "; give 1 or more"));
  }
  return options;
}

absl::Status Generate() {
  CUBIT_ASSIGN_OR_RETURN(const SamplingOptions options, OptionsFromFlags());
  if (absl::GetFlag(FLAGS_checkpoint).empty()) {
    return absl::InvalidArgumentError(
        "--checkpoint is missing; give a run's folder, for example "
        "--checkpoint=runs/tiny");
  }
  CUBIT_ASSIGN_OR_RETURN(const CheckpointModel loaded,
                         LoadCheckpointModel(absl::GetFlag(FLAGS_checkpoint)));
  const std::string prompt = absl::GetFlag(FLAGS_prompt);
  const int64_t trained = loaded.config.model().seq_len();
  std::vector<int32_t> prompt_ids;
  loaded.tokenizer->Encode(prompt, &prompt_ids);
  const int64_t length =
      static_cast<int64_t>(prompt_ids.size()) + 1 + options.max_tokens;
  if (length > trained) {
    LogWarning(absl::StrFormat(
        "prompt and new tokens may reach %d, but the model was trained on %d; "
        "text beyond that may be poor",
        length, trained));
  }
  std::fputs(prompt.c_str(), stdout);
  Stream stream;
  CUBIT_RETURN_IF_ERROR(
      GenerateText(*loaded.model, *loaded.tokenizer, prompt, options, stream,
                   [](absl::string_view piece) {
                     std::fwrite(piece.data(), 1, piece.size(), stdout);
                     std::fflush(stdout);
                   })
          .status());
  std::fputc('\n', stdout);
  return absl::OkStatus();
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  const std::vector<std::string> rest =
      cubit::ParseCommandLine(argc, argv, cubit::kUsage);
  if (!rest.empty()) {
    return cubit::ExitStatus(absl::InvalidArgumentError(
        absl::StrCat("\"", rest[0],
                     "\" is not a flag; did you forget the "
                     "quotes of --prompt? --help lists all flags")));
  }
  return cubit::ExitStatus(cubit::Generate());
}
