// SPDX-License-Identifier: Apache-2.0

#include "launch/export_llmc.h"

#include <array>
#include <cstdint>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "launch/export_values.h"
#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr int32_t kMagic = 20240326;
constexpr int32_t kVersionFloat32 = 3;
constexpr int32_t kVersionBFloat16 = 5;
constexpr double kEpsilon = 1e-5;

using Header = std::array<int32_t, 256>;

Header MakeHeader(const ModelConfig& config, DType dtype) {
  Header header = {};
  const int64_t values[] = {
      kMagic,
      dtype == DType::kBFloat16 ? kVersionBFloat16 : kVersionFloat32,
      config.seq_len,
      config.valid_vocab,
      config.num_layers,
      config.num_heads,
      config.hidden_size,
      config.vocab_size};
  for (size_t i = 0; i < std::size(values); ++i) {
    header[i] = static_cast<int32_t>(values[i]);
  }
  return header;
}

// What of `config` llm.c has no way to compute.
std::vector<std::string> Obstacles(const ModelConfig& config) {
  std::vector<std::string> list;
  const auto require = [&](bool holds, const std::string& found,
                           const char* wanted) {
    if (!holds) list.push_back(absl::StrCat(found, " (llm.c: ", wanted, ")"));
  };
  require(config.mixer == "softmax",
          absl::StrCat("model.mixer is ", config.mixer), "softmax");
  require(config.mixer != "softmax" || !config.softmax.qk_norm,
          "model.softmax.qk_norm is true", "no norm of q and k");
  require(config.positional_encoding == PositionKind::kNone,
          "model.positional_encoding is rope",
          "learned positions, of which none is the case of zeros");
  require(config.tied_embeddings, "model.tied_embeddings is false",
          "one matrix embeds and predicts");
  require(config.norm == NormKind::kLayerNorm, "model.norm is rms_norm",
          "layer_norm");
  require(config.norm_epsilon == kEpsilon,
          absl::StrCat("model.norm_epsilon is ", config.norm_epsilon), "1e-5");
  require(config.mlp == MlpKind::kGelu, "model.mlp is swiglu", "gelu");
  require(config.ffn_hidden_size == 4 * config.hidden_size,
          absl::StrCat("model.ffn_hidden_size is ", config.ffn_hidden_size),
          "four times hidden_size");
  return list;
}

class LlmCWriter {
 public:
  LlmCWriter(const LanguageModel& model, DType dtype, WritableFile* file)
      : model_(model), dtype_(dtype), file_(file) {}

  absl::Status Write() {
    const ModelConfig& config = model_.config();
    const int64_t width = config.hidden_size;
    const Header header = MakeHeader(config, dtype_);
    CUBIT_RETURN_IF_ERROR(file_->Append(header.data(), sizeof(header)));
    CUBIT_RETURN_IF_ERROR(WriteParameter("embedding.weight", 0));
    CUBIT_RETURN_IF_ERROR(WriteZeros(config.seq_len * width));  // positions
    const std::vector<std::string> qkv = {"mixer.q_proj", "mixer.k_proj",
                                          "mixer.v_proj"};
    CUBIT_RETURN_IF_ERROR(WriteLayers({"mixer_norm"}, width));
    CUBIT_RETURN_IF_ERROR(WriteLayers(qkv, width));
    CUBIT_RETURN_IF_ERROR(WriteLayers({"mixer.o_proj"}, width));
    CUBIT_RETURN_IF_ERROR(WriteLayers({"mlp_norm"}, width));
    CUBIT_RETURN_IF_ERROR(WriteLayers({"mlp.up_proj"}, 4 * width));
    CUBIT_RETURN_IF_ERROR(WriteLayers({"mlp.down_proj"}, width));
    CUBIT_RETURN_IF_ERROR(WriteParameter("final_norm.weight", 0));
    return WriteParameter("final_norm.bias", width);
  }

 private:
  // Weights of `parts` of every layer, then their biases of `width` each.
  absl::Status WriteLayers(const std::vector<std::string>& parts,
                           int64_t width) {
    CUBIT_RETURN_IF_ERROR(WriteKind(parts, ".weight", 0));
    return WriteKind(parts, ".bias", width);
  }

  absl::Status WriteKind(const std::vector<std::string>& parts,
                         const char* kind, int64_t zeros) {
    for (int64_t layer = 0; layer < model_.config().num_layers; ++layer) {
      for (const std::string& part : parts) {
        CUBIT_RETURN_IF_ERROR(WriteParameter(
            absl::StrCat("layers.", layer, ".", part, kind), zeros));
      }
    }
    return absl::OkStatus();
  }

  // A parameter that the model may lack is `zeros` zeros; others are there
  // (CHECK).
  absl::Status WriteParameter(const std::string& name, int64_t zeros) {
    for (const Parameter& parameter : model_.parameters().parameters()) {
      if (parameter.name != name) continue;
      const std::vector<char> bytes = ExportedBytes(parameter, dtype_, stream_);
      return file_->Append(bytes.data(), static_cast<int64_t>(bytes.size()));
    }
    CUBIT_CHECK(zeros > 0) << name;
    return WriteZeros(zeros);
  }

  absl::Status WriteZeros(int64_t count) {
    const std::vector<char> bytes(static_cast<size_t>(count * SizeOf(dtype_)));
    return file_->Append(bytes.data(), static_cast<int64_t>(bytes.size()));
  }

  const LanguageModel& model_;
  const DType dtype_;
  WritableFile* file_;
  Stream stream_;
};

absl::Status WriteFile(const LanguageModel& model, DType dtype,
                       const std::string& path, FileSystem& files) {
  CUBIT_ASSIGN_OR_RETURN(const std::unique_ptr<WritableFile> file,
                         files.Create(path));
  CUBIT_RETURN_IF_ERROR(LlmCWriter(model, dtype, file.get()).Write());
  CUBIT_RETURN_IF_ERROR(file->Sync());
  return file->Close();
}

}  // namespace

absl::Status ExportLlmC(const CheckpointModel& model, const std::string& out,
                        DType dtype, FileSystem& files) {
  const std::vector<std::string> obstacles = Obstacles(model.model->config());
  if (!obstacles.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "llm.c computes GPT-2 alone, and this model is another: ",
        absl::StrJoin(obstacles, "; "), ". Export it with --to=huggingface"));
  }
  if (files.Exists(out)) {
    return absl::AlreadyExistsError(
        absl::StrCat(out, ": exists; give a new file as --out"));
  }
  const std::string aside = absl::StrCat(out, ".tmp");
  absl::Status status = WriteFile(*model.model, dtype, aside, files);
  if (status.ok()) status = files.Rename(aside, out);
  if (!status.ok()) {
    (void)files.Remove(aside);  // the first error is what counts
    return status;
  }
  return files.SyncFolder(FolderOf(out));
}

}  // namespace cubit
