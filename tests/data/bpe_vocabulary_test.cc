// SPDX-License-Identifier: Apache-2.0

#include "data/bpe_vocabulary.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "data/byte_level.h"
#include "runtime/digest.h"

namespace cubit {
namespace {

using testing::HasSubstr;

// The bytes, "ab" (256), "abc" (257) and the end of text (258).
BpeVocabulary Good() {
  BpeVocabulary vocabulary;
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary.tokens.push_back({std::string(1, static_cast<char>(byte))});
  }
  vocabulary.tokens.push_back({"ab"});
  vocabulary.tokens.push_back({"abc"});
  vocabulary.tokens.push_back({kEndOfText, true});
  vocabulary.merges = {{'a', 'b', 256}, {256, 'c', 257}};
  vocabulary.eot_id = 258;
  return vocabulary;
}

std::string Fault(const BpeVocabulary& vocabulary) {
  return std::string(CheckBpeVocabulary(vocabulary).message());
}

TEST(CheckBpeVocabulary, TakesAGoodOne) {
  EXPECT_TRUE(CheckBpeVocabulary(Good()).ok());
}

TEST(CheckBpeVocabulary, RefusesBadTokens) {
  BpeVocabulary bad = Good();
  bad.tokens[7].bytes = "ab";
  EXPECT_THAT(Fault(bad), HasSubstr("\"ab\" occurs twice"));
  bad.tokens[7].bytes = "";
  EXPECT_THAT(Fault(bad), HasSubstr("empty"));
  bad.tokens[7] = {"\x07", true};
  EXPECT_THAT(Fault(bad), HasSubstr("byte 0x07 is not a token"));
  bad = Good();
  bad.tokens.push_back({"xyz"});
  EXPECT_THAT(Fault(bad), HasSubstr("token 259, \"xyz\", is made by no merge"));
}

TEST(CheckBpeVocabulary, RefusesBadMerges) {
  BpeVocabulary bad = Good();
  bad.merges[0].right = 'c';
  EXPECT_THAT(Fault(bad), HasSubstr("makes \"ab\" of \"a\" and \"c\""));
  bad = Good();
  bad.merges.push_back(bad.merges[0]);
  EXPECT_THAT(Fault(bad), HasSubstr("\"a\" and \"b\" occurs twice"));
  for (const int32_t id : {-1, 258, 259, 1 << 30}) {
    bad = Good();
    bad.merges[1].left = id;
    EXPECT_THAT(Fault(bad), HasSubstr("no ordinary token"));
  }
}

TEST(CheckBpeVocabulary, NeedsAnEndOfText) {
  for (const int32_t id : {-1, 257, 259}) {
    BpeVocabulary bad = Good();
    bad.eot_id = id;
    EXPECT_THAT(Fault(bad), HasSubstr("<|endoftext|>"));
  }
}

TEST(BpeVocabularySha256, HashesTheDocumentedForm) {
  std::string form = "cubit-bpe-1\n";
  form += std::string("\x03\x01\x00\x00", 4);
  for (int byte = 0; byte < 256; ++byte) {
    form += std::string("\x01\x00\x00\x00\x00", 5);
    form.push_back(static_cast<char>(byte));
  }
  form += std::string(
      "\x02\x00\x00\x00\x00"
      "ab",
      7);
  form += std::string(
      "\x03\x00\x00\x00\x00"
      "abc",
      8);
  form += std::string("\x0D\x00\x00\x00\x01<|endoftext|>", 18);
  form += std::string("\x02\x01\x00\x00", 4);
  form += std::string("\x02\x00\x00\x00", 4);
  form += std::string("a\0\0\0b\0\0\0\0\x01\0\0", 12);
  form += std::string("\0\x01\0\0c\0\0\0\x01\x01\0\0", 12);
  EXPECT_EQ(BpeVocabularySha256(Good()), Sha256Hex(form));
}

TEST(BpeVocabularySha256, TellsEveryFieldApart) {
  const std::string good = BpeVocabularySha256(Good());
  BpeVocabulary other = Good();
  other.tokens[257].bytes = "abd";
  EXPECT_NE(BpeVocabularySha256(other), good);
  other = Good();
  std::swap(other.merges[0], other.merges[1]);
  EXPECT_NE(BpeVocabularySha256(other), good);
  other = Good();
  other.tokens[257].special = true;
  EXPECT_NE(BpeVocabularySha256(other), good);
  other = Good();
  other.eot_id = 257;
  EXPECT_NE(BpeVocabularySha256(other), good);
}

TEST(ByteLevel, SpellsEveryByteByAnotherPrintableCharacter) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) {
    all.push_back(static_cast<char>(byte));
  }
  std::string back;
  ASSERT_TRUE(BytesOfSpelling(SpellingOfBytes(all), &back));
  EXPECT_EQ(back, all);
  EXPECT_EQ(SpellingOfBytes(std::string(" \n\0~\x7F\xA0\xAD\xFF", 8)),
            "\u0120\u010A\u0100~\u0121\u0142\u0143\u00FF");
}

TEST(ByteLevel, RefusesCharactersThatSpellNothing) {
  std::string bytes;
  for (const char* spelling : {" ", "\n", "\u0144", "\u01FF", "\u4e2d", "\xFF",
                               "\xC4", "\u00AD", "\x7F", "a\U0001F600"}) {
    EXPECT_FALSE(BytesOfSpelling(spelling, &bytes)) << spelling;
  }
}

}  // namespace
}  // namespace cubit
