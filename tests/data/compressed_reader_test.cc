// SPDX-License-Identifier: Apache-2.0

#include "data/compressed_reader.h"

#include <errno.h>
#include <sys/stat.h>

#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lzma.h"

#include "tests/data/compress.h"

namespace cubit {
namespace {

using testing::HasSubstr;

constexpr int64_t kNoLimit = int64_t{1} << 40;

// Words in a random order: neither trivial nor incompressible.
std::string Words(size_t bytes) {
  std::mt19937 random(1);
  std::string text;
  while (text.size() < bytes) {
    absl::StrAppend(&text, "word", random() % 1000, random() % 7 ? " " : "\n");
  }
  text.resize(bytes);
  return text;
}

absl::StatusOr<std::string> Decompress(Compression compression,
                                       absl::string_view data) {
  auto reader = MakeDecompressor(compression, MakeMemoryReader(data), "input");
  return ReadToEnd(*reader, "input", kNoLimit);
}

class EveryFormat : public testing::TestWithParam<Compression> {};

INSTANTIATE_TEST_SUITE_P(Compressions, EveryFormat,
                         testing::Values(Compression::kGzip, Compression::kXz,
                                         Compression::kZstd));

TEST_P(EveryFormat, GivesTheTextBack) {
  for (const size_t size : {0, 1, 1000, 65536, 300000}) {
    const std::string text = Words(size);
    const auto back = Decompress(GetParam(), Compress(GetParam(), text));
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(*back, text);
  }
}

TEST_P(EveryFormat, JoinsMembersAndEmptyOnes) {
  const auto member = [](absl::string_view text) {
    return Compress(GetParam(), text);
  };
  const auto text = Decompress(
      GetParam(), absl::StrCat(member("one "), member(""), member("two "),
                               member("three"), member("")));
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(*text, "one two three");
}

TEST_P(EveryFormat, ReadsAnyNumberOfBytesAtATime) {
  const std::string text = Words(5000);
  const std::string data = Compress(GetParam(), text);
  for (const int64_t size : {1, 7, 4999, 5000, 100000}) {
    auto reader = MakeDecompressor(GetParam(), MakeMemoryReader(data), "input");
    std::string back;
    std::string buffer(static_cast<size_t>(size), '\0');
    while (true) {
      const auto count = reader->Read(buffer.data(), size);
      ASSERT_TRUE(count.ok()) << count.status();
      if (*count == 0) break;
      ASSERT_LE(*count, size);
      back.append(buffer, 0, static_cast<size_t>(*count));
    }
    EXPECT_EQ(back, text);
  }
}

TEST_P(EveryFormat, CutOffAnywhereIsAnError) {
  const std::string data = Compress(GetParam(), Words(3000));
  for (size_t size = 0; size < data.size(); ++size) {
    const auto text = Decompress(GetParam(), data.substr(0, size));
    ASSERT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument) << size;
    EXPECT_THAT(text.status().message(), HasSubstr("input: "));
    EXPECT_THAT(text.status().message(), HasSubstr("offset"));
  }
}

TEST_P(EveryFormat, AnyFlippedBitIsAnErrorOrChangesNothing) {
  const std::string text = Words(2000);
  const std::string data = Compress(GetParam(), text);
  size_t errors = 0;
  for (size_t bit = 0; bit < data.size() * 8; ++bit) {
    std::string damaged = data;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ 1 << bit % 8);
    const auto back = Decompress(GetParam(), damaged);
    if (back.ok()) {
      ASSERT_EQ(*back, text) << "bit " << bit;
    } else {
      ++errors;
      ASSERT_EQ(back.status().code(), absl::StatusCode::kInvalidArgument);
    }
  }
  // Only fields that say nothing about the text may change unseen.
  EXPECT_GT(errors, data.size() * 8 - 100);
}

TEST_P(EveryFormat, BytesAfterTheEndAreAnError) {
  const std::string data = Compress(GetParam(), "text");
  EXPECT_FALSE(Decompress(GetParam(), data + "more").ok());
  EXPECT_FALSE(Decompress(GetParam(), "more" + data).ok());
}

TEST_P(EveryFormat, ErrorsRepeat) {
  auto reader = MakeDecompressor(GetParam(), MakeMemoryReader("no"), "input");
  char buffer[10];
  const auto first = reader->Read(buffer, sizeof(buffer));
  ASSERT_FALSE(first.ok());
  EXPECT_EQ(reader->Read(buffer, sizeof(buffer)).status(), first.status());
}

TEST_P(EveryFormat, RandomBytesNeverCrash) {
  std::mt19937 random(2);
  const std::string valid = Compress(GetParam(), Words(500));
  for (int round = 0; round < 2000; ++round) {
    // A valid beginning gets the decoder deeper than its magic number.
    std::string data = valid.substr(0, random() % 40);
    for (size_t i = random() % 200; i > 0; --i) {
      data.push_back(static_cast<char>(random()));
    }
    EXPECT_FALSE(Decompress(GetParam(), data).ok());
  }
}

TEST_P(EveryFormat, ABombStopsAtTheLimit) {
  const std::string bomb = Compress(GetParam(), std::string(8 << 20, '0'));
  EXPECT_LT(bomb.size(), 20000u);
  auto reader = MakeDecompressor(GetParam(), MakeMemoryReader(bomb), "input");
  const auto text = ReadToEnd(*reader, "input", 1 << 20);
  EXPECT_THAT(text.status().message(), HasSubstr("more than the 1048576"));
}

TEST(XzReader, RefusesADictionaryOverTheMemoryLimit) {
  std::string data = Compress(Compression::kXz, Words(100));
  // The stream header has 12 bytes; the block header after it gives its size,
  // the filters (LZMA2 is 0x21 with one byte, the dictionary's) and a CRC-32.
  constexpr size_t kBlock = 12;
  const size_t size = (static_cast<size_t>(data[kBlock]) + 1) * 4;
  const size_t filter = data.find("\x21\x01", kBlock);
  ASSERT_LT(filter, kBlock + size);
  data[filter + 2] = 40;  // 4 GiB - 1
  const uint32_t crc = lzma_crc32(
      reinterpret_cast<const uint8_t*>(data.data()) + kBlock, size - 4, 0);
  for (size_t i = 0; i < 4; ++i) {
    data[kBlock + size - 4 + i] = static_cast<char>(crc >> 8 * i);
  }
  EXPECT_THAT(Decompress(Compression::kXz, data).status().message(),
              HasSubstr("256 MiB"));
}

TEST(ZstdReader, RefusesAWindowOverTheMemoryLimit) {
  // A frame with a window descriptor and one empty last block.
  const std::string frame("\x28\xB5\x2F\xFD\x00\x88\x01\x00\x00", 9);
  std::string huge = frame;
  huge[5] = '\x90';  // 2^28 bytes instead of 2^27
  EXPECT_TRUE(Decompress(Compression::kZstd, frame).ok());
  EXPECT_FALSE(Decompress(Compression::kZstd, huge).ok());
}

TEST(CompressionOf, GoesByTheSuffixInAnyCase) {
  const std::vector<std::pair<std::string, Compression>> cases = {
      {"a.gz", Compression::kGzip},       {"a.dz", Compression::kGzip},
      {"b/a.TXT.GZ", Compression::kGzip}, {"a.jsonl.xz", Compression::kXz},
      {"a.zst", Compression::kZstd},      {"a.txt", Compression::kNone},
      {"gz", Compression::kNone},         {"", Compression::kNone}};
  for (const auto& [name, compression] : cases) {
    EXPECT_EQ(CompressionOf(name), compression) << name;
  }
  EXPECT_EQ(WithoutCompressionSuffix("b/a.txt.GZ"), "b/a.txt");
  EXPECT_EQ(WithoutCompressionSuffix("a.txt"), "a.txt");
}

TEST(OpenCompressedFile, NamesTheFileInEveryError) {
  const std::string good =
      WriteTestFile("good.gz", Compress(Compression::kGzip, "text"));
  auto reader = OpenCompressedFile(good);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ(ReadToEnd(**reader, good, 4).value(), "text");

  EXPECT_EQ(OpenCompressedFile(good + ".missing").status().code(),
            absl::StatusCode::kNotFound);
  const auto folder = OpenCompressedFile(testing::TempDir());
  EXPECT_THAT(folder.status().message(), HasSubstr("is a folder"));
  const std::string pipe = testing::TempDir() + "/pipe";
  ASSERT_TRUE(mkfifo(pipe.c_str(), 0600) == 0 || errno == EEXIST);
  EXPECT_THAT(OpenCompressedFile(pipe).status().message(),
              HasSubstr(pipe + ": is a device or pipe"));
  const std::string plain = WriteTestFile("plain.xz", "not compressed");
  EXPECT_THAT(
      ReadToEnd(**OpenCompressedFile(plain), plain, 100).status().message(),
      HasSubstr(plain + ": xz data is damaged"));
}

}  // namespace
}  // namespace cubit
