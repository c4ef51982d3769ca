// SPDX-License-Identifier: Apache-2.0

#include "tests/parallel/checkpoint_testing.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "runtime/check.h"

namespace cubit {
namespace {

class UnsyncedFile : public WritableFile {
 public:
  explicit UnsyncedFile(std::unique_ptr<WritableFile> base)
      : base_(std::move(base)) {}
  absl::Status Append(const void* data, int64_t bytes) override {
    return base_->Append(data, bytes);
  }
  absl::Status Sync() override { return absl::OkStatus(); }
  absl::Status Close() override { return base_->Close(); }

 private:
  std::unique_ptr<WritableFile> base_;
};

class UnsyncedFileSystem : public FileSystem {
 public:
  absl::StatusOr<std::unique_ptr<WritableFile>> Create(
      const std::string& path) override {
    auto file = Posix().Create(path);
    if (!file.ok()) return file.status();
    return std::make_unique<UnsyncedFile>(std::move(*file));
  }
  absl::Status Read(const std::string& path, int64_t offset, int64_t bytes,
                    void* data) override {
    return Posix().Read(path, offset, bytes, data);
  }
  absl::StatusOr<int64_t> FileSize(const std::string& path) override {
    return Posix().FileSize(path);
  }
  bool Exists(const std::string& path) override { return Posix().Exists(path); }
  absl::Status CreateFolders(const std::string& path) override {
    return Posix().CreateFolders(path);
  }
  absl::StatusOr<std::vector<std::string>> List(
      const std::string& path) override {
    return Posix().List(path);
  }
  absl::Status Rename(const std::string& from, const std::string& to) override {
    return Posix().Rename(from, to);
  }
  absl::Status Remove(const std::string& path) override {
    return Posix().Remove(path);
  }
  absl::Status SyncFolder(const std::string&) override {
    return absl::OkStatus();
  }
};

}  // namespace

FileSystem& UnsyncedFiles() {
  static UnsyncedFileSystem* const files = new UnsyncedFileSystem;
  return *files;
}

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
      SaveCheckpoint(UnsyncedFiles(), checkpoints, TestInfo(step),
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
