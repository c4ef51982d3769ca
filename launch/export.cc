// SPDX-License-Identifier: Apache-2.0

#include "launch/export.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include <nlohmann/json.hpp>

#include "launch/config.h"
#include "launch/export_config.h"
#include "launch/export_tokenizer.h"
#include "launch/export_values.h"
#include "launch/modeling_file.h"
#include "parallel/safetensors.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

using Json = nlohmann::ordered_json;

// One weight file and what it holds.
struct WeightFile {
  std::vector<const Parameter*> parameters;
  std::vector<SafetensorsEntry> entries;
  int64_t size_bytes = 0;
};

std::vector<WeightFile> PlanFiles(const LanguageModel& model,
                                  const ExportOptions& options) {
  std::vector<WeightFile> plan;
  for (const Parameter& parameter : model.parameters().parameters()) {
    SafetensorsEntry entry;
    entry.name = HuggingFaceName(parameter.name);
    entry.dtype = options.dtype;
    entry.shape = parameter.value.shape();
    const int64_t bytes =
        parameter.value.num_elements() * SizeOf(options.dtype);
    if (plan.empty() ||
        plan.back().size_bytes + bytes > options.max_file_bytes) {
      plan.emplace_back();
    }
    plan.back().parameters.push_back(&parameter);
    plan.back().entries.push_back(std::move(entry));
    plan.back().size_bytes += bytes;
  }
  return plan;
}

std::string FileName(size_t index, size_t count) {
  if (count == 1) return kWeightsFile;
  return absl::StrFormat("model-%05d-of-%05d.safetensors", index + 1, count);
}

std::string IndexText(const std::vector<WeightFile>& plan) {
  Json weight_map = Json::object();
  int64_t bytes = 0;
  for (size_t i = 0; i < plan.size(); ++i) {
    bytes += plan[i].size_bytes;
    for (const SafetensorsEntry& entry : plan[i].entries) {
      weight_map[entry.name] = FileName(i, plan.size());
    }
  }
  Json json;
  json["metadata"] = {{"total_size", bytes}};
  json["weight_map"] = std::move(weight_map);
  return json.dump(2) + "\n";
}

absl::Status WriteWeights(const WeightFile& plan, DType dtype,
                          const std::string& path, FileSystem& files) {
  CUBIT_ASSIGN_OR_RETURN(
      SafetensorsWriter writer,
      SafetensorsWriter::Create(files, path, plan.entries, {{"format", "pt"}}));
  Stream stream;
  for (const Parameter* parameter : plan.parameters) {
    const std::vector<char> bytes = ExportedBytes(*parameter, dtype, stream);
    CUBIT_RETURN_IF_ERROR(writer.Append(
        ConstTensor(bytes.data(), dtype, parameter->value.shape())));
  }
  return writer.Finish();
}

std::string GenerationConfig(const Tokenizer& tokenizer) {
  Json json;
  json["bos_token_id"] = tokenizer.eot_id();
  json["eos_token_id"] = tokenizer.eot_id();
  json["pad_token_id"] = tokenizer.eot_id();
  return json.dump(2) + "\n";
}

absl::Status WriteFolder(const CheckpointModel& model,
                         const std::string& folder,
                         const ExportOptions& options, FileSystem& files) {
  const ModelConfig& config = model.model->config();
  const std::vector<WeightFile> plan = PlanFiles(*model.model, options);
  for (size_t i = 0; i < plan.size(); ++i) {
    CUBIT_RETURN_IF_ERROR(
        WriteWeights(plan[i], options.dtype,
                     JoinPath(folder, FileName(i, plan.size())), files));
  }
  CUBIT_ASSIGN_OR_RETURN(
      std::vector<TokenizerFile> texts,
      HuggingFaceTokenizer(*model.tokenizer, config.seq_len));
  if (plan.size() > 1) texts.push_back({kWeightsIndexFile, IndexText(plan)});
  texts.push_back({kModelConfigFile,
                   HuggingFaceConfig(config, *model.tokenizer, options.dtype)});
  texts.push_back(
      {"generation_config.json", GenerationConfig(*model.tokenizer)});
  texts.push_back({kModelingFile, std::string(ModelingFileText())});
  texts.push_back({kRunConfigFile, ResolvedText(model.config)});
  for (const TokenizerFile& text : texts) {
    CUBIT_RETURN_IF_ERROR(
        WriteFileAtomically(files, JoinPath(folder, text.name), text.contents));
  }
  return files.SyncFolder(folder);
}

absl::Status CheckOut(const std::string& out, FileSystem& files) {
  if (!files.Exists(out)) return absl::OkStatus();
  const absl::StatusOr<std::vector<std::string>> names = files.List(out);
  if (names.ok() && names->empty()) return absl::OkStatus();
  return absl::AlreadyExistsError(absl::StrCat(
      out, ": exists and is not an empty folder; give a new folder as --out"));
}

}  // namespace

absl::Status ExportHuggingFace(const CheckpointModel& model,
                               const std::string& out,
                               const ExportOptions& options,
                               FileSystem& files) {
  CUBIT_RETURN_IF_ERROR(CheckOut(out, files));
  const std::string aside = absl::StrCat(out, ".tmp");
  if (files.Exists(aside)) CUBIT_RETURN_IF_ERROR(files.Remove(aside));
  CUBIT_RETURN_IF_ERROR(files.CreateFolders(aside));
  absl::Status status = WriteFolder(model, aside, options, files);
  if (status.ok()) status = files.Rename(aside, out);
  if (!status.ok()) {
    (void)files.Remove(aside);  // the first error is what counts
    return status;
  }
  return files.SyncFolder(FolderOf(out));
}

}  // namespace cubit
