// SPDX-License-Identifier: Apache-2.0

#include "tests/parallel/checkpoint_testing.h"

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "runtime/check.h"
#include "runtime/file_system.h"

namespace cubit {

std::string FreshFolder(const std::string& name) {
  const auto* test = testing::UnitTest::GetInstance()->current_test_info();
  const std::string folder =
      absl::StrCat(testing::TempDir(), "/", test->test_suite_name(), ".",
                   test->name(), ".", name);
  FileSystem& files = FileSystem::Posix();
  CUBIT_CHECK_OK(files.Remove(folder));
  CUBIT_CHECK_OK(files.CreateFolders(folder));
  return folder;
}

TestModel::TestModel(int value) {
  Add("model.embedding.weight", DType::kFloat32, {6, 4});
  Add("model.layers.0.mixer.log_lambda", DType::kFloat64, {3});
  Add("model.norm", DType::kBFloat16, {2, 3, 2, 2});
  Add("adamw.step", DType::kInt64, {});
  Add("adamw.m/model.embedding.weight", DType::kFloat32, {6, 4});
  Add("empty", DType::kInt32, {0, 5});
  Add("flags", DType::kUInt8, {7});
  for (size_t i = 0; i < bytes_.size(); ++i) {
    for (size_t j = 0; j < bytes_[i].size(); ++j) {
      bytes_[i][j] = static_cast<unsigned char>(
          static_cast<size_t>(value) * 101 + i * 37 + j * 11);
    }
  }
}

void TestModel::Add(const std::string& name, DType dtype, Shape shape) {
  bytes_.emplace_back(
      static_cast<size_t>(shape.num_elements() * SizeOf(dtype)));
  tensors_.push_back({name, ShardSpec::Whole(shape),
                      Tensor(bytes_.back().data(), dtype, shape)});
}

CheckpointInfo TestInfo(int64_t step) {
  CheckpointInfo info;
  info.step = step;
  info.tokens = step * 1000;
  info.position = step * 8;
  info.config = "seed: 7\n";
  info.state = {{"skipped_steps", "0"}};
  return info;
}

std::map<std::string, std::string> TestFiles() {
  return {{"config.textproto", "seed: 7\n"},
          {"tokenizer/vocab.json", "{\"a\": 1}"}};
}

void SaveTestModel(const std::string& checkpoints, int64_t step, int value) {
  const TestModel model(value);
  const absl::Status status =
      SaveCheckpoint(FileSystem::Posix(), checkpoints, TestInfo(step),
                     model.tensors(), TestFiles());
  ASSERT_TRUE(status.ok()) << status;
}

int LoadedValue(const std::string& checkpoints, const std::vector<int>& values,
                int64_t* step) {
  const TestModel found(99);
  const auto info =
      LoadNewestCheckpoint(FileSystem::Posix(), checkpoints, found.tensors());
  if (!info.ok()) {
    ADD_FAILURE() << "nothing to load: " << info.status();
    return -1;
  }
  *step = info->step;
  for (int value : values) {
    if (found == TestModel(value)) return value;
  }
  ADD_FAILURE() << "a state that was never saved, at step " << info->step;
  return -1;
}

}  // namespace cubit
