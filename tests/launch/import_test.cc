// SPDX-License-Identifier: Apache-2.0

#include "launch/import.h"

#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_replace.h"
#include "gtest/gtest.h"

#include "launch/export.h"
#include "launch/export_config.h"
#include "models/language_model.h"
#include "models/model_shard.h"
#include "parallel/safetensors.h"
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

class ImportTest : public ::testing::Test {
 protected:
  ImportTest() : folder_(NewFolder()), model_(MakeSmallModel("", 2)) {
    const absl::Status status =
        ExportHuggingFace(MakeSmallModel("", 1), folder_, {}, Files());
    EXPECT_TRUE(status.ok()) << status;
    before_ = Weights(model_);
  }

  // Imports and expects an error of `code` with all of `words`; nothing may
  // have changed.
  void ExpectRefused(absl::StatusCode code,
                     const std::vector<std::string>& words) {
    Stream stream;
    const absl::Status status = ImportHuggingFace(
        folder_, *model_.tokenizer, Files(), model_.model.get(), stream);
    EXPECT_EQ(status.code(), code) << status;
    for (const std::string& word : words) {
      EXPECT_NE(status.message().find(word), std::string::npos)
          << status << "\nlacks: " << word;
    }
    EXPECT_EQ(Weights(model_), before_);
  }

  std::string Path(const std::string& name) const {
    return folder_ + "/" + name;
  }
  void ReplaceInConfig(const std::string& from, const std::string& to) {
    const std::string text = ReadText(Path(kModelConfigFile));
    ASSERT_NE(text.find(from), std::string::npos) << from;
    WriteText(Path(kModelConfigFile), absl::StrReplaceAll(text, {{from, to}}));
  }
  // Writes the weights anew with the tensors that `change` leaves.
  template <typename Change>
  void RewriteWeights(const Change& change) {
    const std::string path = Path(kWeightsFile);
    auto header = ReadSafetensorsHeader(Files(), path);
    ASSERT_TRUE(header.ok()) << header.status();
    std::vector<SafetensorsEntry> entries = header->entries;
    change(&entries);
    auto writer = SafetensorsWriter::Create(Files(), path, entries, {});
    ASSERT_TRUE(writer.ok()) << writer.status();
    for (const SafetensorsEntry& entry : entries) {
      const std::vector<char> zeros(static_cast<size_t>(
          entry.shape.num_elements() * SizeOf(entry.dtype)));
      ASSERT_TRUE(
          writer->Append(ConstTensor(zeros.data(), entry.dtype, entry.shape))
              .ok());
    }
    ASSERT_TRUE(writer->Finish().ok());
  }

  std::string folder_;
  CheckpointModel model_;
  std::vector<float> before_;
};

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kDamaged = absl::StatusCode::kDataLoss;

TEST_F(ImportTest, AFolderWithoutConfigIsNotFound) {
  ASSERT_TRUE(Files().Remove(Path(kModelConfigFile)).ok());
  ExpectRefused(absl::StatusCode::kNotFound,
                {folder_, "config.json", "//launch:export", "--resume"});
}

TEST_F(ImportTest, EveryFieldOfTheFunctionIsCompared) {
  const std::string original = ReadText(Path(kModelConfigFile));
  const std::vector<std::vector<std::string>> changes = {
      {"\"mixer\": \"cubit\"", "\"mixer\": \"softmax\"", "model.mixer"},
      {"\"cubit_lrr\": true", "\"cubit_lrr\": false", "model.cubit.lrr"},
      {"\"num_attention_heads\": 2", "\"num_attention_heads\": 4",
       "model.num_heads"},
      {"\"norm_epsilon\": 1e-05", "\"norm_epsilon\": 1e-06",
       "model.norm_epsilon"},
      {"\"rope_base\": 10000.0", "\"rope_base\": 500", "model.rope_base"},
      {"\"mlp\": \"gelu\"", "\"mlp\": 3", "model.mlp"},
      {"\"use_bias\": true,", "", "missing"},
      {"\"tokenizer_sha256\": \"", "\"tokenizer_sha256\": \"0",
       "data.tokenizer"},
      {"\"model_type\": \"cubit\"", "\"model_type\": \"gpt2\"",
       "//launch:export"}};
  for (const auto& change : changes) {
    WriteText(Path(kModelConfigFile), original);
    ReplaceInConfig(change[0], change[1]);
    ExpectRefused(kInvalid, {Path(kModelConfigFile), change[2]});
  }
}

TEST_F(ImportTest, AConfigThatIsNoObjectIsRefused) {
  for (const char* text : {"", "[]", "{\"a\":", "null", "{} {}"}) {
    WriteText(Path(kModelConfigFile), text);
    ExpectRefused(kInvalid, {Path(kModelConfigFile)});
  }
  std::string deep;
  for (int i = 0; i < 100000; ++i) deep += "{\"a\":";
  WriteText(Path(kModelConfigFile), deep);
  ExpectRefused(kInvalid, {Path(kModelConfigFile), "nest"});
}

TEST_F(ImportTest, TensorsMustBeExactlyTheModels) {
  RewriteWeights([](auto* entries) {
    entries->erase(entries->begin());
    entries->back().name = "model.layers.7.weight";
  });
  ExpectRefused(
      kInvalid,
      {"2 tensors of this model are missing", "model.embed_tokens.weight",
       "1 are not of this model", "model.layers.7.weight", "--config="});
}

TEST_F(ImportTest, AnotherShapeIsNamed) {
  RewriteWeights([](auto* entries) {
    entries->front().shape = Shape{16, 320};
  });
  ExpectRefused(kInvalid, {kWeightsFile, "model.embed_tokens.weight",
                           "[16, 320]", "[320, 16]"});
}

TEST_F(ImportTest, AnotherDTypeIsNamed) {
  RewriteWeights(
      [](auto* entries) { entries->front().dtype = DType::kFloat64; });
  ExpectRefused(kInvalid, {"model.embed_tokens.weight", "F64", "F32 or BF16"});
}

TEST_F(ImportTest, ATruncatedFileIsDamage) {
  const std::string text = ReadText(Path(kWeightsFile));
  WriteText(Path(kWeightsFile), text.substr(0, text.size() - 1));
  ExpectRefused(kDamaged, {kWeightsFile});
  WriteText(Path(kWeightsFile), "");
  ExpectRefused(kDamaged, {kWeightsFile});
}

TEST_F(ImportTest, AHeaderThatClaimsMoreThanTheFileIsDamage) {
  std::string text = ReadText(Path(kWeightsFile));
  const uint64_t huge = uint64_t{1} << 62;
  std::memcpy(&text[0], &huge, sizeof(huge));
  WriteText(Path(kWeightsFile), text);
  ExpectRefused(kDamaged, {kWeightsFile});
}

TEST_F(ImportTest, AnIndexCannotNameFilesOutsideTheFolder) {
  for (const char* name :
       {"../model.safetensors", "/etc/passwd", "..", "", "a\\nb"}) {
    WriteText(
        Path(kWeightsIndexFile),
        std::string(R"({"weight_map": {"lm_head.weight": ")") + name + "\"}}");
    ExpectRefused(kInvalid, {kWeightsIndexFile, "lm_head.weight"});
  }
  WriteText(Path(kWeightsIndexFile), R"({"weight_map": {"a": 3}})");
  ExpectRefused(kInvalid, {kWeightsIndexFile, "an integer"});
  WriteText(Path(kWeightsIndexFile), "{}");
  ExpectRefused(kInvalid, {kWeightsIndexFile, "no weight_map"});
}

TEST_F(ImportTest, ATensorInTwoFilesIsRefused) {
  WriteText(Path("b.safetensors"), ReadText(Path(kWeightsFile)));
  WriteText(Path(kWeightsIndexFile),
            R"({"weight_map": {"a": "model.safetensors",
                               "b": "b.safetensors"}})");
  ExpectRefused(kInvalid, {"is also in another file"});
}

TEST_F(ImportTest, ALocalPartIsCutOutOfTheWhole) {
  const CheckpointModel source = MakeSmallModel("", 1);
  // A rank that holds rows 8 to 11 of one projection.
  const std::string name = "layers.1.mixer.q_proj.weight";
  Parameter* cut = nullptr;
  for (Parameter& parameter : model_.model->parameters().parameters()) {
    if (parameter.name == name) cut = &parameter;
  }
  ASSERT_NE(cut, nullptr);
  cut->shard.dim = 0;
  cut->shard.begin = 8;
  cut->shard.count = 4;
  std::vector<float> local(4 * 16);
  cut->value = Tensor(local.data(), DType::kFloat32, {4, 16});
  Stream stream;
  const absl::Status status = ImportHuggingFace(
      folder_, *model_.tokenizer, Files(), model_.model.get(), stream);
  ASSERT_TRUE(status.ok()) << status;
  for (const Parameter& parameter : source.model->parameters().parameters()) {
    if (parameter.name != name) continue;
    EXPECT_EQ(std::memcmp(local.data(), parameter.value.data<float>() + 8 * 16,
                          local.size() * sizeof(float)),
              0);
  }
}

// Element `local` of the part, counted in the whole of at most two dims.
int64_t InWhole(const ShardSpec& shard, int64_t local) {
  const Shape part = shard.local_shape();
  const int64_t columns = part.rank() < 2 ? 1 : part[1];
  int64_t row = local / columns;
  int64_t column = local % columns;
  (shard.dim == 0 ? row : column) += shard.begin;
  const Shape& whole = shard.global_shape;
  return row * (whole.rank() < 2 ? 1 : whole[1]) + column;
}

// tp 2 x pp 2 of two layers.
std::vector<ModelShard> Shards() {
  std::vector<ModelShard> shards;
  for (int stage = 0; stage < 2; ++stage) {
    for (int tp = 0; tp < 2; ++tp) {
      ModelShard shard;
      shard.tp_rank = tp;
      shard.tp_size = 2;
      shard.chunks = {{stage, 1}};
      shard.embedding = stage == 0;
      shard.head = stage == 1;
      shards.push_back(shard);
    }
  }
  return shards;
}

// The parameters of a rank that imported `source`, exported to `folder`, are
// parts of its own; their names go into `seen`.
void ExpectParts(const CheckpointModel& source, const std::string& folder,
                 const ModelShard& shard, std::set<std::string>* seen) {
  auto model = LanguageModel::Create(source.model->config(), shard);
  ASSERT_TRUE(model.ok()) << model.status();
  ParameterStore& store = (*model)->parameters();
  ASSERT_TRUE(store.Allocate(/*with_gradients=*/false).ok());
  Stream stream;
  const absl::Status status = ImportHuggingFace(folder, *source.tokenizer,
                                                Files(), model->get(), stream);
  ASSERT_TRUE(status.ok()) << status;
  for (const Parameter& whole : source.model->parameters().parameters()) {
    for (const Parameter& part : store.parameters()) {
      if (part.name != whole.name) continue;
      seen->insert(part.name);
      for (int64_t i = 0; i < part.value.num_elements(); ++i) {
        ASSERT_EQ(part.value.data<float>()[i],
                  whole.value.data<float>()[InWhole(part.shard, i)])
            << part.name << " at " << i;
      }
    }
  }
}

TEST(ImportShards, EveryRankGetsItsPart) {
  for (const std::string& kind : ModelKinds()) {
    SCOPED_TRACE(kind);
    const CheckpointModel source = MakeSmallModel(kind, 1);
    const std::string folder = NewFolder();
    ASSERT_TRUE(ExportHuggingFace(source, folder, {}, Files()).ok());
    std::set<std::string> seen;
    for (const ModelShard& shard : Shards()) {
      ExpectParts(source, folder, shard, &seen);
    }
    EXPECT_EQ(seen.size(), source.model->parameters().parameters().size());
  }
}

TEST(ImportShards, CopiesForProductsAreMade) {
  const CheckpointModel source = MakeSmallModel("", 1);
  const std::string folder = NewFolder();
  ASSERT_TRUE(ExportHuggingFace(source, folder, {}, Files()).ok());
  auto model = LanguageModel::Create(source.model->config());
  ASSERT_TRUE(model.ok()) << model.status();
  ParameterStore& store = (*model)->parameters();
  ASSERT_TRUE(store.Allocate(/*with_gradients=*/false, DType::kBFloat16).ok());
  Stream stream;
  ASSERT_TRUE(ImportHuggingFace(folder, *source.tokenizer, Files(),
                                model->get(), stream)
                  .ok());
  const Tensor copy = store.flat_compute();
  std::vector<char> imported(static_cast<size_t>(copy.size_bytes()));
  std::memcpy(imported.data(), copy.raw(), imported.size());
  store.RefreshCompute(stream);
  EXPECT_EQ(std::memcmp(imported.data(), copy.raw(), imported.size()), 0);
}

}  // namespace
}  // namespace cubit
