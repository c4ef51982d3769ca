// SPDX-License-Identifier: Apache-2.0

#include "data/text_source.h"

#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "data/document_reader.h"
#include "tests/data/compress.h"

namespace cubit {
namespace {

using testing::HasSubstr;
using Documents = std::vector<std::string>;

absl::StatusOr<Documents> ReadAll(TextSource& source) {
  Documents documents;
  std::string text;
  while (true) {
    const auto more = source.Next(&text);
    if (!more.ok()) return more.status();
    if (!*more) return documents;
    documents.push_back(text);
  }
}

absl::StatusOr<Documents> ReadLines(
    absl::string_view lines, int64_t max_document_bytes = kMaxDocumentBytes) {
  return ReadAll(*MakeJsonLinesSource(MakeMemoryReader(lines), "in.jsonl",
                                      max_document_bytes));
}

absl::StatusOr<Documents> ReadPlain(
    absl::string_view text, int64_t max_document_bytes = kMaxDocumentBytes) {
  return ReadAll(*MakePlainTextSource(MakeMemoryReader(text), "in.txt",
                                      max_document_bytes));
}

std::string LineFault(absl::string_view lines,
                      int64_t max_document_bytes = kMaxDocumentBytes) {
  const auto documents = ReadLines(lines, max_document_bytes);
  EXPECT_EQ(documents.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(documents.status().message());
}

TEST(PlainText, IsOneDocumentWithEveryByte) {
  const std::string text("one\r\ntwo\n\n\0three \u00e9\n", 20);
  EXPECT_EQ(ReadPlain(text).value(), Documents{text});
  EXPECT_EQ(ReadPlain("\xEF\xBB\xBFmarked").value(), Documents{"marked"});
  EXPECT_EQ(ReadPlain(" ").value(), Documents{" "});
}

TEST(PlainText, WithoutTextIsNoDocument) {
  EXPECT_EQ(ReadPlain("").value(), Documents());
  EXPECT_EQ(ReadPlain("\xEF\xBB\xBF").value(), Documents());
}

TEST(PlainText, NamesTheOffsetOfInvalidUtf8) {
  const std::string text = std::string(100000, 'x') + "\xC3(";
  EXPECT_THAT(std::string(ReadPlain(text).status().message()),
              HasSubstr("in.txt: is not UTF-8 text at byte offset 100000"));
  EXPECT_THAT(std::string(ReadPlain("\xFF\xFEh\0").status().message()),
              HasSubstr("UTF-16"));
}

TEST(PlainText, IsBounded) {
  EXPECT_TRUE(ReadPlain(std::string(1000, 'x'), 1000).ok());
  EXPECT_THAT(
      std::string(ReadPlain(std::string(1001, 'x'), 1000).status().message()),
      HasSubstr("in.txt: holds more than the 1000 bytes"));
}

TEST(JsonLines, GivesTheTextOfEveryLine) {
  EXPECT_EQ(
      ReadLines("{\"text\": \"one\"}\n"
                "{\"id\": [1, {\"text\": \"not this\"}], \"text\": "
                "\"two\\n\\u00e9\\ud83d\\ude00\\u0000\", \"z\": null}\n"
                "  {\"text\":\"three\"}  ")
          .value(),
      (Documents{"one", std::string("two\n\u00e9\U0001F600\0", 11), "three"}));
  EXPECT_EQ(ReadLines("").value(), Documents());
}

TEST(JsonLines, PassesOverBlankLinesAndEmptyTexts) {
  EXPECT_EQ(ReadLines("\xEF\xBB\xBF{\"text\": \"a\"}\r\n\r\n \t\n\n"
                      "{\"text\": \"\"}\r\n{\"text\": \"b\"}\r\n\n")
                .value(),
            (Documents{"a", "b"}));
}

TEST(JsonLines, NamesTheLineOfAnyFault) {
  const std::string good = "{\"text\": \"a\"}\n\n";
  const std::vector<std::pair<std::string, std::string>> faults = {
      {"{\"text\": \"a}", "invalid JSON at byte 13"},
      {"{\"text\": 'a'}", "invalid JSON at byte 10"},
      {"{\"text\": \"a\"} x", "invalid JSON at byte 15"},
      {"{\"text\": \"\\ud800\"}", "invalid JSON"},
      {"{\"text\": \"a\xFF\"}", "not UTF-8 at byte 12"},
      {"{\"id\": \"\xC3\"}", "not UTF-8 at byte 9"},
      {"\"text\"", "holds a string"},
      {"[{\"text\": \"a\"}]", "holds an array"},
      {"{\"Text\": \"a\"}", "no field \"text\""},
      {"{\"text\": null}", "field \"text\" is null"},
      {"{\"text\": 5}", "field \"text\" is an integer"},
      {"{\"text\": [\"a\"]}", "field \"text\" is an array"},
      {"{\"text\": \"a\", \"text\": \"b\"}", "\"text\" twice"},
      {"{\"text\": \"a\", \"b\": " + std::string(100, '[') + "}",
       "nested over 64"}};
  for (const auto& [line, fault] : faults) {
    const std::string message = LineFault(good + line + "\n" + good);
    EXPECT_THAT(message, HasSubstr("in.jsonl: line 3: ")) << line;
    EXPECT_THAT(message, HasSubstr(fault)) << line;
  }
}

TEST(JsonLines, StopsAtTheFirstFaultAndRepeatsIt) {
  const auto source = MakeJsonLinesSource(
      MakeMemoryReader("{\"text\": \"a\"}\nbad\n{\"text\": \"b\"}\n"),
      "in.jsonl");
  std::string text;
  EXPECT_TRUE(source->Next(&text).value());
  const auto fault = source->Next(&text);
  EXPECT_THAT(std::string(fault.status().message()), HasSubstr("line 2"));
  EXPECT_EQ(source->Next(&text).status(), fault.status());
}

TEST(JsonLines, BoundsALine) {
  const std::string line = "{\"text\": \"" + std::string(200000, 'x') + "\"}";
  const auto limit = static_cast<int64_t>(line.size());
  EXPECT_EQ(ReadLines(line + "\n", limit).value()[0].size(), 200000u);
  EXPECT_THAT(LineFault("\n" + line, limit - 1),
              HasSubstr("in.jsonl: line 2: has more than the 200011 bytes"));
}

TEST(JsonLines, StaysAtItsEnd) {
  const auto source =
      MakeJsonLinesSource(MakeMemoryReader("{\"text\": \"a\"}"), "in.jsonl");
  std::string text;
  EXPECT_TRUE(source->Next(&text).value());
  EXPECT_FALSE(source->Next(&text).value());
  EXPECT_EQ(text, "");
  EXPECT_FALSE(source->Next(&text).value());
}

// Lines whose ends fall before, on and after the edges of the 64 KiB buffer.
TEST(JsonLines, ReadsLinesOfEverySizeAroundTheBuffer) {
  Documents expected;
  std::string lines;
  std::mt19937 random(8);
  for (int i = 0; i < 60; ++i) {
    const size_t size = i % 3 == 0 ? 65500 + random() % 80 : 1 + random() % 9;
    expected.emplace_back(size, static_cast<char>('a' + i % 26));
    absl::StrAppend(&lines, "{\"text\":\"", expected.back(), "\"}\n");
  }
  EXPECT_EQ(ReadLines(lines).value(), expected);
}

TEST(OpenTextFile, ReadsEveryFormatCompressedAndPlain) {
  const std::string lines = "{\"text\": \"a\"}\n{\"text\": \"b\"}\n";
  const std::vector<std::pair<std::string, Compression>> suffixes = {
      {"", Compression::kNone},
      {".gz", Compression::kGzip},
      {".dz", Compression::kGzip},
      {".xz", Compression::kXz},
      {".zst", Compression::kZstd}};
  for (const auto& [suffix, compression] : suffixes) {
    for (const char* name : {"f.jsonl", "f.JSONL", "f.txt", "f.pod", "f.md",
                             "f.rst", "f", "v1.2/f"}) {
      const std::string path =
          WriteTestFile("formats/" + std::string(name) + suffix,
                        Compress(compression, lines));
      auto source = OpenTextFile(path);
      ASSERT_TRUE(source.ok()) << source.status();
      const bool is_lines = absl::string_view(name).size() == 7;
      EXPECT_EQ(ReadAll(**source).value(),
                is_lines ? (Documents{"a", "b"}) : Documents{lines})
          << path;
    }
  }
}

TEST(OpenTextFile, RefusesOtherFiles) {
  for (const char* name : {"a.pdf", "a.json", "a.tar.gz", "a.h5"}) {
    const auto source = OpenTextFile(WriteTestFile(name, "x"));
    EXPECT_THAT(std::string(source.status().message()),
                testing::AllOf(HasSubstr(name), HasSubstr(".jsonl")));
  }
  EXPECT_EQ(OpenTextFile("missing.txt").status().code(),
            absl::StatusCode::kNotFound);
}

// A damaged file gives the same documents or an error that names it.
void ExpectSameOrRefused(Compression compression, const std::string& damaged,
                         const std::string& name, const Documents& expected) {
  const auto documents = ReadAll(*MakeJsonLinesSource(
      MakeDecompressor(compression, MakeMemoryReader(damaged), name), name));
  if (documents.ok()) {
    ASSERT_EQ(*documents, expected) << name;
  } else {
    ASSERT_THAT(std::string(documents.status().message()), HasSubstr(name));
  }
}

// A compressed file with a byte changed or cut off.
TEST(OpenTextFile, NeverGivesDamagedTextSilently) {
  std::string lines;
  std::mt19937 random(9);
  for (int i = 0; i < 40; ++i) {
    absl::StrAppend(&lines, "{\"text\": \"", random(), " ", random(), "\"}\n");
  }
  const Documents expected = ReadLines(lines).value();
  const std::vector<std::pair<std::string, Compression>> suffixes = {
      {".gz", Compression::kGzip},
      {".xz", Compression::kXz},
      {".zst", Compression::kZstd}};
  for (const auto& [suffix, compression] : suffixes) {
    const std::string good = Compress(compression, lines);
    const std::string name = "in.jsonl" + suffix;
    for (size_t at = 0; at < good.size(); ++at) {
      std::string flipped = good;
      flipped[at] = static_cast<char>(flipped[at] ^ 1 << random() % 8);
      for (const std::string& damaged : {flipped, good.substr(0, at)}) {
        SCOPED_TRACE(at);
        ExpectSameOrRefused(compression, damaged, name, expected);
      }
    }
  }
}

}  // namespace
}  // namespace cubit
