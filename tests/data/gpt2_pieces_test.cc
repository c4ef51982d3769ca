// SPDX-License-Identifier: Apache-2.0

#include "data/gpt2_pieces.h"

#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace cubit {
namespace {

using Pieces = std::vector<std::string>;

Pieces Cut(absl::string_view text) {
  Pieces pieces;
  ForEachGpt2Piece(
      text, [&](absl::string_view piece) { pieces.emplace_back(piece); });
  return pieces;
}

TEST(Gpt2Pieces, CutsWordsNumbersAndPunctuation) {
  EXPECT_EQ(Cut(""), Pieces());
  EXPECT_EQ(Cut("Hello, world 42!"),
            (Pieces{"Hello", ",", " world", " 42", "!"}));
  EXPECT_EQ(Cut("a1 b_c"), (Pieces{"a", "1", " b", "_", "c"}));
  EXPECT_EQ(Cut("\u00e9t\u00e9 \u4e2d\u6587\u0663"),
            (Pieces{"\u00e9t\u00e9", " \u4e2d\u6587", "\u0663"}));
}

TEST(Gpt2Pieces, CutsContractionsInLowerCaseOnly) {
  EXPECT_EQ(Cut("I'll we've he'd it's"),
            (Pieces{"I", "'ll", " we", "'ve", " he", "'d", " it", "'s"}));
  EXPECT_EQ(Cut("IT'S"), (Pieces{"IT", "'", "S"}));
  EXPECT_EQ(Cut("x'lly"), (Pieces{"x", "'ll", "y"}));
  EXPECT_EQ(Cut(" 's"), (Pieces{" '", "s"}));
}

TEST(Gpt2Pieces, LeavesTheLastSpaceToTheWord) {
  EXPECT_EQ(Cut("a   b"), (Pieces{"a", "  ", " b"}));
  EXPECT_EQ(Cut("a\n\nb"), (Pieces{"a", "\n", "\n", "b"}));
  EXPECT_EQ(Cut("a \n b"), (Pieces{"a", " \n", " b"}));
  EXPECT_EQ(Cut("a   "), (Pieces{"a", "   "}));
  EXPECT_EQ(Cut("a \n"), (Pieces{"a", " \n"}));
}

TEST(Gpt2Pieces, TakesTheWhiteSpaceOfUnicode) {
  // U+0085, U+00A0 and U+3000 are white space; U+180E, U+200B and U+FEFF not.
  for (const char* space :
       {"\u0085", "\u00a0", "\u1680", "\u2000", "\u200a", "\u2028", "\u2029",
        "\u202f", "\u205f", "\u3000", "\t", "\v", "\f", "\r", "\x0b"}) {
    const std::string two = std::string(space) + space;
    EXPECT_EQ(Cut(two + "a"), (Pieces{space, space, "a"}));
    EXPECT_EQ(Cut(two + "!"), (Pieces{space, space, "!"}));
  }
  for (const char* other : {"\u180e", "\u200b", "\ufeff", "\u2060"}) {
    const std::string two = std::string(other) + other;
    EXPECT_EQ(Cut(two + "a"), (Pieces{two, "a"}));
    EXPECT_EQ(Cut(two + "!"), (Pieces{two + "!"}));
  }
}

TEST(Gpt2Pieces, KeepsBytesThatAreNoUtf8Apart) {
  EXPECT_EQ(Cut("ab\xFF\xFE"
                "cd"),
            (Pieces{"ab", "\xFF\xFE", "cd"}));
  EXPECT_EQ(Cut("\xC3"), (Pieces{"\xC3"}));
  // What stands before invalid bytes is cut as at the end of a text.
  EXPECT_EQ(Cut("a  \xFF  b"), (Pieces{"a", "  ", "\xFF", " ", " b"}));
  // A surrogate spelled in three bytes.
  EXPECT_EQ(Cut("x\xED\xA0\x80y"), (Pieces{"x", "\xED\xA0\x80", "y"}));
}

TEST(Gpt2Pieces, TogetherAreTheText) {
  const std::vector<std::string> parts = {
      " ",      "  ",  "\n",   "a",      "Z",    "'",          "'s",
      "9",      "!",   "\xFF", "\u00e9", "\xC3", "\U0001F600", "\u180e",
      "\u3000", "'ll", "\0",   "\u0301", "_",    "\xF0\x9F"};
  std::mt19937 random(4);
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    for (size_t i = random() % 30; i > 0; --i) {
      text += parts[random() % parts.size()];
    }
    std::string together;
    for (const std::string& piece : Cut(text)) {
      ASSERT_FALSE(piece.empty());
      together += piece;
    }
    ASSERT_EQ(together, text);
  }
}

TEST(Gpt2Pieces, TakesMegabytesOfOneKind) {
  constexpr size_t kBytes = 8 << 20;
  for (const char c : {'a', '1', '!', ' ', '\n', '\xFF', '\0'}) {
    EXPECT_EQ(Cut(std::string(kBytes, c)).size(), 1u);
  }
  EXPECT_EQ(Cut(std::string(kBytes, ' ') + "a").size(), 2u);
}

}  // namespace
}  // namespace cubit
