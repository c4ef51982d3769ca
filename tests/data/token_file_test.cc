// SPDX-License-Identifier: Apache-2.0
//
// Token files of llm.c and Megatron: bytes as those programs lay them out, read
// and written, and files that are damaged.

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "data/token_file_reader.h"
#include "data/token_file_writer.h"
#include "tests/data/shard_files.h"

namespace cubit {
namespace {

using Documents = std::vector<std::vector<int32_t>>;

constexpr TokenVocabulary kBytes = {257, 256};

template <typename Integer>
void Put(std::string* bytes, std::initializer_list<int64_t> values) {
  for (const int64_t value : values) {
    const auto integer = static_cast<Integer>(value);
    bytes->append(reinterpret_cast<const char*>(&integer), sizeof(integer));
  }
}

std::string Llmc16(std::initializer_list<int64_t> tokens, int64_t count) {
  std::string bytes;
  Put<int32_t>(&bytes, {20240520, 1, count});
  bytes.resize(1024);
  Put<uint16_t>(&bytes, tokens);
  return bytes;
}

// Sequences {1, 2, 256}, {3}, {256}, {4, 256, 5, 256}; the first two are one
// document.
std::string MegatronIndex() {
  std::string bytes("MMIDIDX\0\0", 9);
  Put<int64_t>(&bytes, {1});
  Put<uint8_t>(&bytes, {8});
  Put<int64_t>(&bytes, {4, 4});
  Put<int32_t>(&bytes, {3, 1, 1, 4});
  Put<int64_t>(&bytes, {0, 6, 8, 10});
  Put<int64_t>(&bytes, {0, 2, 3, 4});
  return bytes;
}
std::string MegatronTokens() {
  std::string bytes;
  Put<uint16_t>(&bytes, {1, 2, 256, 3, 256, 4, 256, 5, 256});
  return bytes;
}

absl::StatusOr<Documents> Read(const std::string& path,
                               const TokenVocabulary& vocabulary = kBytes) {
  auto source = OpenTokenFile(path, vocabulary);
  if (!source.ok()) return source.status();
  Documents documents;
  std::vector<int32_t> ids;
  for (auto more = (*source)->Next(&ids);; more = (*source)->Next(&ids)) {
    if (!more.ok()) return more.status();
    if (!*more) return documents;
    documents.push_back(ids);
  }
}

class TokenFileTest : public testing::Test {
 protected:
  void SetUp() override { folder_ = ScratchFolder(""); }

  std::string Write(const std::string& name, const std::string& contents) {
    SetFileContents(folder_ + "/" + name, contents);
    return folder_ + "/" + name;
  }
  void ExpectRefused(const std::string& path, const std::string& words) {
    const auto documents = Read(path);
    ASSERT_FALSE(documents.ok()) << words;
    EXPECT_EQ(documents.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(absl::StrContains(documents.status().message(), folder_));
    EXPECT_TRUE(absl::StrContains(documents.status().message(), words))
        << documents.status();
  }
  void ExpectIndexRefused(const std::string& index, const std::string& words) {
    Write("m.bin", MegatronTokens());
    ExpectRefused(Write("m.idx", index), words);
  }

  std::string folder_;
};

TEST_F(TokenFileTest, ReadsLlmcFiles) {
  const auto found = Read(Write("a.bin", Llmc16({256, 1, 2, 256, 256, 3}, 6)));
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(*found, (Documents{{1, 2}, {}, {3}}));
  EXPECT_EQ(*Read(Write("a.bin", Llmc16({}, 0))), Documents());
}

TEST_F(TokenFileTest, ALlmcFileMayBeginInsideADocument) {
  EXPECT_EQ(*Read(Write("a.bin", Llmc16({7, 8, 256, 9}, 4))),
            (Documents{{7, 8}, {9}}));
}

TEST_F(TokenFileTest, ReadsLlmcFilesOfLargeVocabularies) {
  std::string bytes;
  Put<int32_t>(&bytes, {20240801, 7, 3});
  bytes.resize(1024);
  Put<uint32_t>(&bytes, {128000, 5, 127999});
  EXPECT_EQ(*Read(Write("a.bin", bytes), {128256, 128000}),
            (Documents{{5, 127999}}));
}

TEST_F(TokenFileTest, RefusesDamagedLlmcFiles) {
  ExpectRefused(Write("a.bin", "short"), "has 5 bytes");
  ExpectRefused(Write("b.bin", std::string(2000, 'x')), "begins with");
  ExpectRefused(Write("c.bin", Llmc16({256, 1}, 3)), "truncated");
  ExpectRefused(Write("d.bin", Llmc16({256, 1}, 1)), "tokens make 1026");
  ExpectRefused(Write("e.bin", Llmc16({256, 1}, -5)), "-5 tokens");
  ExpectRefused(Write("f.bin", Llmc16({256, 300}, 2)), "token 1 is 300");
}

TEST_F(TokenFileTest, ReadsMegatronFiles) {
  Write("m.bin", MegatronTokens());
  const auto found = Read(Write("m.idx", MegatronIndex()));
  ASSERT_TRUE(found.ok()) << found.status();
  // An end of text inside a document makes two of it; one alone is an empty
  // document.
  EXPECT_EQ(*found, (Documents{{1, 2}, {3}, {}, {4}, {5}}));
}

TEST_F(TokenFileTest, RefusesDamagedMegatronFiles) {
  const std::string index = MegatronIndex();
  ExpectIndexRefused("", "is not an index of Megatron");
  ExpectIndexRefused("x" + index.substr(1), "is not an index of Megatron");
  ExpectIndexRefused(index.substr(0, index.size() - 1), "damaged");
  const auto with = [&index](size_t offset, char byte) {
    std::string changed = index;
    changed[offset] = byte;
    return changed;
  };
  ExpectIndexRefused(with(9, 2), "version 1");
  ExpectIndexRefused(with(17, 7), "elements of type 7");
  ExpectIndexRefused(with(18, 5), "damaged");
  ExpectIndexRefused(with(25, 0x7f), "sequences and");
  ExpectIndexRefused(with(33, -1), "sequences and");
  ExpectIndexRefused(with(37, 0x70), "sequence 0 has");         // length
  ExpectIndexRefused(with(50, 99), "sequence 0 has 3 tokens");  // offset
  ExpectIndexRefused(with(57, -1), "sequence 0 has 3 tokens");
  ExpectIndexRefused(with(82, 1), "document 0 has sequences 1 to 2");
  ExpectIndexRefused(with(90, 9), "document 0 has sequences 0 to 9");
  ExpectIndexRefused(with(98, 1), "document 1 has sequences");
  ExpectIndexRefused(with(106, 3), "document 2 has sequences");
}

TEST_F(TokenFileTest, ModesAreAllowedAndIgnored) {
  Write("m.bin", MegatronTokens());
  EXPECT_EQ(
      Read(Write("m.idx", MegatronIndex() + std::string(4, '\0')))->size(), 5u);
}

class TokenExportTest : public TokenFileTest {
 protected:
  void SetUp() override {
    TokenFileTest::SetUp();
    documents_ = RandomDocuments(3, 60, 50, 257);
    WriteDataset(folder_, 257,
                 {{"train", {documents_.begin(), documents_.begin() + 25}},
                  {"validation", {{1, 2, 3}}},
                  {"train", {documents_.begin() + 25, documents_.end()}}});
    options_.data = folder_;
    options_.split = "train";
    options_.out = folder_ + "/out/x";
  }

  Documents documents_;
  TokenExportOptions options_;
};

TEST_F(TokenExportTest, LlmcFilesHoldTheStreamAndReadBack) {
  options_.file_tokens = 300;
  const auto report = ExportTokens(options_, UnsyncedFiles());
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_GT(report->files.size(), 4u);
  EXPECT_EQ(report->files[0], folder_ + "/out/x_train_000000.bin");
  EXPECT_EQ(report->documents, 60);
  Documents found;
  std::string stream;
  for (const std::string& file : report->files) {
    const auto part = Read(file);
    ASSERT_TRUE(part.ok()) << part.status();
    found.insert(found.end(), part->begin(), part->end());
    const std::string contents = FileContents(file);
    EXPECT_LE(contents.size(), 1024u + 2 * 300);
    stream += contents.substr(1024);
  }
  EXPECT_EQ(found, documents_);
  std::string wanted;
  for (const int32_t id : TokenStream(documents_, 256)) {
    Put<uint16_t>(&wanted, {id});
  }
  EXPECT_EQ(stream, wanted);
}

TEST_F(TokenExportTest, MegatronFilesReadBack) {
  options_.format = TokenFileFormat::kMegatron;
  const auto report = ExportTokens(options_, UnsyncedFiles());
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_EQ(report->files,
            (std::vector<std::string>{folder_ + "/out/x_train.bin",
                                      folder_ + "/out/x_train.idx"}));
  EXPECT_EQ(*Read(report->files[1]), documents_);
  const std::string index = FileContents(report->files[1]);
  EXPECT_EQ(index.size(), 34u + 60 * 12 + 61 * 8);
  EXPECT_EQ(index[17], 8);  // uint16
}

TEST_F(TokenExportTest, LargeVocabulariesHaveWideIds) {
  const std::string wide = ScratchFolder("wide");
  WriteDataset(wide, 100000, {{"train", {{70000, 1}, {99998}}}});
  options_.data = wide;
  for (const auto format :
       {TokenFileFormat::kLlmc, TokenFileFormat::kMegatron}) {
    options_.format = format;
    const auto report = ExportTokens(options_, UnsyncedFiles());
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(*Read(report->files.back(), {100000, 99999}),
              (Documents{{70000, 1}, {99998}}));
  }
}

TEST_F(TokenExportTest, RefusesWrongRequests) {
  options_.file_tokens = 0;
  EXPECT_TRUE(absl::StrContains(
      ExportTokens(options_, UnsyncedFiles()).status().message(),
      "--file_tokens=0"));
  options_.file_tokens = 10;
  options_.data = folder_ + "/none";
  EXPECT_FALSE(ExportTokens(options_, UnsyncedFiles()).ok());
}

}  // namespace
}  // namespace cubit
