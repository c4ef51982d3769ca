// SPDX-License-Identifier: Apache-2.0
//
// Damaged checkpoints: no changed byte is loaded silently, and the step before
// is taken instead.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "parallel/checkpoint.h"
#include "parallel/checkpoint_manifest.h"
#include "runtime/digest.h"
#include "runtime/file_system.h"
#include "tests/parallel/checkpoint_testing.h"

namespace cubit {
namespace {

using testing::HasSubstr;

FileSystem& Files() { return FileSystem::Posix(); }

std::string Contents(const std::string& path) {
  return *ReadFile(Files(), path, 1 << 20);
}

void Write(const std::string& path, const std::string& contents) {
  // Some file systems wait for the disk when a file is cut and written anew.
  ASSERT_TRUE(Files().Remove(path).ok());
  auto file = Files().Create(path);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE(
      (*file)
          ->Append(contents.data(), static_cast<int64_t>(contents.size()))
          .ok());
  ASSERT_TRUE((*file)->Close().ok());
}

const char* const kFileNames[] = {"manifest.json", "model-00001.safetensors",
                                  "config.textproto", "tokenizer/vocab.json"};

class CheckpointDamage : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = FreshFolder("c");
    SaveTestModel(folder_, 1, 1);
    SaveTestModel(folder_, 2, 2);
    newest_ = CheckpointFolder(folder_, 2);
  }
  std::string PathOf(const std::string& name) {
    return JoinPath(newest_, name);
  }
  absl::Status LoadNewestFolder() {
    const TestModel model(9);
    return LoadCheckpoint(Files(), newest_, model.tensors());
  }
  // The newest is refused with `words` and the one before is loaded.
  void ExpectFallback(const std::string& words) {
    const absl::Status status = LoadNewestFolder();
    EXPECT_THAT(std::string(status.message()), HasSubstr(words));
    int64_t step = 0;
    EXPECT_EQ(LoadedValue(folder_, {1}, &step), 1);
    EXPECT_EQ(step, 1);
  }
  // Puts `body` in place of the manifest's, with a digest that fits.
  void WriteManifestBody(const std::string& body) {
    Write(
        PathOf("manifest.json"),
        absl::StrCat("{\"xxh3_128\":\"", Xxh3_128Hex(body.data(), body.size()),
                     "\",\"manifest\":", body, "}\n"));
  }
  std::string ManifestBody() {
    const std::string text = Contents(PathOf("manifest.json"));
    return text.substr(58, text.size() - 60);
  }

  std::string folder_;
  std::string newest_;
};

TEST_F(CheckpointDamage, NoFlippedBitIsLoaded) {
  int64_t flips = 0;
  for (const char* name : kFileNames) {
    const std::string whole = Contents(PathOf(name));
    for (size_t i = 0; i < whole.size(); ++i) {
      std::string damaged = whole;
      damaged[i] = static_cast<char>(damaged[i] ^ (1 << (i % 8)));
      Write(PathOf(name), damaged);
      const absl::Status status = LoadNewestFolder();
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss)
          << name << " byte " << i << ": " << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr(PathOf(name)));
      ++flips;
      if (HasFailure()) return;
    }
    Write(PathOf(name), whole);
  }
  EXPECT_GT(flips, 2000);
  EXPECT_TRUE(LoadNewestFolder().ok());
}

TEST_F(CheckpointDamage, NamesFileAndTensor) {
  const std::string path = PathOf("model-00001.safetensors");
  std::string bytes = Contents(path);
  bytes[bytes.size() - 1] ^= 1;  // the last tensor
  Write(path, bytes);
  ExpectFallback(absl::StrCat(path, ": tensor flags: is damaged"));
}

TEST_F(CheckpointDamage, AHeaderThatMeansTheSameIsStillAnother) {
  const std::string path = PathOf("model-00001.safetensors");
  const std::string bytes = Contents(path);
  const std::string changed =
      absl::StrReplaceAll(bytes, {{"\"dtype\":\"F32\",\"shape\":[6,4]",
                                   "\"shape\":[6,4],\"dtype\":\"F32\""}});
  ASSERT_NE(changed, bytes);
  Write(path, changed);
  ExpectFallback(absl::StrCat(path, ": header: is damaged"));
}

TEST_F(CheckpointDamage, EveryTruncationIsRefused) {
  for (const char* name : kFileNames) {
    const std::string whole = Contents(PathOf(name));
    for (size_t size = 0; size < whole.size(); size += 1 + size / 20) {
      Write(PathOf(name), whole.substr(0, size));
      EXPECT_EQ(LoadNewestFolder().code(), absl::StatusCode::kDataLoss)
          << name << " cut to " << size;
    }
    Write(PathOf(name), whole + "x");
    EXPECT_EQ(LoadNewestFolder().code(), absl::StatusCode::kDataLoss) << name;
    Write(PathOf(name), whole);
  }
}

TEST_F(CheckpointDamage, MissingFilesAreRefused) {
  for (const char* name : kFileNames) {
    const std::string whole = Contents(PathOf(name));
    ASSERT_TRUE(Files().Remove(PathOf(name)).ok());
    ExpectFallback(PathOf(name));
    Write(PathOf(name), whole);
  }
  EXPECT_TRUE(LoadNewestFolder().ok());
}

TEST_F(CheckpointDamage, DataFilesThatAreNotListedAreRefused) {
  Write(PathOf("notes.txt"), "a person's notes are no part of it");
  EXPECT_TRUE(LoadNewestFolder().ok());
  Write(PathOf("model-00002.safetensors"), "");
  ExpectFallback("model-00002.safetensors: is not in the manifest");
}

TEST_F(CheckpointDamage, FilesOfAnotherStepAreRefused) {
  Write(PathOf("model-00001.safetensors"),
        Contents(CheckpointFolder(folder_, 1) + "/model-00001.safetensors"));
  ExpectFallback("is damaged");
}

TEST_F(CheckpointDamage, AStepUnderAnotherNumberIsRefused) {
  ASSERT_TRUE(Files().Rename(newest_, CheckpointFolder(folder_, 3)).ok());
  int64_t step = 0;
  EXPECT_EQ(LoadedValue(folder_, {1}, &step), 1);
}

TEST_F(CheckpointDamage, SaysSoWhenNoneIsLeft) {
  for (int step : {1, 2}) {
    Write(CheckpointFolder(folder_, step) + "/manifest.json", "");
  }
  const TestModel model(9);
  const auto info = LoadNewestCheckpoint(Files(), folder_, model.tensors());
  EXPECT_EQ(info.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(info.status().message()),
              HasSubstr("none of 2 checkpoints can be used"));
  EXPECT_THAT(std::string(info.status().message()),
              HasSubstr("step_00000002/manifest.json"));
}

TEST_F(CheckpointDamage, OtherFormatVersionsAreNamed) {
  const std::string body = absl::StrReplaceAll(
      ManifestBody(), {{"\"format_version\":1", "\"format_version\":2"}});
  WriteManifestBody(body);
  const absl::Status status = LoadNewestFolder();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  ExpectFallback("has format version 2, this build reads 1");
}

// Manifests with a right digest that no writer wrote.
TEST_F(CheckpointDamage, HostileManifestsAreRefused) {
  const std::string body = ManifestBody();
  WriteManifestBody(body);
  ASSERT_TRUE(LoadNewestFolder().ok()) << "the test's own frame is wrong";
  const std::string deep(100000, '[');
  const std::vector<std::pair<std::string, std::string>> edits = {
      {"\"file\":\"model-00001.safetensors\"", "\"file\":\"../../secret\""},
      {"\"name\":\"model-00001.safetensors\"", "\"name\":\"/etc/passwd\""},
      {"\"name\":\"config.textproto\"", "\"name\":\"../config.textproto\""},
      {"\"begin\":0", "\"begin\":1"},
      {"\"count\":6", "\"count\":5"},
      {"\"count\":6", "\"count\":-6"},
      {"\"count\":6", "\"count\":9223372036854775808"},
      {"\"dim\":0", "\"dim\":9223372036854775807"},
      {"\"dim\":0", "\"dim\":3"},
      {"\"shape\":[6,4]", "\"shape\":[4611686018427387904,6,4]"},
      {"\"shape\":[6,4]", "\"shape\":[1,1,1,6,4]"},
      {"\"shape\":[6,4]", "\"shape\":[6.5,4]"},
      {"\"dtype\":\"F32\"", "\"dtype\":\"F16\""},
      {"\"name\":\"empty\"", "\"name\":\"flags\""},
      {"\"step\":2", "\"step\":\"2\""},
      {"\"step\":2", "\"step\":-2"},
      {"\"state\":{\"skipped_steps\":\"0\"}", "\"state\":{\"a\":1}"},
      {"\"format\":\"cubit checkpoint\"", "\"format\":\"other\""},
      {"\"key\":\"flags\"", "\"key\":\"empty\""},
      {"\"tensors\":", "\"tensors\":{},\"other\":"},
      {body, deep},
      {body, "[1]"},
      {body, "{"},
      {body, ""}};
  for (const auto& [from, to] : edits) {
    ASSERT_TRUE(absl::StrContains(body, from)) << from;
    WriteManifestBody(absl::StrReplaceAll(body, {{from, to}}));
    const absl::Status status = LoadNewestFolder();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss)
        << from.substr(0, 60) << " -> " << to.substr(0, 60) << ": " << status;
  }
}

}  // namespace
}  // namespace cubit
