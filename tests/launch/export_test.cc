// SPDX-License-Identifier: Apache-2.0

#include "launch/export.h"

#include <cmath>
#include <cstring>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"
#include <nlohmann/json.hpp>

#include "data/tokenizer.h"
#include "launch/config.h"
#include "launch/export_config.h"
#include "launch/import.h"
#include "launch/modeling_file.h"
#include "parallel/safetensors.h"
#include "tests/data/small_vocabulary.h"
#include "tests/launch/checkpoint_models.h"
#include "tests/testing/fault_file_system.h"
#include "tests/testing/program.h"

namespace cubit {
namespace {

using testing::MakeSmallModel;
using testing::ModelKinds;
using testing::NewFolder;
using testing::ReadText;
using testing::Weights;
using testing::WriteText;

// Without waiting for the disk.
FileSystem& Files() {
  static FaultFileSystem* const files =
      new FaultFileSystem(&FileSystem::Posix(), FaultPlan());
  return *files;
}

// The weights of a folder in a model made from the folder's configuration.
std::vector<float> ReadBack(const std::string& folder) {
  const std::string text = ReadText(folder + "/" + kRunConfigFile);
  auto tokenizer = LoadTokenizer(folder);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  CheckpointModel other = MakeSmallModel(text, 99, *std::move(tokenizer));
  Stream stream;
  const absl::Status status = ImportHuggingFace(
      folder, *other.tokenizer, Files(), other.model.get(), stream);
  EXPECT_TRUE(status.ok()) << status;
  return Weights(other);
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class ExportKindsTest : public ::testing::TestWithParam<std::string> {};

TEST_P(ExportKindsTest, RoundTripGivesTheSameBits) {
  CheckpointModel model = MakeSmallModel(GetParam(), 1);
  // What a conversion through numbers would lose.
  float* values = model.model->parameters().flat_values().data<float>();
  values[0] = -0.0f;
  values[1] = 1e-42f;
  values[2] = INFINITY;
  const std::string folder = NewFolder() + "/exported";
  const absl::Status status = ExportHuggingFace(model, folder, {}, Files());
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(SameBits(ReadBack(folder), Weights(model)));
}

INSTANTIATE_TEST_SUITE_P(Kinds, ExportKindsTest,
                         ::testing::ValuesIn(ModelKinds()));

TEST(Export, NamesTensorsAndFilesAsTransformersWantsThem) {
  const CheckpointModel model = MakeSmallModel("", 1);
  const std::string folder = NewFolder() + "/exported";
  ASSERT_TRUE(ExportHuggingFace(model, folder, {}, Files()).ok());
  EXPECT_EQ(
      *Files().List(folder),
      (std::vector<std::string>{"byte_tokenizer.json", "config.json",
                                "config.textproto", "generation_config.json",
                                "model.safetensors", "modeling_cubit.py",
                                "tokenizer.json", "tokenizer_config.json"}));
  const auto header =
      ReadSafetensorsHeader(Files(), folder + "/model.safetensors");
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->metadata.at("format"), "pt");
  const SafetensorsEntry* embedding = header->Find("model.embed_tokens.weight");
  ASSERT_NE(embedding, nullptr);
  EXPECT_EQ(embedding->shape, (Shape{320, 16}));
  for (const char* name :
       {"lm_head.weight", "model.norm.bias", "model.layers.1.mixer.log_lambda",
        "model.layers.0.mixer.r_proj.weight",
        "model.layers.0.mlp.down_proj.bias"}) {
    EXPECT_NE(header->Find(name), nullptr) << name;
  }
  const auto config =
      nlohmann::json::parse(ReadText(folder + "/" + kModelConfigFile));
  EXPECT_EQ(config["model_type"], "cubit");
  EXPECT_EQ(config["auto_map"]["AutoModelForCausalLM"],
            "modeling_cubit.CubitForCausalLM");
  EXPECT_EQ(config["mixer"], "cubit");
  EXPECT_EQ(config["vocab_size"], 320);
  EXPECT_EQ(config["valid_vocab_size"], 257);
  EXPECT_EQ(config["dtype"], "float32");
  EXPECT_NE(ReadText(folder + "/" + kModelingFile).find("class CubitForCausal"),
            std::string::npos);
}

// Where the two are written apart, a new field or parameter is easily
// forgotten in one of them.
TEST(Export, ModelingFileKnowsEveryFieldAndParameter) {
  const std::string text(ModelingFileText());
  const auto knows = [&](const std::string& word) {
    return text.find("self." + word + " =") != std::string::npos ||
           text.find("\"" + word + "\"") != std::string::npos;
  };
  const std::set<std::string> of_transformers = {
      "model_type",   "architectures",       "auto_map",
      "dtype",        "tie_word_embeddings", "bos_token_id",
      "eos_token_id", "pad_token_id",        "tokenizer_sha256"};
  for (const std::string& kind : ModelKinds()) {
    const CheckpointModel model = MakeSmallModel(kind, 1);
    const auto config = nlohmann::json::parse(HuggingFaceConfig(
        model.model->config(), *model.tokenizer, DType::kFloat32));
    for (const auto& field : config.items()) {
      if (of_transformers.count(field.key()) > 0) continue;
      EXPECT_TRUE(knows(field.key())) << field.key();
    }
    EXPECT_TRUE(knows(config["mixer"])) << config["mixer"];
    for (const Parameter& parameter : model.model->parameters().parameters()) {
      for (absl::string_view part :
           absl::StrSplit(HuggingFaceName(parameter.name), '.')) {
        if (absl::ascii_isdigit(part[0])) continue;
        EXPECT_TRUE(knows(std::string(part))) << parameter.name;
      }
    }
  }
}

TEST(Export, TiedEmbeddingsAreStoredOnce) {
  const CheckpointModel model =
      MakeSmallModel("model { tied_embeddings: true }", 1);
  const std::string folder = NewFolder() + "/exported";
  ASSERT_TRUE(ExportHuggingFace(model, folder, {}, Files()).ok());
  const auto header =
      ReadSafetensorsHeader(Files(), folder + "/model.safetensors");
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->Find("lm_head.weight"), nullptr);
}

TEST(Export, SeveralFilesComeWithAnIndex) {
  const CheckpointModel model = MakeSmallModel("", 1);
  const std::string folder = NewFolder() + "/exported";
  ExportOptions options;
  options.max_file_bytes = 8192;
  ASSERT_TRUE(ExportHuggingFace(model, folder, options, Files()).ok());
  const auto index =
      nlohmann::json::parse(ReadText(folder + "/" + kWeightsIndexFile));
  const std::string file = index["weight_map"]["lm_head.weight"];
  EXPECT_TRUE(ReadSafetensorsHeader(Files(), folder + "/" + file)
                  ->Find("lm_head.weight") != nullptr);
  EXPECT_EQ(index["metadata"]["total_size"],
            model.model->parameters().num_elements() * 4);
  EXPECT_FALSE(Files().Exists(folder + "/model.safetensors"));
  EXPECT_TRUE(SameBits(ReadBack(folder), Weights(model)));
}

TEST(Export, BFloat16RoundsToNearestEven) {
  CheckpointModel model = MakeSmallModel("", 1);
  float* values = model.model->parameters().flat_values().data<float>();
  values[0] = 1.00390625f;    // half way between 1 and 1.0078125: to 1
  values[1] = 1.01171875f;    // half way, the lower one odd: up
  values[2] = 3.3961775e38f;  // beyond the largest bfloat16: infinity
  values[3] = NAN;
  const std::string folder = NewFolder() + "/exported";
  ExportOptions options;
  options.dtype = DType::kBFloat16;
  ASSERT_TRUE(ExportHuggingFace(model, folder, options, Files()).ok());
  const std::vector<float> read = ReadBack(folder);
  EXPECT_EQ(read[0], 1.0f);
  EXPECT_EQ(read[1], 1.015625f);
  EXPECT_TRUE(std::isinf(read[2]));
  EXPECT_TRUE(std::isnan(read[3]));
  const std::vector<float> wanted = Weights(model);
  for (size_t i = 4; i < read.size(); ++i) {
    ASSERT_LE(std::fabs(read[i] - wanted[i]), std::fabs(wanted[i]) / 256) << i;
  }
}

TEST(Export, TokenizerGivesTheSameIdsInEveryFormat) {
  const SmallVocabulary vocabulary = MakeSmallVocabulary();
  const std::string source = NewFolder();
  ASSERT_TRUE(Files().CreateFolders(source + "/pair").ok());
  WriteText(source + "/pair/encoder.json", vocabulary.encoder_json);
  WriteText(source + "/pair/vocab.bpe", vocabulary.vocab_bpe);
  WriteText(source + "/t.tiktoken", vocabulary.tiktoken);
  WriteText(source + "/tokenizer.json", vocabulary.tokenizer_json);
  for (const char* name : {"/pair", "/t.tiktoken", "/tokenizer.json"}) {
    auto tokenizer = LoadTokenizer(source + name);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const std::string sha256 = (*tokenizer)->sha256();
    const CheckpointModel model = MakeSmallModel("", 1, *std::move(tokenizer));
    const std::string folder = NewFolder() + "/exported";
    const absl::Status status = ExportHuggingFace(model, folder, {}, Files());
    ASSERT_TRUE(status.ok()) << status;
    // The folder has no other tokenizer file than Hugging Face's.
    const auto again = LoadTokenizer(folder + "/tokenizer.json");
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ((*again)->sha256(), sha256) << name;
  }
}

TEST(Export, RefusesAFolderThatHoldsSomething) {
  const CheckpointModel model = MakeSmallModel("", 1);
  const std::string folder = NewFolder();
  ASSERT_TRUE(ExportHuggingFace(model, folder, {}, Files()).ok())
      << "an empty folder is taken";
  const absl::Status status = ExportHuggingFace(model, folder, {}, Files());
  EXPECT_TRUE(absl::IsAlreadyExists(status)) << status;
  EXPECT_NE(status.message().find("--out"), std::string::npos);
}

TEST(Export, AFailedCallLeavesNoFolder) {
  const CheckpointModel model = MakeSmallModel("", 1);
  const std::string folder = NewFolder() + "/exported";
  int64_t calls = 0;
  for (int64_t n = 1;; ++n) {
    FaultPlan plan;
    plan.fail_at = n;
    FaultFileSystem files(&FileSystem::Posix(), plan);
    const absl::Status status = ExportHuggingFace(model, folder, {}, files);
    if (!files.fault_happened()) {
      EXPECT_TRUE(status.ok()) << status;
      break;
    }
    // Only the last call comes after the folder is there.
    EXPECT_FALSE(status.ok()) << files.failed_call();
    if (Files().Exists(folder)) {
      EXPECT_EQ(files.failed_call().find("sync folder"), 0u)
          << files.failed_call();
      ASSERT_TRUE(Files().Remove(folder).ok());
    }
    calls = n;
  }
  EXPECT_GT(calls, 20);
  EXPECT_TRUE(SameBits(ReadBack(folder), Weights(model)));
}

}  // namespace
}  // namespace cubit
