// SPDX-License-Identifier: Apache-2.0

#include "launch/text_tail.h"

#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "data/utf8.h"
#include "runtime/philox.h"

namespace cubit {
namespace {

TEST(TextTail, ShowsWholeCharacters) {
  TextTail tail({});
  EXPECT_FALSE(tail.Append("a\xC3"));
  EXPECT_EQ(tail.TakeReady(), "a");
  EXPECT_FALSE(tail.Append("\xA9 \xF0\x9F\x98"));
  EXPECT_EQ(tail.TakeReady(), "\u00e9 ");
  EXPECT_FALSE(tail.Append("\x80"));
  EXPECT_EQ(tail.TakeReady(), "\U0001F600");
  EXPECT_EQ(tail.TakeReady(), "");
  EXPECT_FALSE(tail.Append("\xC3"));
  EXPECT_EQ(tail.TakeReady(), "");
  EXPECT_EQ(tail.TakeRest(), "\xC3");
}

TEST(TextTail, HoldsBackWhatMayBecomeAStopString) {
  TextTail tail({"\n\n", "END"});
  EXPECT_FALSE(tail.Append("one\nE"));
  EXPECT_EQ(tail.TakeReady(), "one\n");
  EXPECT_FALSE(tail.Append("N"));
  EXPECT_EQ(tail.TakeReady(), "");
  EXPECT_FALSE(tail.Append("T"));
  EXPECT_EQ(tail.TakeReady(), "ENT");
  EXPECT_FALSE(tail.Append("\n"));
  EXPECT_EQ(tail.TakeReady(), "");
  EXPECT_TRUE(tail.Append("\nEND"));
  EXPECT_EQ(tail.TakeRest(), "");
  EXPECT_EQ(tail.text(), "one\nENT");
}

TEST(TextTail, CutsBeforeTheFirstStopStringOfSeveral) {
  TextTail tail({"dog", "a d", ""});
  EXPECT_TRUE(tail.Append("I have a dog"));
  EXPECT_EQ(tail.text(), "I have ");
  EXPECT_EQ(tail.TakeRest(), "I have ");
}

TEST(TextTail, HoldsWholeCharactersThatAStopStringShares) {
  // The stop string begins like the text's last character and goes on as
  // another: nothing may be shown of it.
  TextTail tail({"\u00e8"});
  EXPECT_FALSE(tail.Append("x\xC3"));
  EXPECT_EQ(tail.TakeReady(), "x");
  EXPECT_FALSE(tail.Append("\xA9"));
  EXPECT_EQ(tail.TakeReady(), "\u00e9");
}

// However a text is cut into pieces, what was shown is its part before the
// first stop string, in whole characters.
TEST(TextTail, ShowsTheSameForEveryCut) {
  const std::vector<std::string> stop = {"abca", "\u00e9a"};
  const Philox random(1, "cuts");
  uint64_t draw = 0;
  const auto below = [&](uint64_t n) { return random.Bits(draw++) % n; };
  const std::vector<std::string> alphabet = {"a", "b", "c", "\u00e9", "\u4e2d"};
  for (int round = 0; round < 500; ++round) {
    std::string text;
    for (int i = 0; i < 30; ++i) text += alphabet[below(alphabet.size())];
    size_t want = text.size();
    for (const std::string& word : stop) want = std::min(want, text.find(word));
    TextTail tail(stop);
    std::string shown;
    bool stopped = false;
    for (size_t at = 0; at < text.size() && !stopped;) {
      const size_t length = 1 + below(4);
      stopped = tail.Append(absl::string_view(text).substr(at, length));
      at += length;
      if (stopped) continue;
      shown += std::string(tail.TakeReady());
      EXPECT_EQ(ValidUtf8Prefix(shown), static_cast<int64_t>(shown.size()));
    }
    shown += std::string(tail.TakeRest());
    EXPECT_EQ(shown, text.substr(0, want));
    EXPECT_EQ(tail.text(), shown);
    EXPECT_EQ(stopped, want < text.size());
  }
}

}  // namespace
}  // namespace cubit
