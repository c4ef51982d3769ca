// SPDX-License-Identifier: Apache-2.0
//
// Reading in processes of their own: the same documents as in this one, and
// files that would take this program down if it read them itself.

#include "data/reader_process.h"

#include <signal.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "data/compressed_reader.h"
#include "data/input_reader.h"
#include "data/parquet_file.h"
#include "tests/data/compress.h"
#include "tests/data/parquet_files.h"
#include "tests/data/shard_files.h"

namespace cubit {
namespace {

constexpr TokenVocabulary kBytes = {257, 256};

struct Found {
  std::vector<InputDocument> documents;
  absl::Status status;
};

Found ReadAll(InputReader& reader, const std::vector<std::string>& paths) {
  Found found;
  const auto pieces = CutIntoPieces(paths, reader);
  found.status = pieces.status();
  if (!pieces.ok()) return found;
  for (const InputPiece& piece : *pieces) {
    auto stream = reader.Open(piece, kBytes);
    if (!stream.ok()) {
      found.status = stream.status();
      return found;
    }
    InputDocument document;
    for (auto more = (*stream)->Next(&document);;
         more = (*stream)->Next(&document)) {
      if (!more.ok()) {
        found.status = more.status();
        return found;
      }
      if (!*more) break;
      document.path += piece.first_path;
      found.documents.push_back(document);
    }
  }
  return found;
}

// The process that this one started and that still runs.
pid_t TheChild() {
  pid_t child = -1;
  for (const auto& task :
       std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream children(task.path() / "children");
    children >> child;
    if (child > 0) return child;
  }
  return child;
}

// AddressSanitizer answers failed allocations and signals in its own way.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

class ReaderProcessTest : public testing::Test {
 protected:
  void SetUp() override { folder_ = ScratchFolder(""); }

  std::string Write(const std::string& name, const std::string& contents) {
    SetFileContents(folder_ + "/" + name, contents);
    return folder_ + "/" + name;
  }

  static void Expect(const absl::Status& status, const std::string& path,
                     const std::string& words) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << words;
    EXPECT_TRUE(absl::StrContains(status.message(), path)) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), words)) << status;
  }

  std::string folder_;
  ProcessReader reader_{ReaderLimits()};
};

TEST_F(ReaderProcessTest, GivesTheSameDocumentsAsReadingHere) {
  std::string lines;
  for (int i = 0; i < 5000; ++i) {
    absl::StrAppend(&lines, "{\"text\": \"", std::string(i % 700, 'x'),
                    "\", \"token_count\": ", i, "}\n");
  }
  std::string tokens;
  const int32_t header[256] = {20240520, 1, 4};
  tokens.assign(reinterpret_cast<const char*>(header), sizeof(header));
  const uint16_t ids[] = {256, 7, 256, 9};
  tokens.append(reinterpret_cast<const char*>(ids), sizeof(ids));
  std::vector<std::string> paths = {
      Write("a.jsonl", lines), Write("b.txt", "Some text."),
      Write("c.jsonl.zst", Compress(Compression::kZstd, lines)),
      Write("d.bin", tokens)};
  if (ParquetIsSupported()) {
    ParquetRecipe recipe;
    recipe.group_rows = 10;
    for (int i = 0; i < 95; ++i) {
      recipe.rows.push_back({absl::StrCat("row ", i), i});
    }
    paths.push_back(folder_ + "/e.parquet");
    WriteParquet(paths.back(), recipe);
  }
  const Found here = ReadAll(InputReader::InThisProcess(), paths);
  const Found there = ReadAll(reader_, paths);
  ASSERT_TRUE(here.status.ok()) << here.status;
  ASSERT_TRUE(there.status.ok()) << there.status;
  ASSERT_EQ(here.documents.size(), there.documents.size());
  ASSERT_GT(here.documents.size(), 9900u);
  for (size_t i = 0; i < here.documents.size(); ++i) {
    EXPECT_EQ(here.documents[i].text, there.documents[i].text);
    EXPECT_EQ(here.documents[i].ids, there.documents[i].ids);
    EXPECT_EQ(here.documents[i].is_tokens, there.documents[i].is_tokens);
    EXPECT_EQ(here.documents[i].stated_tokens,
              there.documents[i].stated_tokens);
    EXPECT_EQ(here.documents[i].path, there.documents[i].path);
  }
}

TEST_F(ReaderProcessTest, PassesErrorsOn) {
  const std::string good = Write("a.jsonl", "{\"text\": \"a\"}\n");
  const std::string bad = Write("b.jsonl", "{\"text\": \"b\"}\n{\"text\": 3}");
  const Found found = ReadAll(reader_, {good, bad});
  EXPECT_EQ(found.documents.size(), 2u);
  Expect(found.status, bad + ": line 2", "field \"text\" is an integer");
}

TEST_F(ReaderProcessTest, AFileThatNeedsTooMuchMemoryIsAnError) {
  if (kSanitized) GTEST_SKIP() << "skipped: under AddressSanitizer";
  const std::string path =
      Write("a.jsonl", "{\"text\": \"" + std::string(40 << 20, 'x') + "\"}");
  ReaderLimits limits;
  limits.memory_bytes = int64_t{32} << 20;
  ProcessReader reader(limits);
  const Found found = ReadAll(reader, {path});
  Expect(found.status, path, "needs more than 32 MiB of memory");
  EXPECT_TRUE(ReadAll(reader_, {path}).status.ok());
}

TEST_F(ReaderProcessTest, AFileThatTakesTooLongIsAnError) {
  ReaderLimits limits;
  limits.silent_seconds = 0.001;  // less than a process takes to start
  ProcessReader reader(limits);
  const std::string path = Write("a.txt", "text");
  Expect(ReadAll(reader, {path}).status, path, "without a result");
}

TEST_F(ReaderProcessTest, ItsEndByASignalIsAnErrorWithTheFilesName) {
  if (kSanitized) GTEST_SKIP() << "skipped: under AddressSanitizer";
  std::string lines;
  for (int i = 0; i < 3000; ++i) {
    absl::StrAppend(&lines, "{\"text\": \"", std::string(2000, 'x'), "\"}\n");
  }
  const std::string first = Write("a.txt", "text");
  const std::string path = Write("b.jsonl", lines);
  auto stream = reader_.Open({{first, path}, 0, 0, 0}, kBytes);
  ASSERT_TRUE(stream.ok());
  InputDocument document;
  // The second document comes with the second file; the process then waits
  // with the rest of it.
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(*(*stream)->Next(&document));
  const pid_t child = TheChild();
  ASSERT_GT(child, 0);
  ASSERT_EQ(kill(child, SIGSEGV), 0);
  absl::StatusOr<bool> more = true;
  while (more.ok() && *more) more = (*stream)->Next(&document);
  Expect(more.status(), path, "was ended by signal 11");
}

TEST_F(ReaderProcessTest, LeavesNoProcessBehind) {
  std::string lines;
  for (int i = 0; i < 3000; ++i) {
    absl::StrAppend(&lines, "{\"text\": \"", std::string(2000, 'x'), "\"}\n");
  }
  const std::string path = Write("a.jsonl", lines);
  {
    auto stream = reader_.Open({{path}, 0, 0, 0}, kBytes);
    ASSERT_TRUE(stream.ok());
    InputDocument document;
    ASSERT_TRUE(*(*stream)->Next(&document));
    EXPECT_GT(TheChild(), 0);
  }
  EXPECT_EQ(TheChild(), -1);
}

TEST_F(ReaderProcessTest, OnlyPiecesOfOneFileShareAProcess) {
  const std::string one = Write("a.txt", "one");
  const std::string other = Write("b.txt", "other");
  const auto process_of = [](ProcessReader& reader, const std::string& path) {
    const Found found = ReadAll(reader, {path});
    EXPECT_TRUE(found.status.ok()) << found.status;
    EXPECT_EQ(found.documents.size(), 1u);
    return TheChild();
  };
  {
    ProcessReader reader{ReaderLimits()};
    const pid_t first = process_of(reader, one);
    EXPECT_GT(first, 0);
    EXPECT_EQ(process_of(reader, one), first);
    EXPECT_NE(process_of(reader, other), first);
  }
  EXPECT_EQ(TheChild(), -1);
}

TEST_F(ReaderProcessTest, TriesTokenizersAndShards) {
  EXPECT_TRUE(TryTokenizer("byte", ReaderLimits()).ok());
  const std::string bad = Write("t.json", "{\"model\": 3}");
  Expect(TryTokenizer(bad, ReaderLimits()), bad, "");
  WriteDataset(folder_, 257, {{"train", {{1, 2, 3}}}});
  const std::string shard = folder_ + "/shard_00000.h5";
  EXPECT_TRUE(TryShards({shard}, /*verify=*/true, ReaderLimits()).ok());
  const std::string other = Write("x.h5", std::string(100, 'x'));
  const absl::Status status = TryShards({shard, other}, false, ReaderLimits());
  Expect(status, other, "not an HDF5 file");
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  if (const auto status = cubit::RunReaderProcess(argc, argv)) return *status;
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
