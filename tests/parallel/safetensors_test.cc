// SPDX-License-Identifier: Apache-2.0

#include "parallel/safetensors.h"

#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include <nlohmann/json.hpp>

#include "runtime/file_system.h"

namespace cubit {
namespace {

using testing::HasSubstr;

std::string Length(uint64_t length) {
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes;
}

// A file of this header and so many bytes of data.
std::string File(const std::string& json, size_t data_bytes) {
  return Length(json.size()) + json + std::string(data_bytes, 'x');
}

std::string Entry(const std::string& name, const std::string& dtype,
                  const std::string& shape, const std::string& offsets) {
  return absl::StrCat("\"", name, "\":{\"dtype\":\"", dtype,
                      "\",\"shape\":", shape, ",\"data_offsets\":", offsets,
                      "}");
}

TEST(Safetensors, ParsesAFileWrittenByHand) {
  // Offsets out of order, rank 0, an empty tensor, metadata, padding.
  const std::string json =
      absl::StrCat("{\"__metadata__\":{\"format\":\"pt\"},",
                   Entry("b", "BF16", "[2,3]", "[4,16]"), ",",
                   Entry("a", "F32", "[]", "[0,4]"), ",",
                   Entry("c", "I64", "[0,9]", "[4,4]"), "}   ");
  const auto header = ParseSafetensors(File(json, 16));
  ASSERT_TRUE(header.ok()) << header.status();
  ASSERT_EQ(header->entries.size(), 3u);
  EXPECT_EQ(header->entries[0].name, "a");
  EXPECT_EQ(header->entries[0].shape.rank(), 0);
  EXPECT_EQ(header->entries[2].name, "b");
  EXPECT_EQ(header->entries[2].dtype, DType::kBFloat16);
  EXPECT_EQ(header->entries[2].offset,
            8 + static_cast<int64_t>(json.size()) + 4);
  EXPECT_EQ(header->Find("b")->size_bytes, 12);
  EXPECT_EQ(header->Find("d"), nullptr);
  EXPECT_EQ(header->metadata.at("format"), "pt");
}

TEST(Safetensors, AcceptsNoTensors) {
  EXPECT_TRUE(ParseSafetensors(File("{}", 0)).ok());
}

struct BadHeader {
  std::string json;
  std::string words;
  size_t data_bytes = 4;
};

TEST(Safetensors, RefusesWhatIsNotSound) {
  const std::string a = Entry("a", "F32", "[1]", "[0,4]");
  const std::vector<BadHeader> cases = {
      {"", "'{'"},
      {" {" + a + "}", "'{'"},
      {"[1]", "'{'"},
      {"{" + a, "malformed"},
      {"{" + a + "}}", "malformed"},
      {"{" + a + "} x", "malformed"},
      {"{" + a + "}" + std::string(2, '\0'), "NUL"},
      {"{" + a + "," + a + "}", "twice"},
      {"{" + a + "}", "has room for 5", 5},
      {"{" + a + "}", "the data has 3", 3},
      {"{}", "has room for 4"},
      {"{\"a\":1}", "a number where none belongs"},
      {"{\"a\":[1]}", "a list where none belongs"},
      {"{\"a\":null}", "null"},
      {"{\"a\":true}", "truth value"},
      {"{\"a\":{}}", "lacks"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", "lacks"},
      {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}", "twice"},
      {"{\"a\":{\"dtype\":{\"x\":1}}}", "an object where none belongs"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[[1]]}}", "a list"},
      {"{\"a\":{\"color\":\"red\"}}", "unknown key"},
      {"{" + Entry("a", "F16", "[2]", "[0,4]") + "}", "has dtype \"F16\""},
      {"{" + Entry("a", "F32", "[2]", "[0,4]") + "}", "needs 8 bytes"},
      {"{" + Entry("a", "F32", "[-1]", "[0,4]") + "}", "negative"},
      {"{" + Entry("a", "F32", "[1.0]", "[0,4]") + "}", "fraction"},
      {"{" + Entry("a", "F32", "[1]", "[4,0]") + "}", "no span"},
      {"{" + Entry("a", "F32", "[1]", "[0]") + "}", "no span"},
      {"{" + Entry("a", "F32", "[1]", "[0,4,4]") + "}", "no span"},
      {"{" + Entry("a", "F32", "[1]", "[-4,0]") + "}", "negative"},
      {"{" + Entry("a", "F32", "[1,1,1,1,1]", "[0,4]") + "}", "more than 4"},
      {"{" + Entry("a", "F32", "[4294967296,4294967296]", "[0,4]") + "}",
       "too large"},
      {"{" + Entry("a", "F64", "[2305843009213693952]", "[0,4]") + "}",
       "too large"},
      {"{" + Entry("a", "U8", "[18446744073709551615]", "[0,4]") + "}",
       "beyond 2^63"},
      {"{" +
           Entry("a", "U8", "[9223372036854775807]",
                 "[0,9223372036854775807]") +
           "}",
       "the data has 4"},
      {"{" + a + "," + Entry("b", "F32", "[1]", "[0,4]") + "}", "overlap"},
      {"{" + Entry("a", "F32", "[1]", "[4,8]") + "}", "a hole", 8},
      {"{" + a + "," + Entry("b", "F32", "[1]", "[5,9]") + "}", "a hole", 9},
      {"{" + a + "," + Entry("b", "F32", "[0]", "[2,2]") + "}", "overlap"},
      {"{" + Entry("", "F32", "[1]", "[0,4]") + "}", "is empty"},
      {"{" + Entry("/a", "F32", "[1]", "[0,4]") + "}", "empty part"},
      {"{" + Entry("a/../b", "F32", "[1]", "[0,4]") + "}", "\"..\""},
      {"{" + Entry("a\\u0000b", "F32", "[1]", "[0,4]") + "}", "control"},
      {"{" + Entry("a\\nb", "F32", "[1]", "[0,4]") + "}", "control"},
      {"{" + Entry("a\xff", "F32", "[1]", "[0,4]") + "}", "malformed"},
      {"{" + Entry(std::string(600, 'a'), "F32", "[1]", "[0,4]") + "}",
       "has 600 bytes"},
      {"{\"__metadata__\":{\"a\":1}," + a + "}", "a number"},
      {"{\"__metadata__\":{\"a\":{}}," + a + "}", "an object"},
      {"{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}," + a + "}", "twice"},
      {"{\"__metadata__\":[]," + a + "}", "a list"},
      {"{\"a\":" + std::string(1000000, '['), "a list"},
  };
  for (const BadHeader& bad : cases) {
    const auto header = ParseSafetensors(File(bad.json, bad.data_bytes));
    EXPECT_EQ(header.status().code(), absl::StatusCode::kDataLoss)
        << bad.json.substr(0, 100);
    EXPECT_THAT(std::string(header.status().message()), HasSubstr(bad.words))
        << bad.json.substr(0, 100);
  }
}

TEST(Safetensors, RefusesHeaderLengthsBeforeAllocating) {
  for (uint64_t length : {uint64_t{3}, uint64_t{100000001}, uint64_t{1} << 40,
                          uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} - 7}) {
    const auto header = ParseSafetensors(Length(length) + "{}");
    EXPECT_EQ(header.status().code(), absl::StatusCode::kDataLoss) << length;
  }
  for (size_t bytes = 0; bytes < 8; ++bytes) {
    EXPECT_FALSE(ParseSafetensors(std::string(bytes, '\0')).ok());
  }
}

// Every byte of a sound header replaced by others: refused, or a header whose
// spans still lie in the file.
TEST(Safetensors, SurvivesEveryChangedByte) {
  const std::string json = absl::StrCat(
      "{\"__metadata__\":{\"f\":\"x\"},", Entry("a", "F32", "[2,1]", "[0,8]"),
      ",", Entry("b", "U8", "[3]", "[8,11]"), "}");
  const std::string file = File(json, 11);
  for (size_t i = 0; i < 8 + json.size(); ++i) {
    for (int c = 0; c < 256; ++c) {
      std::string changed = file;
      changed[i] = static_cast<char>(c);
      const auto header = ParseSafetensors(changed);
      if (!header.ok()) continue;
      for (const SafetensorsEntry& entry : header->entries) {
        ASSERT_GE(entry.offset, 8);
        ASSERT_LE(entry.offset + entry.size_bytes,
                  static_cast<int64_t>(file.size()));
        ASSERT_EQ(entry.shape.num_elements() * SizeOf(entry.dtype),
                  entry.size_bytes);
      }
    }
  }
}

TEST(Safetensors, WriterAndReaderAgree) {
  const std::string path = testing::TempDir() + "/agree.safetensors";
  std::vector<float> a = {1, 2, 3, 4, 5, 6};
  std::vector<int64_t> b = {-1};
  const Tensor tensors[] = {Tensor(a.data(), DType::kFloat32, {2, 3}),
                            Tensor(b.data(), DType::kInt64, {})};
  std::vector<SafetensorsEntry> entries(2);
  entries[0].name = "a/\"quoted\"";
  entries[0].shape = tensors[0].shape();
  entries[1].name = "b";
  entries[1].dtype = DType::kInt64;
  FileSystem& files = FileSystem::Posix();
  auto writer =
      SafetensorsWriter::Create(files, path, entries, {{"step", "3"}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (const Tensor& tensor : tensors) {
    ASSERT_TRUE(writer->Append(tensor).ok());
  }
  ASSERT_TRUE(writer->Finish().ok());
  EXPECT_EQ(*files.FileSize(path), writer->size_bytes());
  const auto header = ReadSafetensorsHeader(files, path);
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->metadata.at("step"), "3");
  EXPECT_EQ(header->json.size() % 8, 0u);
  std::vector<float> read(6);
  ASSERT_TRUE(
      files.Read(path, header->Find("a/\"quoted\"")->offset, 24, read.data())
          .ok());
  EXPECT_EQ(read, a);
  int64_t number = 0;
  ASSERT_TRUE(files.Read(path, header->Find("b")->offset, 8, &number).ok());
  EXPECT_EQ(number, -1);
}

TEST(Safetensors, ReadingNamesTheFile) {
  const std::string path = testing::TempDir() + "/bad.safetensors";
  FileSystem& files = FileSystem::Posix();
  ASSERT_TRUE(WriteFileAtomically(files, path, "short").ok());
  const auto header = ReadSafetensorsHeader(files, path);
  EXPECT_THAT(std::string(header.status().message()), HasSubstr(path));
  EXPECT_EQ(ReadSafetensorsHeader(files, path + "x").status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace cubit
