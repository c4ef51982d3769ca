// SPDX-License-Identifier: Apache-2.0

#include "data/token_dataset.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gtest/gtest.h"

#include "tests/data/shard_files.h"

namespace cubit {
namespace {

using Documents = std::vector<std::vector<int32_t>>;

void ExpectOpenError(const std::vector<std::string>& folders,
                     const std::string& words, int64_t seq_len = 8) {
  const auto dataset = TokenDataset::Open(folders, "train", seq_len);
  ASSERT_FALSE(dataset.ok()) << words;
  EXPECT_TRUE(absl::StrContains(dataset.status().message(), words))
      << dataset.status();
}

// Every sample against the concatenated stream, with segments counted from the
// borders of the documents (not from the ids).
void ExpectSamples(TokenDataset& dataset, const std::vector<int32_t>& stream,
                   const std::vector<int64_t>& borders) {
  const int64_t seq_len = dataset.info().seq_len;
  std::vector<int64_t> document(stream.size(), -1);
  for (const int64_t border : borders) ++document[static_cast<size_t>(border)];
  for (size_t i = 0, seen = 0; i < stream.size(); ++i) {
    if (document[i] == 0) ++seen;
    document[i] = static_cast<int64_t>(seen);
  }
  std::vector<int32_t> tokens(static_cast<size_t>(seq_len) + 1);
  std::vector<int32_t> segments(static_cast<size_t>(seq_len));
  // From the last to the first: no order is assumed.
  for (int64_t i = dataset.info().num_samples - 1; i >= 0; --i) {
    const absl::Status status =
        dataset.ReadSample(i, tokens.data(), segments.data());
    ASSERT_TRUE(status.ok()) << status;
    const size_t begin = static_cast<size_t>(i * seq_len);
    for (size_t t = 0; t < tokens.size(); ++t) {
      ASSERT_EQ(tokens[t], stream[begin + t]) << i << ", " << t;
      if (t == segments.size()) break;
      ASSERT_EQ(segments[t], document[begin + t] - document[begin])
          << i << ", " << t;
    }
  }
}

std::vector<int64_t> Borders(const Documents& documents) {
  std::vector<int64_t> borders;
  int64_t at = 0;
  for (const auto& document : documents) {
    borders.push_back(at);
    at += 1 + static_cast<int64_t>(document.size());
  }
  return borders;
}

class TokenDatasetWidths : public testing::TestWithParam<int64_t> {};

TEST_P(TokenDatasetWidths, SamplesCoverTheStreamAcrossShardsAndFolders) {
  const int64_t vocab_size = GetParam();
  const Documents all = RandomDocuments(5, 60, 40, vocab_size);
  const auto part = [&all](size_t begin, size_t end) {
    return Documents(all.begin() + static_cast<ptrdiff_t>(begin),
                     all.begin() + static_cast<ptrdiff_t>(end));
  };
  const Documents validation = RandomDocuments(6, 9, 40, vocab_size);
  const std::string a = ScratchFolder("a");
  const std::string b = ScratchFolder("b");
  // The third shard is shorter than a sample, so one sample has three shards.
  WriteDataset(a, vocab_size,
               {{"train", part(0, 30)},
                {"validation", validation},
                {"train", part(30, 31)}});
  WriteDataset(b, vocab_size, {{"train", part(31, 60)}});
  const int32_t eot_id = static_cast<int32_t>(vocab_size - 1);
  const std::vector<int32_t> stream = TokenStream(all, eot_id);

  for (const int64_t seq_len : {1, 7, 50, 64}) {
    auto dataset = TokenDataset::Open({a, b}, "train", seq_len);
    ASSERT_TRUE(dataset.ok()) << dataset.status();
    const DatasetInfo& info = (*dataset)->info();
    EXPECT_EQ(info.num_tokens, static_cast<int64_t>(stream.size()));
    EXPECT_EQ(info.num_documents, 60);
    EXPECT_EQ(info.num_samples,
              (static_cast<int64_t>(stream.size()) - 1) / seq_len);
    EXPECT_EQ(info.seq_len, seq_len);
    EXPECT_EQ(info.vocab_size, vocab_size);
    EXPECT_EQ(info.eot_id, eot_id);
    EXPECT_EQ(info.tokenizer, "made up");
    EXPECT_EQ(info.tokenizer_sha256, std::string(64, 'a'));
    EXPECT_EQ(info.tokenizer_folder, a + "/tokenizer");
    ExpectSamples(**dataset, stream, Borders(all));
  }
  auto held_out = TokenDataset::Open({a}, "validation", 16);
  ASSERT_TRUE(held_out.ok()) << held_out.status();
  EXPECT_EQ((*held_out)->info().num_documents, 9);
  ExpectSamples(**held_out, TokenStream(validation, eot_id),
                Borders(validation));
}

INSTANTIATE_TEST_SUITE_P(Vocabularies, TokenDatasetWidths,
                         testing::Values(257, 200000));

TEST(TokenDataset, ReadsMoreShardsThanItHoldsOpen) {
  Documents all = RandomDocuments(8, 45, 30, 257);
  std::vector<ShardContents> shards;
  for (const auto& document : all) shards.push_back({"train", {document}});
  const std::string folder = ScratchFolder("");
  WriteDataset(folder, 257, shards);
  auto dataset = TokenDataset::Open({folder}, "train", 10);
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  ExpectSamples(**dataset, TokenStream(all, 256), Borders(all));
  ExpectSamples(**dataset, TokenStream(all, 256), Borders(all));
}

TEST(TokenDataset, NeedsOneWholeSample) {
  const std::string folder = ScratchFolder("");
  WriteDataset(folder, 257, {{"train", {{1, 2, 3, 4, 5, 6, 7}}}});
  auto dataset = TokenDataset::Open({folder}, "train", 7);
  ASSERT_TRUE(dataset.ok());
  EXPECT_EQ((*dataset)->info().num_samples, 1);
  ExpectOpenError({folder}, "one sample of seq_len 8 needs 9", 8);
}

TEST(TokenDataset, NamesFoldersThatAreNoDataSet) {
  const std::string folder = ScratchFolder("");
  ExpectOpenError({}, "no data folder is given");
  ExpectOpenError({folder + "/none"}, "/none: no such folder");
  ExpectOpenError({folder}, "has no index.json");
  WriteDataset(folder, 257, {{"validation", RandomDocuments(1, 9, 40, 257)}});
  ExpectOpenError({folder}, "holds no train documents");
}

class DamagedDataset : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = ScratchFolder("");
    // Shards of equal size, so that exchanging them changes no size.
    for (int32_t shard = 0; shard < 3; ++shard) {
      Documents documents(10, std::vector<int32_t>(20, shard));
      shards_.push_back({"train", documents});
    }
    WriteDataset(folder_, 257, shards_);
    ASSERT_TRUE(TokenDataset::Open({folder_}, "train", 8).ok());
  }
  std::string Path(const std::string& name) { return folder_ + "/" + name; }
  void Edit(const std::string& from, const std::string& to) {
    const std::string json = FileContents(Path("index.json"));
    ASSERT_TRUE(absl::StrContains(json, from)) << json;
    SetFileContents(Path("index.json"),
                    absl::StrReplaceAll(json, {{from, to}}));
  }

  FileSystem& files_ = FileSystem::Posix();
  std::string folder_;
  std::vector<ShardContents> shards_;
};

TEST_F(DamagedDataset, MissingShard) {
  ASSERT_TRUE(files_.Remove(Path("shard_00001.h5")).ok());
  ExpectOpenError({folder_}, "shard_00001.h5: is missing");
}

TEST_F(DamagedDataset, AddedShard) {
  SetFileContents(Path("shard_00003.h5"), FileContents(Path("shard_00000.h5")));
  ExpectOpenError({folder_}, "shard_00003.h5: is not listed in index.json");
}

TEST_F(DamagedDataset, ExchangedShards) {
  const std::string first = FileContents(Path("shard_00000.h5"));
  SetFileContents(Path("shard_00000.h5"), FileContents(Path("shard_00002.h5")));
  SetFileContents(Path("shard_00002.h5"), first);
  ExpectOpenError({folder_}, "shard_00000.h5: attribute tokens_xxh3_128 is");
}

TEST_F(DamagedDataset, ReorderedIndex) {
  Edit("shard_00000.h5", "shard_x");
  Edit("shard_00001.h5", "shard_00000.h5");
  ExpectOpenError({folder_}, "shards were reordered");
}

TEST_F(DamagedDataset, TruncatedShard) {
  const std::string whole = FileContents(Path("shard_00002.h5"));
  SetFileContents(Path("shard_00002.h5"), whole.substr(0, whole.size() / 2));
  ExpectOpenError({folder_}, absl::StrCat("shard_00002.h5: has ",
                                          whole.size() / 2, " bytes"));
}

TEST_F(DamagedDataset, ShardOfAnotherTokenizer) {
  TokenShardInfo info = ShardInfo("train", 257);
  info.tokenizer_sha256 = std::string(64, 'b');
  WriteShard(Path("shard_00001.h5"), info, shards_[1].documents);
  ExpectOpenError({folder_}, "shard_00001.h5: attribute tokenizer_sha256 is b");
}

TEST_F(DamagedDataset, ShardOfAnotherWidth) {
  const auto wide = WriteShard(Path("shard_00001.h5"),
                               ShardInfo("train", 70000), shards_[1].documents);
  const auto size = files_.FileSize(Path("shard_00000.h5"));
  ASSERT_TRUE(size.ok());
  ExpectOpenError({folder_}, "shard_00001.h5: has");
  // With the index agreeing about the size too.
  std::string json = FileContents(Path("index.json"));
  const std::string from = absl::StrCat("\"bytes\": ", *size);
  json.replace(json.find(from, json.find("shard_00001")), from.size(),
               absl::StrCat("\"bytes\": ", wide.bytes));
  SetFileContents(Path("index.json"), json);
  ExpectOpenError({folder_}, "shard_00001.h5: attribute vocab_size is 70000");
}

TEST_F(DamagedDataset, FoldersOfDifferentTokenizers) {
  const std::string other = ScratchFolder("other");
  WriteDataset(other, 300, {{"train", RandomDocuments(1, 9, 40, 300)}});
  ExpectOpenError({folder_, other}, "prepare all with one tokenizer");
}

TEST_F(DamagedDataset, ChecksumIsFoundOnReadingAndRepeats) {
  auto dataset = TokenDataset::Open({folder_}, "train", 8);
  ASSERT_TRUE(dataset.ok());
  std::string damaged = FileContents(Path("shard_00001.h5"));
  // A run of token 1, uint16.
  const std::string pattern("\x01\x00\x01\x00\x01\x00\x01\x00", 8);
  damaged[damaged.find(pattern)] ^= 2;
  SetFileContents(Path("shard_00001.h5"), damaged);
  std::vector<int32_t> tokens(9);
  std::vector<int32_t> segments(8);
  EXPECT_TRUE((*dataset)->ReadSample(0, tokens.data(), segments.data()).ok());
  for (int repeat = 0; repeat < 2; ++repeat) {
    const absl::Status status =
        (*dataset)->ReadSample(30, tokens.data(), segments.data());
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_TRUE(absl::StrContains(status.message(),
                                  Path("shard_00001.h5") + ": /tokens"))
        << status;
  }
}

TEST_F(DamagedDataset, IndexIsCheckedMemberByMember) {
  const std::string good = FileContents(Path("index.json"));
  const std::pair<std::string, std::string> edits[] = {
      {"\"format_version\": 1", "\"format_version\": 2"},
      {"\"format\": \"cubit token shards\"", "\"format\": \"other\""},
      {"\"tokenizer\":", "\"x\":"},
      {"\"vocab_size\": 257", "\"vocab_size\": \"257\""},
      {"\"vocab_size\": 257", "\"vocab_size\": -257"},
      {"\"vocab_size\": 257", "\"vocab_size\": 1e400"},
      {"\"eot_id\": 256", "\"eot_id\": 2.5"},
      {"\"shards\":", "\"x\":"},
      {"\"split\": \"train\"", "\"split\": 1"},
      {"\"bytes\":", "\"x\":"},
      {"\"tokens\": 210", "\"tokens\": 99999999999999999999999"},
      {"\"tokens\": 210", "\"tokens\": 211"},
      {"\"documents\": 10", "\"documents\": 11"},
      {"{", "["},
      {"}\n", ""},
  };
  for (const auto& [from, to] : edits) {
    SetFileContents(Path("index.json"), good);
    Edit(from, to);
    const auto dataset = TokenDataset::Open({folder_}, "train", 8);
    EXPECT_FALSE(dataset.ok()) << from << " -> " << to;
    EXPECT_TRUE(absl::StrContains(dataset.status().message(), folder_))
        << dataset.status();
  }
  SetFileContents(Path("index.json"), std::string(1 << 20, '['));
  ExpectOpenError({folder_}, "nested deeper than 8");
  SetFileContents(Path("index.json"), "");
  ExpectOpenError({folder_}, "not a JSON object");
}

}  // namespace
}  // namespace cubit
