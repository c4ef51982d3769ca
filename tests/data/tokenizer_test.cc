// SPDX-License-Identifier: Apache-2.0

#include "data/tokenizer.h"

#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "runtime/digest.h"
#include "tests/data/compress.h"
#include "tests/data/small_vocabulary.h"

namespace cubit {
namespace {

using Ids = std::vector<int32_t>;

Ids Encode(const Tokenizer& tokenizer, absl::string_view text) {
  Ids ids;
  tokenizer.Encode(text, &ids);
  return ids;
}

std::string Decode(const Tokenizer& tokenizer, const Ids& ids) {
  std::string text;
  tokenizer.Decode(ids, &text);
  return text;
}

std::unique_ptr<Tokenizer> Load(const std::string& spec) {
  auto tokenizer = LoadTokenizer(spec);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

// A fresh folder of the test.
std::string TestFolder(const std::string& name) {
  const std::string folder = JoinPath(testing::TempDir(), name);
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

std::unique_ptr<Tokenizer> LoadSmall() {
  return Load(WriteTestFile("small.tiktoken", MakeSmallVocabulary().tiktoken));
}

std::string RandomBytes(std::mt19937* random) {
  const char* alphabets[] = {"the ing aaaa", "\xC3\xA9\xFF\x80 a", "<|endoft>"};
  const std::string alphabet = alphabets[(*random)() % 3];
  std::string text;
  for (size_t i = (*random)() % 80; i > 0; --i) {
    text.push_back((*random)() % 10 == 0
                       ? static_cast<char>((*random)())
                       : alphabet[(*random)() % alphabet.size()]);
  }
  return text;
}

TEST(ByteTokenizer, MapsBytesToThemselves) {
  const auto tokenizer = Load("byte");
  EXPECT_EQ(tokenizer->name(), "byte");
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  EXPECT_EQ(tokenizer->eot_id(), 256);
  EXPECT_EQ(tokenizer->sha256(), Sha256Hex("cubit-byte-1\n"));
  EXPECT_EQ(Encode(*tokenizer, absl::string_view("a\0\xFF", 3)),
            (Ids{97, 0, 255}));
  EXPECT_EQ(Decode(*tokenizer, {104, 256, 105, -1, 257, 1 << 30}), "hi");
}

TEST(BpeTokenizer, AppliesTheMergesWithinPieces) {
  const auto tokenizer = LoadSmall();
  EXPECT_EQ(tokenizer->name(), "bpe");
  EXPECT_EQ(tokenizer->vocab_size(), kSmallEotId + 1);
  EXPECT_EQ(tokenizer->eot_id(), kSmallEotId);
  EXPECT_EQ(Encode(*tokenizer, ""), Ids());
  EXPECT_EQ(Encode(*tokenizer, "the thing"), (Ids{kTheId, ' ', kThId, kIngId}));
  EXPECT_EQ(Encode(*tokenizer, " the the"), (Ids{kSpaceTheId, kSpaceTheId}));
  EXPECT_EQ(Encode(*tokenizer, "a  the"), (Ids{'a', ' ', kSpaceTheId}));
  EXPECT_EQ(Encode(*tokenizer, "a  "), (Ids{'a', kSpacesId}));
  EXPECT_EQ(Encode(*tokenizer, "aaaaaaa\u00e9"),
            (Ids{kAaaaId, kAaId, 'a', kEAcuteId}));
}

TEST(BpeTokenizer, AppendsToWhatIsThere) {
  const auto tokenizer = LoadSmall();
  Ids ids = {1};
  tokenizer->Encode("in", &ids);
  EXPECT_EQ(ids, (Ids{1, kInId}));
  std::string text = "so ";
  tokenizer->Decode(ids, &text);
  EXPECT_EQ(text, "so \x01in");
}

TEST(BpeTokenizer, NeverGivesSpecialTokensForText) {
  const auto tokenizer = LoadSmall();
  const std::string text = "<|endoftext|> the <|endoftext|>";
  const Ids ids = Encode(*tokenizer, text);
  for (const int32_t id : ids) EXPECT_LT(id, kSmallEotId);
  EXPECT_EQ(Decode(*tokenizer, ids), text);
}

TEST(BpeTokenizer, DecodesNothingForTheEndOfTextAndPadding) {
  const auto tokenizer = LoadSmall();
  EXPECT_EQ(Decode(*tokenizer,
                   {kSmallEotId, kTheId, kSmallEotId + 1, -1, 1 << 30, kIngId}),
            "theing");
}

TEST(Tokenizers, GiveAnyBytesBack) {
  std::mt19937 random(5);
  for (const auto& tokenizer : {LoadSmall(), Load("byte")}) {
    for (int round = 0; round < 2000; ++round) {
      const std::string text = RandomBytes(&random);
      const Ids ids = Encode(*tokenizer, text);
      for (const int32_t id : ids) {
        ASSERT_TRUE(id >= 0 && id < tokenizer->eot_id()) << id;
      }
      ASSERT_EQ(Decode(*tokenizer, ids), text);
    }
  }
}

TEST(Tokenizers, EncodeAlikeInManyThreads) {
  const auto tokenizer = LoadSmall();
  std::mt19937 random(6);
  std::vector<std::string> texts;
  std::vector<Ids> expected;
  for (int i = 0; i < 300; ++i) {
    texts.push_back(RandomBytes(&random));
    expected.push_back(Encode(*tokenizer, texts.back()));
  }
  std::vector<std::vector<Ids>> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&] {
      for (const std::string& text : texts) {
        result.push_back(Encode(*tokenizer, text));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, expected);
}

TEST(LoadTokenizer, GivesOneTokenizerForEveryFormat) {
  const SmallVocabulary files = MakeSmallVocabulary();
  const auto expected = LoadSmall();
  const std::string pair = TestFolder("pair");
  WriteTestFile("pair/encoder.json", files.encoder_json);
  WriteTestFile("pair/vocab.bpe", files.vocab_bpe);
  TestFolder("hf_pair");
  WriteTestFile("hf_pair/merges.txt.gz",
                Compress(Compression::kGzip, files.vocab_bpe));
  const std::string hf_pair = FolderOf(WriteTestFile(
      "hf_pair/vocab.json.xz", Compress(Compression::kXz, files.encoder_json)));
  const std::vector<std::string> specs = {
      WriteTestFile("any_name.json", files.tokenizer_json),
      WriteTestFile("tokenizer.json.gz",
                    Compress(Compression::kGzip, files.tokenizer_json)),
      WriteTestFile("x/tokenizer.json.xz",
                    Compress(Compression::kXz, files.tokenizer_json)),
      WriteTestFile("no_suffix", files.tiktoken),
      pair,
      hf_pair,
      FolderOf(WriteTestFile("t/y.tiktoken", files.tiktoken))};
  for (const std::string& spec : specs) {
    const auto tokenizer = Load(spec);
    ASSERT_NE(tokenizer, nullptr) << spec;
    EXPECT_EQ(tokenizer->sha256(), expected->sha256()) << spec;
    EXPECT_EQ(tokenizer->vocab_size(), expected->vocab_size()) << spec;
    EXPECT_EQ(tokenizer->eot_id(), expected->eot_id()) << spec;
    EXPECT_EQ(Encode(*tokenizer, " the thing aaa\u00e9"),
              Encode(*expected, " the thing aaa\u00e9"))
        << spec;
  }
}

TEST(LoadTokenizer, TakesMergesAsPairsAndLinesEndedByCrLf) {
  const SmallVocabulary files = MakeSmallVocabulary();
  auto json = nlohmann::json::parse(files.tokenizer_json);
  for (auto& merge : json["model"]["merges"]) {
    const std::string line = merge;
    const size_t space = line.find(' ');
    merge = {line.substr(0, space), line.substr(space + 1)};
  }
  const auto pairs = Load(WriteTestFile("pairs.json", json.dump()));
  ASSERT_NE(pairs, nullptr);
  EXPECT_EQ(pairs->sha256(), LoadSmall()->sha256());
  std::string crlf;
  for (const char c : files.tiktoken)
    crlf += c == '\n' ? "\r\n" : std::string(1, c);
  const auto tiktoken = Load(WriteTestFile("crlf.tiktoken", crlf));
  ASSERT_NE(tiktoken, nullptr);
  EXPECT_EQ(tiktoken->sha256(), pairs->sha256());
}

TEST(LoadTokenizer, TakesSpecialTokensAnywhere) {
  // Specials first, as Hugging Face's trainer puts them.
  auto json = nlohmann::json::parse(MakeSmallVocabulary().tokenizer_json);
  for (auto& id : json["model"]["vocab"]) id = id.get<int>() + 1;
  json["model"]["vocab"]["<|endoftext|>"] = 0;
  json["added_tokens"][0]["id"] = 0;
  json["added_tokens"].push_back(
      {{"id", kSmallEotId + 1}, {"content", "<|pad|>"}, {"special", true}});
  const auto tokenizer = Load(WriteTestFile("special.json", json.dump()));
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->eot_id(), 0);
  EXPECT_EQ(tokenizer->vocab_size(), kSmallEotId + 2);
  EXPECT_EQ(Encode(*tokenizer, "the"), (Ids{kTheId + 1}));
  EXPECT_EQ(Decode(*tokenizer, {0, kTheId + 1, kSmallEotId + 1}), "the");
}

TEST(SaveTokenizer, IsUndoneByLoading) {
  const SmallVocabulary files = MakeSmallVocabulary();
  const std::string pair = TestFolder("save_pair");
  WriteTestFile("save_pair/encoder.json", files.encoder_json);
  WriteTestFile("save_pair/vocab.bpe", files.vocab_bpe);
  int number = 0;
  for (const std::string& spec :
       {std::string("byte"), pair,
        WriteTestFile("renamed.json", files.tokenizer_json),
        WriteTestFile("renamed.gz",
                      Compress(Compression::kGzip, files.tiktoken))}) {
    const auto tokenizer = Load(spec);
    const std::string folder = TestFolder(absl::StrCat("saved", number++));
    // Saving again over the same files changes nothing.
    for (int round = 0; round < 2; ++round) {
      const absl::Status status =
          SaveTokenizer(*tokenizer, FileSystem::Posix(), folder);
      ASSERT_TRUE(status.ok()) << status;
      const auto loaded = Load(folder);
      ASSERT_NE(loaded, nullptr) << spec;
      EXPECT_EQ(loaded->sha256(), tokenizer->sha256());
      EXPECT_EQ(loaded->name(), tokenizer->name());
      ASSERT_EQ(loaded->files().size(), tokenizer->files().size());
      EXPECT_EQ(loaded->files()[0].contents, tokenizer->files()[0].contents);
    }
  }
}

TEST(SaveTokenizer, RefusesAFolderOfAnotherTokenizer) {
  const std::string folder = TestFolder("taken");
  ASSERT_TRUE(SaveTokenizer(*LoadSmall(), FileSystem::Posix(), folder).ok());
  const absl::Status status =
      SaveTokenizer(*Load("byte"), FileSystem::Posix(), folder);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), testing::HasSubstr("small.tiktoken"));
  EXPECT_EQ(Load(folder)->sha256(), LoadSmall()->sha256());
}

}  // namespace
}  // namespace cubit
