// SPDX-License-Identifier: Apache-2.0

#include "data/utf8.h"

#include <string>

#include "gtest/gtest.h"

namespace cubit {
namespace {

// The code point that `bytes` spells by the arithmetic of UTF-8, or -1: an
// oracle that knows no table of ranges.
int64_t CodePoint(absl::string_view bytes) {
  const auto at = [&](size_t i) {
    return static_cast<unsigned char>(bytes[i]);
  };
  const int first = at(0);
  const size_t length = first < 0x80             ? 1
                        : (first & 0xE0) == 0xC0 ? 2
                        : (first & 0xF0) == 0xE0 ? 3
                        : (first & 0xF8) == 0xF0 ? 4
                                                 : 0;
  if (length == 0 || bytes.size() < length) return -1;
  int64_t point = length == 1 ? first : first & (0x7F >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((at(i) & 0xC0) != 0x80) return -1;
    point = point << 6 | (at(i) & 0x3F);
  }
  const int64_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = point >= 0xD800 && point <= 0xDFFF;
  if (point < smallest[length] || point > 0x10FFFF || surrogate) return -1;
  return point;
}

TEST(Utf8CharacterLength, AgreesWithTheDefinitionOnTheEdgesOfEveryRange) {
  const unsigned char edges[] = {0x00, 0x7F, 0x80, 0x8F, 0x90,
                                 0x9F, 0xA0, 0xBF, 0xC0, 0xFF};
  int64_t valid = 0;
  for (int first = 0; first < 256; ++first) {
    for (const unsigned char second : edges) {
      for (const unsigned char third : edges) {
        for (const unsigned char fourth : edges) {
          const std::string bytes = {
              static_cast<char>(first), static_cast<char>(second),
              static_cast<char>(third), static_cast<char>(fourth)};
          const bool is_character = CodePoint(bytes) >= 0;
          ASSERT_EQ(Utf8CharacterLength(bytes) > 0, is_character)
              << testing::PrintToString(bytes);
          valid += is_character ? 1 : 0;
        }
      }
    }
  }
  EXPECT_GT(valid, 128000);
}

TEST(Utf8CharacterLength, IsZeroForCharactersCutOff) {
  for (const std::string text : {"\u00e9", "\u20ac", "\U0001F600"}) {
    EXPECT_EQ(Utf8CharacterLength(text), static_cast<int>(text.size()));
    for (size_t size = 0; size < text.size(); ++size) {
      EXPECT_EQ(Utf8CharacterLength(text.substr(0, size)), 0);
    }
  }
}

TEST(ValidUtf8Prefix, StopsAtTheFirstBadByteWhereverItIs) {
  const std::string text = "plain \u00e9 and \u20ac or \U0001F600, then plain";
  EXPECT_EQ(ValidUtf8Prefix(text), static_cast<int64_t>(text.size()));
  EXPECT_EQ(ValidUtf8Prefix(""), 0);
  for (size_t at = 0; at <= text.size(); ++at) {
    if (at < text.size() && (text[at] & 0xC0) == 0x80) continue;
    std::string damaged = text;
    damaged.insert(at, 1, '\xFF');
    EXPECT_EQ(ValidUtf8Prefix(damaged), static_cast<int64_t>(at));
  }
}

}  // namespace
}  // namespace cubit
