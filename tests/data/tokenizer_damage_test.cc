// SPDX-License-Identifier: Apache-2.0
//
// Tokenizer files that are damaged, wrong or hostile: an error that names the
// file and the fault, never a crash and never other ids.

#include <filesystem>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "data/tokenizer.h"
#include "data/tokenizer_files.h"
#include "data/tokenizer_json.h"
#include "tests/data/compress.h"
#include "tests/data/small_vocabulary.h"

namespace cubit {
namespace {

using Json = nlohmann::json;
using testing::HasSubstr;

// The message of loading a file with these contents, which must fail and name
// the file.
std::string Fault(const std::string& name, const std::string& contents) {
  const std::string path = WriteTestFile("damaged/" + name, contents);
  const auto tokenizer = LoadTokenizer(path);
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(tokenizer.status().message());
  EXPECT_THAT(message, HasSubstr(path));
  EXPECT_LT(message.size(), path.size() + 400);
  return message;
}

// A tokenizer.json changed at one place ("/model/type"; null removes it).
std::string JsonFault(const std::string& pointer, const Json& value) {
  Json json = Json::parse(MakeSmallVocabulary().tokenizer_json);
  json[Json::json_pointer(pointer)] = value;
  return Fault("tokenizer.json", json.dump());
}

TEST(TokenizerJson, RefusesWhatWouldGiveOtherIds) {
  const std::vector<std::pair<std::string, Json>> changes = {
      {"/normalizer", {{"type", "NFC"}}},
      {"/model/type", "WordPiece"},
      {"/model/dropout", 0.1},
      {"/model/continuing_subword_prefix", "##"},
      {"/model/end_of_word_suffix", "</w>"},
      {"/model/byte_fallback", true},
      {"/model/ignore_merges", true},
      {"/pre_tokenizer/type", "Sequence"},
      {"/pre_tokenizer/add_prefix_space", true},
      {"/pre_tokenizer/use_regex", false}};
  for (const auto& [pointer, value] : changes) {
    const std::string name =
        absl::StrReplaceAll(pointer.substr(1), {{"/", "."}});
    EXPECT_THAT(JsonFault(pointer, value),
                HasSubstr(absl::StrCat("\"", name, "\" is")));
  }
  EXPECT_THAT(JsonFault("/added_tokens/0/special", false),
              HasSubstr("is not special"));
  EXPECT_THAT(JsonFault("/pre_tokenizer", nullptr),
              HasSubstr("no \"pre_tokenizer\""));
}

TEST(TokenizerJson, RefusesWrongTypes) {
  for (const char* pointer :
       {"/model", "/model/vocab", "/model/vocab/a", "/model/merges",
        "/model/merges/3", "/added_tokens", "/added_tokens/0",
        "/added_tokens/0/id", "/added_tokens/0/content"}) {
    for (const Json& value : {Json(true), Json(1.5), Json(Json::array({1})),
                              Json("x y z"), Json({{"a", Json::array()}})}) {
      EXPECT_NE(JsonFault(pointer, value), "") << pointer << value;
    }
  }
  EXPECT_THAT(Fault("t.json", "{}"), HasSubstr("no \"model\""));
  EXPECT_THAT(Fault("t.json", MakeSmallVocabulary().encoder_json),
              HasSubstr("name the folder"));
}

TEST(TokenizerJson, RefusesWrongIdsAndMerges) {
  EXPECT_THAT(JsonFault("/model/vocab/a", 5), HasSubstr("id 5 belongs to"));
  EXPECT_THAT(JsonFault("/model/vocab/a", -1), HasSubstr("without holes"));
  EXPECT_THAT(JsonFault("/model/vocab/a", 4000000000000000000),
              HasSubstr("without holes"));
  EXPECT_THAT(JsonFault("/model/vocab/a", 1e300), HasSubstr("an integer"));
  EXPECT_THAT(JsonFault("/model/vocab/zz", kSmallEotId + 1),
              HasSubstr("made by no merge"));
  EXPECT_THAT(JsonFault("/model/vocab/z z", kSmallEotId + 1),
              HasSubstr("spells no byte"));
  EXPECT_THAT(JsonFault("/model/merges/0", "t t"),
              HasSubstr("a merge needs token \"tt\""));
  EXPECT_THAT(JsonFault("/model/merges/1", "t h"), HasSubstr("occurs twice"));
  for (const char* merge : {"th", "t  h", " th", "th ", "t h e", ""}) {
    EXPECT_THAT(JsonFault("/model/merges/0", merge),
                HasSubstr("not two tokens"));
  }
  for (const Json& merge :
       {Json::array({"t"}), Json::array(), Json::array({"t", "h", "e"})}) {
    EXPECT_THAT(JsonFault("/model/merges/0", merge), HasSubstr("two tokens"));
  }
  EXPECT_THAT(JsonFault("/added_tokens/0/id", 3), HasSubstr("has ids"));
  EXPECT_THAT(JsonFault("/added_tokens/0/content", "other"),
              HasSubstr("id 265 belongs to"));
}

TEST(TokenizerJson, RefusesRepeatedKeysAndDeepNesting) {
  const std::string good = MakeSmallVocabulary().tokenizer_json;
  EXPECT_THAT(
      Fault("t.json", absl::StrReplaceAll(
                          good, {{"\"vocab\":{", "\"vocab\":{\"a\":1,"}})),
      HasSubstr("\"a\" occurs twice"));
  EXPECT_THAT(Fault("t.json", "{\"x\":" + std::string(1 << 20, '[')),
              HasSubstr("nested over"));
}

TEST(EncoderJson, NamesBothFilesAndTheFault) {
  const SmallVocabulary files = MakeSmallVocabulary();
  const std::string folder = testing::TempDir() + "/bad_pair";
  std::filesystem::remove_all(folder);
  const auto fault = [&](const std::string& encoder,
                         const std::string& merges) {
    WriteTestFile("bad_pair/encoder.json", encoder);
    WriteTestFile("bad_pair/vocab.bpe", merges);
    const auto tokenizer = LoadTokenizer(folder);
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(
        std::string(tokenizer.status().message()),
        testing::AllOf(HasSubstr("encoder.json"), HasSubstr("vocab.bpe")));
    return std::string(tokenizer.status().message());
  };
  EXPECT_THAT(fault("[1]", files.vocab_bpe), HasSubstr("an array"));
  EXPECT_THAT(fault("{\"a\": \"b\"}", files.vocab_bpe),
              HasSubstr("is a string"));
  EXPECT_THAT(fault("{\"a\": [[0]]}", files.vocab_bpe),
              HasSubstr("is an array"));
  EXPECT_THAT(fault("{}", files.vocab_bpe), HasSubstr("a merge needs"));
  EXPECT_THAT(fault("{}", ""), HasSubstr("byte 0x00"));
  EXPECT_THAT(fault(files.encoder_json, ""), HasSubstr("made by no merge"));
  EXPECT_THAT(fault(files.encoder_json, files.vocab_bpe + "no_space\n"),
              HasSubstr("no_space"));
  std::filesystem::remove(folder + "/vocab.bpe");
  EXPECT_THAT(std::string(LoadTokenizer(folder).status().message()),
              HasSubstr("has encoder.json but no vocab.bpe"));
}

TEST(Tiktoken, RefusesBadLines) {
  const std::string good = MakeSmallVocabulary().tiktoken;
  for (const char* line : {"YQ==", "YQ== x", "!!! 265", "YQ== 265 1", " 265",
                           "YQ== 99999999999999999999"}) {
    EXPECT_THAT(Fault("t.tiktoken", absl::StrCat(good, line, "\n")),
                testing::AnyOf(HasSubstr("line 266"), HasSubstr("is empty")))
        << line;
  }
  EXPECT_THAT(Fault("t.tiktoken", good + "enp6 265\n"),
              HasSubstr("is not two tokens"));
  EXPECT_THAT(Fault("t.tiktoken", good + "YQ== 265\n"),
              HasSubstr("occurs twice"));
  EXPECT_THAT(Fault("t.tiktoken", good + "eno= 264\n"),
              HasSubstr("rank 264 is out of place"));
  EXPECT_THAT(Fault("t.tiktoken", good + "eno= 4000000000000000000\n"),
              HasSubstr("out of place"));
  EXPECT_THAT(Fault("t.tiktoken", "YQ== 0\n"), HasSubstr("256 single bytes"));
  EXPECT_THAT(Fault("t.tiktoken", " \n"), HasSubstr("is empty"));
}

TEST(Tiktoken, RefusesEncodingsThatCutOtherwise) {
  std::string file;
  for (int rank = 0; rank < 100256; ++rank) {
    absl::StrAppend(&file, "YQ== ", rank, "\n");
  }
  EXPECT_THAT(Fault("cl100k.tiktoken", file), HasSubstr("cl100k_base"));
}

TEST(LoadTokenizer, SaysWhatIsMissing) {
  const auto missing = LoadTokenizer("no/such/file");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()),
              testing::AllOf(HasSubstr("no/such/file"), HasSubstr("wanted")));
  const std::string folder = testing::TempDir() + "/no_tokenizer";
  std::filesystem::create_directories(folder);
  EXPECT_THAT(std::string(LoadTokenizer(folder).status().message()),
              HasSubstr("holds no tokenizer"));
  EXPECT_THAT(Fault("byte_tokenizer.json", "{\"type\": \"byte\"}"),
              HasSubstr("version 0"));
  EXPECT_THAT(Fault("byte_tokenizer.json", "{\"version\": 1}"),
              HasSubstr("\"type\""));
  EXPECT_THAT(Fault("byte_tokenizer.json", "x"), HasSubstr("invalid JSON"));
}

TEST(LoadTokenizer, BoundsWhatABombExpandsTo) {
  EXPECT_THAT(
      Fault("bomb.json.gz", Compress(Compression::kGzip,
                                     "{" + std::string((64 << 20) + 1, ' '))),
      HasSubstr("more than the 67108864 bytes"));
}

// Bytes cut off, changed, removed and repeated: whatever still loads passed
// every check, and must give any text back.
TEST(TokenizerParsers, SurviveRandomDamage) {
  const SmallVocabulary files = MakeSmallVocabulary();
  std::mt19937 random(7);
  int refused = 0;
  for (int round = 0; round < 1500; ++round) {
    SmallVocabulary damaged = files;
    std::string* const targets[] = {&damaged.encoder_json, &damaged.vocab_bpe,
                                    &damaged.tokenizer_json, &damaged.tiktoken};
    std::string* const target = targets[round % 4];
    const size_t at = random() % target->size();
    switch (random() % 4) {
      case 0:
        target->resize(at);
        break;
      case 1:
        (*target)[at] = static_cast<char>(random());
        break;
      case 2:
        target->erase(at, 1 + random() % 20);
        break;
      default:
        target->insert(at, target->substr(random() % target->size(), 20));
    }
    absl::StatusOr<BpeVocabulary> vocabulary =
        round % 4 < 2
            ? ParseEncoderJson(damaged.encoder_json, damaged.vocab_bpe)
        : round % 4 == 2 ? ParseTokenizerJson(damaged.tokenizer_json)
                         : ParseTiktoken(damaged.tiktoken);
    if (!vocabulary.ok() || !CheckBpeVocabulary(*vocabulary).ok()) ++refused;
  }
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace cubit
