// SPDX-License-Identifier: Apache-2.0

#include "tests/data/shard_files.h"

#include <fstream>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "runtime/check.h"
#include "runtime/philox.h"
#include "tests/testing/fault_file_system.h"

namespace cubit {

FileSystem& UnsyncedFiles() {
  static FaultFileSystem* const files =
      new FaultFileSystem(&FileSystem::Posix(), FaultPlan());
  return *files;
}

std::string ScratchFolder(const std::string& name) {
  const testing::TestInfo* const test =
      testing::UnitTest::GetInstance()->current_test_info();
  const std::string folder =
      JoinPath(testing::TempDir(),
               absl::StrCat(test->test_suite_name(), ".", test->name(),
                            name.empty() ? "" : ".", name));
  FileSystem& files = FileSystem::Posix();
  CUBIT_CHECK_OK(files.Remove(folder));
  CUBIT_CHECK_OK(files.CreateFolders(folder));
  return folder;
}

std::string FileContents(const std::string& path) {
  auto contents = ReadFile(FileSystem::Posix(), path, int64_t{1} << 30);
  CUBIT_CHECK_OK(contents);
  return *std::move(contents);
}

void SetFileContents(const std::string& path, const std::string& contents) {
  auto file = FileSystem::Posix().Create(path);
  CUBIT_CHECK_OK(file);
  CUBIT_CHECK_OK(
      (*file)->Append(contents.data(), static_cast<int64_t>(contents.size())));
  CUBIT_CHECK_OK((*file)->Close());
}

void FlipBits(const std::string& path, size_t offset, char bits) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(offset));
  const char byte = static_cast<char>(file.get() ^ bits);
  file.seekp(static_cast<std::streamoff>(offset));
  file.put(byte);
  file.close();
  CUBIT_CHECK(!file.fail()) << path;
}

std::vector<std::vector<int32_t>> RandomDocuments(uint64_t seed, int64_t count,
                                                  int64_t max_length,
                                                  int64_t vocab_size) {
  const Philox random(seed, "documents");
  uint64_t next = 0;
  const auto below = [&random, &next](int64_t limit) {
    return static_cast<int64_t>(random.Bits(next++) %
                                static_cast<uint64_t>(limit));
  };
  std::vector<std::vector<int32_t>> documents(static_cast<size_t>(count));
  for (auto& document : documents) {
    document.resize(static_cast<size_t>(below(max_length + 1)));
    for (int32_t& id : document)
      id = static_cast<int32_t>(below(vocab_size - 1));
  }
  return documents;
}

std::vector<int32_t> TokenStream(
    const std::vector<std::vector<int32_t>>& documents, int32_t eot_id) {
  std::vector<int32_t> stream;
  for (const auto& document : documents) {
    stream.push_back(eot_id);
    stream.insert(stream.end(), document.begin(), document.end());
  }
  return stream;
}

TokenShardInfo ShardInfo(const std::string& split, int64_t vocab_size) {
  TokenShardInfo info;
  info.tokenizer = "made up";
  info.tokenizer_sha256 = std::string(64, 'a');
  info.vocab_size = vocab_size;
  info.eot_id = vocab_size - 1;
  info.split = split;
  info.source = "a test";
  info.created = "2025-01-31T12:00:00Z";
  info.writer = "cubit test";
  return info;
}

WrittenShard WriteShard(const std::string& path, const TokenShardInfo& info,
                        const std::vector<std::vector<int32_t>>& documents) {
  TokenShardBuilder builder(info);
  for (const auto& document : documents) builder.AddDocument(document);
  auto written = builder.Write(UnsyncedFiles(), path);
  CUBIT_CHECK_OK(written);
  return *written;
}

DatasetIndex WriteDataset(const std::string& folder, int64_t vocab_size,
                          const std::vector<ShardContents>& shards) {
  const TokenShardInfo info = ShardInfo("train", vocab_size);
  DatasetIndex index;
  index.tokenizer = info.tokenizer;
  index.tokenizer_sha256 = info.tokenizer_sha256;
  index.vocab_size = info.vocab_size;
  index.eot_id = info.eot_id;
  index.source = info.source;
  for (const ShardContents& shard : shards) {
    const int64_t number = static_cast<int64_t>(index.shards.size());
    const std::string path = JoinPath(folder, TokenShardName(number));
    index.shards.push_back(MakeShardEntry(
        number,
        WriteShard(path, ShardInfo(shard.split, vocab_size), shard.documents)));
  }
  CUBIT_CHECK_OK(WriteFileAtomically(UnsyncedFiles(),
                                     JoinPath(folder, kIndexName),
                                     DatasetIndexToJson(index)));
  return index;
}

}  // namespace cubit
