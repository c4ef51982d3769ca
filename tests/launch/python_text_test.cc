// SPDX-License-Identifier: Apache-2.0
//
// Expected values are what CPython 3.11 gives.

#include "launch/python_text.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cubit {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

TEST(PythonStrip, TakesUnicodeWhiteSpaceFromBothEnds) {
  const std::string space = "\t\n\x1c\x1f \u0085\u00a0\u1680\u200a\u2029\u3000";
  EXPECT_EQ(PythonStripLeft(space + "a b" + space), "a b" + space);
  EXPECT_EQ(PythonStripRight(space + "a b" + space), space + "a b");
  EXPECT_EQ(PythonStrip(space + "a b" + space), "a b");
  EXPECT_EQ(PythonStrip(space), "");
  EXPECT_EQ(PythonStrip(""), "");
}

TEST(PythonStrip, LeavesWhatIsNoWhiteSpace) {
  // Zero-width space, byte order mark, U+180E; and a byte that is no UTF-8.
  for (const char* text : {"\u200b", "\ufeff", "\u180e", "\xa0", "a\xe2\x80"}) {
    EXPECT_EQ(PythonStrip(text), text);
  }
}

TEST(PythonCapitalize, RaisesTheFirstAndLowersTheRest) {
  EXPECT_EQ(PythonCapitalize("hELLO World"), "Hello world");
  EXPECT_EQ(PythonCapitalize("éCOLE Ünder"), "École ünder");
  EXPECT_EQ(PythonCapitalize("ΑΒΓ ΔΕ"), "Αβγ δε");
  EXPECT_EQ(PythonCapitalize("1A b"), "1a b");
  EXPECT_EQ(PythonCapitalize("ñ"), "Ñ");
  // Title case is not upper case everywhere.
  EXPECT_EQ(PythonCapitalize("ǆ"), "ǅ");
  EXPECT_EQ(PythonCapitalize("აბ"), "აბ");
  EXPECT_EQ(PythonCapitalize(""), "");
  EXPECT_EQ(PythonCapitalize("A\xff B"), "A\xff b");
}

TEST(PythonLength, CountsCodePoints) {
  EXPECT_EQ(PythonLength(""), 0);
  EXPECT_EQ(PythonLength("naïve – 😀"), 9);
}

TEST(PythonLiteral, ReadsWhatReprWrites) {
  const auto value = ParsePythonLiteral(
      R"([{'question': 'What\'s "it"?', 'options': ["it's", 'é\u2013\n\x41',)"
      R"( '\\'], 'n': -12, 'ok': True, 'none': None}, [], {}])");
  ASSERT_TRUE(value.ok()) << value.status();
  const Json want = {{{"question", "What's \"it\"?"},
                      {"options", {"it's", "é–\nA", "\\"}},
                      {"n", -12},
                      {"ok", true},
                      {"none", nullptr}},
                     Json::array(),
                     Json::object()};
  EXPECT_EQ(*value, want);
}

TEST(PythonLiteral, ReadsJson) {
  const auto value = ParsePythonLiteral(R"( {"a": ["\u00e9", false, null]} )");
  ASSERT_TRUE(value.ok()) << value.status();
  EXPECT_EQ(*value, Json::parse(R"({"a": ["é", false, null]})"));
}

TEST(PythonLiteral, RefusesEverythingElse) {
  const std::string deep(100000, '[');
  for (const std::string& text :
       {std::string(), std::string("["), std::string("[1,,2]"),
        std::string("{'a' 1}"), std::string("{1: 2}"), std::string("'abc"),
        std::string("'\\q'"), std::string("'\\ud800'"), std::string("'\\x4'"),
        std::string("[1] 2"), std::string("-"), std::string("9999999999999999"),
        std::string("__import__('os')"), deep}) {
    const auto value = ParsePythonLiteral(text);
    ASSERT_FALSE(value.ok()) << text.substr(0, 20);
    EXPECT_THAT(std::string(value.status().message()),
                HasSubstr("not a Python literal: at byte"));
  }
}

}  // namespace
}  // namespace cubit
