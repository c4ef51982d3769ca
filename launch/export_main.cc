// SPDX-License-Identifier: Apache-2.0
//
// //launch:export: a checkpoint in a format that other programs read.

#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "launch/checkpoint_model.h"
#include "launch/export.h"
#include "launch/export_llmc.h"
#include "runtime/command_line.h"
#include "runtime/file_system.h"
#include "runtime/status_macros.h"

ABSL_FLAG(std::string, checkpoint, "",
          "run folder, its checkpoints folder, or one step of it");
ABSL_FLAG(std::string, out, "",
          "folder to make (with --to=llm.c, the file); must not exist");
ABSL_FLAG(std::string, to, "huggingface",
          "huggingface, or llm.c: a .bin file, for a Transformer of GPT-2's "
          "architecture");
ABSL_FLAG(std::string, dtype, "float32",
          "of the weights: float32 (bit for bit) or bfloat16 (half the size)");

namespace cubit {
namespace {

constexpr char kUsage[] = R"(Exports a checkpoint for other programs to read.

A Hugging Face folder has safetensors, config.json, tokenizer files and one
modelling file. transformers loads it without a network:
  AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)
//launch:train --init_from=FOLDER reads the weights back.

Examples:
  bazel run //launch:export -- --checkpoint=runs/tiny --out=exported
  bazel run //launch:export -- --checkpoint=runs/tiny/checkpoints/step_00001200 \
      --out=exported-bf16 --dtype=bfloat16
  bazel run //launch:export -- --checkpoint=runs/gpt2 --to=llm.c --out=gpt2.bin
)";

absl::StatusOr<DType> DTypeFromFlag() {
  const std::string dtype = absl::GetFlag(FLAGS_dtype);
  if (dtype == "float32") return DType::kFloat32;
  if (dtype == "bfloat16") return DType::kBFloat16;
  return absl::InvalidArgumentError(
      absl::StrCat("--dtype is \"", dtype, "\"; give float32 or bfloat16"));
}

absl::Status Export() {
  ExportOptions options;
  CUBIT_ASSIGN_OR_RETURN(options.dtype, DTypeFromFlag());
  const std::string to = absl::GetFlag(FLAGS_to);
  if (to != "huggingface" && to != "llm.c") {
    return absl::InvalidArgumentError(
        absl::StrCat("--to is \"", to, "\"; give huggingface or llm.c"));
  }
  // Beside a folder named with a final slash lies what would be inside it.
  std::string out = absl::GetFlag(FLAGS_out);
  while (out.size() > 1 && out.back() == '/') out.pop_back();
  if (absl::GetFlag(FLAGS_checkpoint).empty() || out.empty()) {
    return absl::InvalidArgumentError(
        "--checkpoint or --out is missing; for example "
        "--checkpoint=runs/tiny --out=exported");
  }
  CUBIT_ASSIGN_OR_RETURN(const CheckpointModel loaded,
                         LoadCheckpointModel(absl::GetFlag(FLAGS_checkpoint)));
  FileSystem& files = FileSystem::Posix();
  CUBIT_RETURN_IF_ERROR(to == "llm.c"
                            ? ExportLlmC(loaded, out, options.dtype, files)
                            : ExportHuggingFace(loaded, out, options, files));
  absl::PrintF("step %d, %d parameters: %s\n", loaded.info.step,
               loaded.model->parameters().num_elements(), out);
  return absl::OkStatus();
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  const std::vector<std::string> rest =
      cubit::ParseCommandLine(argc, argv, cubit::kUsage);
  if (!rest.empty()) {
    return cubit::ExitStatus(absl::InvalidArgumentError(absl::StrCat(
        "\"", rest[0], "\" is not a flag; --help lists all flags")));
  }
  return cubit::ExitStatus(cubit::Export());
}
