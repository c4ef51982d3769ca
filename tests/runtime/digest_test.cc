// SPDX-License-Identifier: Apache-2.0

#include "runtime/digest.h"

#include <algorithm>
#include <string>

#include "gtest/gtest.h"

namespace cubit {
namespace {

// FIPS 180-4, examples of NIST.
TEST(Sha256, KnownAnswers) {
  EXPECT_EQ(Sha256Hex(""),
            "e3b0c44298fc1c149afbf4c8996fb924"
            "27ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Hex("abc"),
            "ba7816bf8f01cfea414140de5dae2223"
            "b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(
      Sha256Hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
      "248d6a61d20638b8e5c026930c3e6039"
      "a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(Sha256Hex(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67"
            "f1809a48a497200e046d39ccc7112cd0");
}

// The values for no input are those of the XXH3 specification; the others come
// from `xxhsum -H3` and `xxhsum -H2`.
TEST(Xxh3, KnownAnswers) {
  EXPECT_EQ(Xxh3_64("", 0), 0x2d06800538d394c2u);
  EXPECT_EQ(Xxh3_128Hex("", 0), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(Xxh3_64("abc", 3), 0x78af5f94892f3950u);
  EXPECT_EQ(Xxh3_128Hex("abc", 3), "06b05ab6733a618578af5f94892f3950");
  const std::string long_text(1000, 'x');
  EXPECT_EQ(Xxh3_64(long_text.data(), 1000), 0xc0a4877b962cba82u);
  EXPECT_EQ(Xxh3_128Hex(long_text.data(), 1000),
            "50a1af5a5f2dcf01c0a4877b962cba82");
}

TEST(Xxh3Stream, EqualsOneCallHoweverTheBytesAreCut) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text.push_back(static_cast<char>(i * 31 + 7));
  for (const size_t piece : {size_t{1}, size_t{63}, size_t{64}, size_t{4096}}) {
    Xxh3_128Stream stream;
    for (size_t begin = 0; begin < text.size(); begin += piece) {
      stream.Update(text.data() + begin, std::min(piece, text.size() - begin));
    }
    EXPECT_EQ(stream.Hex(), Xxh3_128Hex(text.data(), text.size())) << piece;
  }
}

TEST(Xxh3Stream, AcceptsNothing) {
  Xxh3_128Stream stream;
  stream.Update(nullptr, 0);
  EXPECT_EQ(stream.Hex(), Xxh3_128Hex("", 0));
}

TEST(Xxh3Stream, CanBeReadOnTheWay) {
  Xxh3_128Stream stream;
  stream.Update("ab", 2);
  EXPECT_EQ(stream.Hex(), Xxh3_128Hex("ab", 2));
  stream.Update("c", 1);
  EXPECT_EQ(stream.Hex(), Xxh3_128Hex("abc", 3));
}

TEST(Digests, ChangeWithEveryBit) {
  const std::string text = "0123456789abcdef0123456789abcdef";
  const std::string original = Xxh3_128Hex(text.data(), text.size());
  for (size_t bit = 0; bit < text.size() * 8; ++bit) {
    std::string flipped = text;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    EXPECT_NE(Xxh3_128Hex(flipped.data(), flipped.size()), original) << bit;
  }
}

}  // namespace
}  // namespace cubit
