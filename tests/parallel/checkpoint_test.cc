// SPDX-License-Identifier: Apache-2.0

#include "parallel/checkpoint.h"

#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include <nlohmann/json.hpp>

#include "runtime/file_system.h"
#include "tests/parallel/checkpoint_testing.h"

namespace cubit {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

FileSystem& Files() { return FileSystem::Posix(); }

// Slices of one [rows, columns] fp32 tensor, cut along `dim` into `parts`.
struct Slices {
  Slices(int64_t rows, int64_t columns, int dim, int64_t parts) {
    const Shape global{rows, columns};
    const int64_t extent = global[dim];
    for (int64_t part = 0; part < parts; ++part) {
      ShardSpec spec;
      spec.global_shape = global;
      spec.dim = dim;
      spec.begin = extent * part / parts;
      spec.count = extent * (part + 1) / parts - spec.begin;
      const Shape local = spec.local_shape();
      values.emplace_back(static_cast<size_t>(local.num_elements()), -1.0f);
      tensors.push_back(
          {"w", spec, Tensor(values.back().data(), DType::kFloat32, local)});
    }
  }
  // Element (r, c) of the global tensor is 1000 r + c.
  void Fill() {
    Visit([](float* value, float wanted) { *value = wanted; });
  }
  void Expect() {
    Visit([](float* value, float wanted) { EXPECT_EQ(*value, wanted); });
  }
  template <typename Visitor>
  void Visit(Visitor visit) {
    for (size_t i = 0; i < tensors.size(); ++i) {
      const ShardSpec& spec = tensors[i].spec;
      const Shape local = spec.local_shape();
      for (int64_t r = 0; r < local[0]; ++r) {
        for (int64_t c = 0; c < local[1]; ++c) {
          const int64_t row = r + (spec.dim == 0 ? spec.begin : 0);
          const int64_t column = c + (spec.dim == 1 ? spec.begin : 0);
          visit(&values[i][static_cast<size_t>(r * local[1] + c)],
                static_cast<float>(1000 * row + column));
        }
      }
    }
  }

  std::vector<std::vector<float>> values;
  std::vector<CheckpointTensor> tensors;
};

TEST(Checkpoint, LoadsWhatWasSaved) {
  const std::string folder = FreshFolder("c");
  SaveTestModel(folder, 1000, 1);
  const TestModel found(2);
  const auto info = LoadNewestCheckpoint(Files(), folder, found.tensors());
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_TRUE(found == TestModel(1));
  EXPECT_EQ(info->step, 1000);
  EXPECT_EQ(info->tokens, 1000000);
  EXPECT_EQ(info->position, 8000);
  EXPECT_EQ(info->config, "seed: 7\n");
  EXPECT_EQ(info->state.at("skipped_steps"), "0");
  EXPECT_EQ(info->folder, CheckpointFolder(folder, 1000));
}

TEST(Checkpoint, HasTheLayoutThatIsDocumented) {
  const std::string folder = FreshFolder("c");
  SaveTestModel(folder, 1000, 1);
  EXPECT_THAT(*Files().List(folder), ElementsAre("latest", "step_00001000"));
  EXPECT_THAT(*Files().List(folder + "/step_00001000"),
              ElementsAre("config.textproto", "manifest.json",
                          "model-00001.safetensors", "tokenizer"));
  EXPECT_EQ(*ReadFile(Files(), folder + "/latest", 100), "step_00001000\n");
  EXPECT_EQ(
      *ReadFile(Files(), folder + "/step_00001000/tokenizer/vocab.json", 100),
      "{\"a\": 1}");
  // The manifest is plain JSON with what a reader of another system needs.
  const auto json = nlohmann::json::parse(
      *ReadFile(Files(), folder + "/step_00001000/manifest.json", 1 << 20));
  EXPECT_EQ(json["manifest"]["step"], 1000);
  const auto& slice = json["manifest"]["tensors"][0]["slices"][0];
  EXPECT_EQ(slice["file"], "model-00001.safetensors");
  EXPECT_EQ(slice["count"], 6);
}

TEST(Checkpoint, ReadsInfoWithoutTensors) {
  const std::string folder = FreshFolder("c");
  SaveTestModel(folder, 5, 1);
  const auto info = ReadCheckpointInfo(Files(), CheckpointFolder(folder, 5));
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->step, 5);
  const auto missing = ReadCheckpointInfo(Files(), CheckpointFolder(folder, 6));
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
}

TEST(Checkpoint, SplitsFilesAtTheLimitAndNeverATensor) {
  const std::string folder = FreshFolder("c");
  const TestModel model(3);
  CheckpointOptions options;
  options.max_file_bytes = 100;  // the embedding alone has 96
  ASSERT_TRUE(
      SaveCheckpoint(Files(), folder, TestInfo(1), model.tensors(), {}, options)
          .ok());
  EXPECT_THAT(*Files().List(CheckpointFolder(folder, 1)),
              ElementsAre("manifest.json", "model-00001.safetensors",
                          "model-00002.safetensors", "model-00003.safetensors",
                          "model-00004.safetensors"));
  int64_t step = 0;
  EXPECT_EQ(LoadedValue(folder, {3}, &step), 3);
}

TEST(Checkpoint, LoadsAnyLayoutFromAnyLayout) {
  for (int saved_dim : {0, 1}) {
    for (int64_t saved_parts : {1, 2, 3}) {
      const std::string folder = FreshFolder("c");
      Slices saved(7, 5, saved_dim, saved_parts);
      saved.Fill();
      ASSERT_TRUE(
          SaveCheckpoint(Files(), folder, TestInfo(1), saved.tensors, {}).ok());
      for (int dim : {0, 1}) {
        for (int64_t parts : {1, 2, 5}) {
          SCOPED_TRACE(absl::StrCat("saved ", saved_parts, " along ", saved_dim,
                                    ", loaded ", parts, " along ", dim));
          Slices loaded(7, 5, dim, parts);
          const absl::Status status = LoadCheckpoint(
              Files(), CheckpointFolder(folder, 1), loaded.tensors);
          ASSERT_TRUE(status.ok()) << status;
          loaded.Expect();
        }
      }
    }
  }
}

TEST(Checkpoint, CutsTensorsLargerThanOnePiece) {
  // 3 M rows of 4 bytes and 12 MB rows: more and less than a read of 8 MiB.
  for (const auto& [rows, columns] :
       std::vector<std::pair<int64_t, int64_t>>{{3000000, 1}, {2, 3000000}}) {
    const std::string folder = FreshFolder("c");
    const Shape shape{rows, columns};
    std::vector<int32_t> values(static_cast<size_t>(shape.num_elements()));
    std::iota(values.begin(), values.end(), 0);
    ASSERT_TRUE(SaveCheckpoint(Files(), folder, TestInfo(1),
                               {{"w", ShardSpec::Whole(shape),
                                 Tensor(values.data(), DType::kInt32, shape)}},
                               {})
                    .ok());
    const int dim = rows > columns ? 0 : 1;
    ShardSpec spec{shape, dim, 2500000, 400000};
    const Shape local = spec.local_shape();
    std::vector<int32_t> part(static_cast<size_t>(local.num_elements()));
    const absl::Status status = LoadCheckpoint(
        Files(), CheckpointFolder(folder, 1),
        {{"w", spec, Tensor(part.data(), DType::kInt32, local)}});
    ASSERT_TRUE(status.ok()) << status;
    for (int64_t r = 0; r < local[0]; ++r) {
      for (int64_t c : {int64_t{0}, local[1] - 1}) {
        const int64_t row = r + (dim == 0 ? spec.begin : 0);
        const int64_t column = c + (dim == 1 ? spec.begin : 0);
        ASSERT_EQ(part[static_cast<size_t>(r * local[1] + c)],
                  row * columns + column);
      }
    }
  }
}

TEST(Checkpoint, RefusesAnotherModelAndNamesTheTensors) {
  const std::string folder = FreshFolder("c");
  SaveTestModel(folder, 1, 1);
  SaveTestModel(folder, 2, 2);
  std::vector<float> values(6 * 8);
  std::vector<double> doubles(24);
  const std::vector<CheckpointTensor> wanted = {
      {"model.embedding.weight", ShardSpec::Whole({6, 8}),
       Tensor(values.data(), DType::kFloat32, {6, 8})},
      {"adamw.m/model.embedding.weight", ShardSpec::Whole({6, 4}),
       Tensor(doubles.data(), DType::kFloat64, {6, 4})},
      {"model.layers.1.norm", ShardSpec::Whole({6, 8}),
       Tensor(values.data(), DType::kFloat32, {6, 8})}};
  const auto info = LoadNewestCheckpoint(Files(), folder, wanted);
  // Not damage: an older step would be of another model too.
  EXPECT_EQ(info.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(info.status().message());
  EXPECT_THAT(message, HasSubstr("step_00000002"));
  EXPECT_THAT(message, HasSubstr("model.embedding.weight is [6, 4] F32 in it, "
                                 "[6, 8] F32 in this model"));
  EXPECT_THAT(message, HasSubstr("[6, 4] F64 in this model"));
  EXPECT_THAT(message, HasSubstr("model.layers.1.norm is not in it"));
}

TEST(Checkpoint, LoadsSomeTensorsAlone) {
  const std::string folder = FreshFolder("c");
  SaveTestModel(folder, 1, 1);
  const TestModel found(2);
  const TestModel saved(1);
  ASSERT_TRUE(
      LoadCheckpoint(Files(), CheckpointFolder(folder, 1), {found.tensors()[0]})
          .ok());
  EXPECT_EQ(std::memcmp(found.tensors()[0].data.raw(),
                        saved.tensors()[0].data.raw(), 96),
            0);
}

TEST(Checkpoint, ReplacesAStep) {
  const std::string folder = FreshFolder("c");
  SaveTestModel(folder, 1, 1);
  SaveTestModel(folder, 1, 2);
  int64_t step = 0;
  EXPECT_EQ(LoadedValue(folder, {1, 2}, &step), 2);
  EXPECT_THAT(*Files().List(folder), ElementsAre("latest", "step_00000001"));
}

TEST(Checkpoint, ListsCommittedStepsInOrder) {
  const std::string folder = FreshFolder("c");
  for (int64_t step : {30, 4, 123456789}) SaveTestModel(folder, step, 1);
  for (const char* name : {"step_00000005.tmp", "step_00000006.deleting",
                           "step_7", "step_0000000x", "notes"}) {
    ASSERT_TRUE(Files().CreateFolders(JoinPath(folder, name)).ok());
  }
  EXPECT_THAT(ListCheckpoints(Files(), folder), ElementsAre(4, 30, 123456789));
  EXPECT_THAT(ListCheckpoints(Files(), folder + "/none"), ElementsAre());
}

TEST(Checkpoint, SaysThatThereIsNone) {
  const TestModel model(1);
  const auto info = LoadNewestCheckpoint(Files(), FreshFolder("c") + "/none",
                                         model.tensors());
  EXPECT_EQ(info.status().code(), absl::StatusCode::kNotFound);
}

TEST(Checkpoint, RefusesTextThatIsNoUtf8) {
  const TestModel model(1);
  CheckpointInfo info = TestInfo(1);
  info.state["path"] = "\xff";
  const std::string folder = FreshFolder("c");
  const absl::Status status =
      SaveCheckpoint(Files(), folder, info, model.tensors(), {});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(*Files().List(folder), ElementsAre());
}

TEST(CheckpointDeathTest, SlicesMustBeWhole) {
  Slices slices(7, 5, 0, 3);
  slices.tensors.pop_back();
  EXPECT_DEATH(
      SaveCheckpoint(Files(), FreshFolder("c"), TestInfo(1), slices.tensors, {})
          .IgnoreError(),
      "do not cover");
}

TEST(PruneCheckpoints, KeepsTheLastAndEveryMth) {
  const std::string folder = FreshFolder("c");
  for (int64_t step : {10, 20, 30, 40, 50, 60}) SaveTestModel(folder, step, 1);
  ASSERT_TRUE(PruneCheckpoints(Files(), folder, 2, 30).ok());
  EXPECT_THAT(ListCheckpoints(Files(), folder), ElementsAre(30, 50, 60));
  ASSERT_TRUE(PruneCheckpoints(Files(), folder, 1, 0).ok());
  EXPECT_THAT(ListCheckpoints(Files(), folder), ElementsAre(60));
  EXPECT_TRUE(PruneCheckpoints(Files(), folder + "/none", 1, 0).ok());
}

TEST(PruneCheckpoints, RemovesLeftoversAndNothingElse) {
  const std::string folder = FreshFolder("c");
  SaveTestModel(folder, 1, 1);
  for (const char* name :
       {"step_00000002.tmp", "step_00000000.deleting", "notes.tmp", "mine"}) {
    ASSERT_TRUE(Files().CreateFolders(JoinPath(folder, name)).ok());
  }
  ASSERT_TRUE(PruneCheckpoints(Files(), folder, 1, 0).ok());
  EXPECT_THAT(*Files().List(folder),
              ElementsAre("latest", "mine", "notes.tmp", "step_00000001"));
}

}  // namespace
}  // namespace cubit
