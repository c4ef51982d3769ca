// SPDX-License-Identifier: Apache-2.0

#include "tests/data/prepare_fixture.h"

#include <cstdint>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

#include "data/dataset_index.h"
#include "data/split_rule.h"
#include "tests/data/shard_files.h"

namespace cubit {

std::map<std::string, std::string> Snapshot(const std::string& folder) {
  std::map<std::string, std::string> contents;
  FileSystem& files = FileSystem::Posix();
  const auto names = files.List(folder);
  if (!names.ok()) return contents;
  for (const std::string& name : *names) {
    const std::string path = JoinPath(folder, name);
    if (!files.List(path).ok()) {
      contents[name] = FileContents(path);
      continue;
    }
    for (const auto& [inner, bytes] : Snapshot(path)) {
      contents[JoinPath(name, inner)] = bytes;
    }
  }
  return contents;
}

std::vector<std::string> ReadTexts(const std::string& folder,
                                   const std::string& split,
                                   const Tokenizer& tokenizer) {
  std::vector<std::string> texts;
  const auto index = ReadDatasetIndex(FileSystem::Posix(), folder);
  EXPECT_TRUE(index.ok()) << index.status();
  for (const ShardEntry& entry : index->shards) {
    if (entry.split != split) continue;
    auto shard = TokenShard::Open(JoinPath(folder, entry.file), 0);
    EXPECT_TRUE(shard.ok()) << shard.status();
    EXPECT_TRUE(CheckShardAgainstIndex(*shard, entry, *index).ok());
    EXPECT_TRUE(shard->Verify().ok()) << shard->Verify();
    for (int64_t d = 0; d < shard->info().num_documents; ++d) {
      const auto range = shard->DocumentRange(d);
      EXPECT_TRUE(range.ok());
      std::vector<int32_t> ids(static_cast<size_t>(range->end - range->begin));
      EXPECT_TRUE(
          shard->ReadTokens(range->begin, range->end - range->begin, ids.data())
              .ok());
      EXPECT_EQ(ids[0], tokenizer.eot_id());
      texts.emplace_back();
      tokenizer.Decode(ids, &texts.back());
    }
  }
  return texts;
}

void PrepareTest::SetUp() {
  folder_ = ScratchFolder("");
  for (int file = 0; file < 3; ++file) {
    std::string lines;
    for (int line = 0; line < 9; ++line) {
      texts_.push_back(
          absl::StrCat("document ", texts_.size(), ": ",
                       std::string(static_cast<size_t>(line * 31 % 50), 'x')));
      absl::StrAppend(&lines, "{\"text\": \"", texts_.back(), "\"}\n");
    }
    SetFileContents(Input(file), lines);
    options_.inputs.push_back(Input(file));
  }
  options_.out = folder_ + "/out";
  options_.shard_tokens = 250;
  options_.validation_fraction = 0.2;
  options_.created = "2025-01-31T12:00:00Z";
}

std::string PrepareTest::Input(int file) {
  return absl::StrCat(folder_, "/in_", file, ".jsonl");
}

absl::StatusOr<PrepareReport> PrepareTest::Run() {
  return Run(UnsyncedFiles());
}
absl::StatusOr<PrepareReport> PrepareTest::Run(FileSystem& files) {
  return Prepare(options_, tokenizer_, files);
}

void PrepareTest::ExpectRefused(const std::string& words) {
  const auto before = Snapshot(options_.out);
  const auto report = Run();
  ASSERT_FALSE(report.ok()) << words;
  EXPECT_TRUE(absl::StrContains(report.status().message(), words))
      << report.status();
  EXPECT_EQ(Snapshot(options_.out), before);
}

std::map<std::string, std::string> PrepareTest::Wanted() {
  PrepareOptions options = options_;
  options.out = folder_ + "/wanted";
  EXPECT_TRUE(FileSystem::Posix().Remove(options.out).ok());
  EXPECT_TRUE(Prepare(options, tokenizer_, UnsyncedFiles()).ok());
  return Snapshot(options.out);
}

void PrepareTest::ExpectRightTexts() {
  const SplitRule rule(options_.validation_fraction);
  std::vector<std::string> train;
  std::vector<std::string> validation;
  for (size_t d = 0; d < texts_.size(); ++d) {
    (rule.IsValidation(static_cast<int64_t>(d)) ? validation : train)
        .push_back(texts_[d]);
  }
  EXPECT_EQ(ReadTexts(options_.out, "train", tokenizer_), train);
  EXPECT_EQ(ReadTexts(options_.out, "validation", tokenizer_), validation);
}

}  // namespace cubit
