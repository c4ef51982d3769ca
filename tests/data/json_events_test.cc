// SPDX-License-Identifier: Apache-2.0

#include "data/json_events.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cubit {
namespace {

using testing::HasSubstr;

// Writes every event as "path=value;".
class Recorder : public JsonHandler {
 public:
  absl::Status OnValue(const JsonPath& path, const JsonValue& value) override {
    absl::StrAppend(&log, absl::StrJoin(path, "."), "=");
    switch (value.kind) {
      case JsonValue::Kind::kInteger:
        absl::StrAppend(&log, value.integer);
        break;
      case JsonValue::Kind::kReal:
        absl::StrAppend(&log, value.real);
        break;
      case JsonValue::Kind::kBool:
        absl::StrAppend(&log, value.boolean);
        break;
      case JsonValue::Kind::kString:
        absl::StrAppend(&log, "'", *value.string, "'");
        break;
      default:
        log += Describe(value.kind);
    }
    log += ";";
    return path.empty() || path.back() != "stop"
               ? absl::OkStatus()
               : absl::CancelledError("stopped");
  }

  std::string log;
};

absl::Status Read(absl::string_view text, bool unique_keys = true) {
  Recorder recorder;
  return ReadJson(text, unique_keys, &recorder);
}

TEST(ReadJson, GivesEveryValueWithItsPath) {
  Recorder recorder;
  const absl::Status status = ReadJson(
      R"({"a": [1, {"b": null}, "x"], "c": {"d": true, "e": -2.5}, "f": ""})",
      /*unique_keys=*/true, &recorder);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(recorder.log,
            "=an object;a=an array;a.=1;a.=an object;a..b=null;a.='x';"
            "c=an object;c.d=1;c.e=-2.5;f='';");
}

TEST(ReadJson, KeepsIntegersThatFitAndRoundsOthers) {
  Recorder recorder;
  EXPECT_TRUE(ReadJson("[9223372036854775807, -9223372036854775808, "
                       "9223372036854775808, 18446744073709551616]",
                       true, &recorder)
                  .ok());
  EXPECT_EQ(recorder.log,
            "=an array;=9223372036854775807;=-9223372036854775808;"
            "=9.22337e+18;=1.84467e+19;");
}

TEST(ReadJson, PassesTheHandlersErrorOn) {
  EXPECT_EQ(Read(R"({"stop": 1, "more": 2})").code(),
            absl::StatusCode::kCancelled);
}

TEST(ReadJson, NamesTheByteOfASyntaxError) {
  const absl::Status status = Read(R"({"a": nul})");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("invalid JSON at byte 10"));
}

TEST(ReadJson, RefusesWhatIsNotOneJsonValue) {
  for (const char* text :
       {"", "{", "[1,]", "{} {}", "\"\xFF\"", "\"\\ud800\"", "'a'", "1e999",
        "{\"a\" 1}", "[1", "\"abc", "nan", "// c\n1", "\x01"}) {
    EXPECT_EQ(Read(text).code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(ReadJson, MessagesStayShortAndPrintable) {
  const std::string text = "\"" + std::string(1 << 20, '\x7F') + "\n\xFF";
  const absl::Status status = Read(text);
  EXPECT_FALSE(status.ok());
  EXPECT_LT(status.message().size(), 300u);
  for (const char c : status.message()) {
    EXPECT_TRUE(c >= 0x20 && c < 0x7F) << static_cast<int>(c);
  }
}

TEST(ReadJson, LimitsNestingWithoutUsingTheStack) {
  const auto nested = [](int depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_TRUE(Read(nested(kMaxJsonDepth)).ok());
  EXPECT_THAT(Read(nested(kMaxJsonDepth + 1)).message(),
              HasSubstr("nested over 64 levels"));
  EXPECT_FALSE(Read(std::string(10 << 20, '[')).ok());
  std::string objects;
  for (int i = 0; i < 100000; ++i) objects += "{\"a\":";
  EXPECT_THAT(Read(objects).message(), HasSubstr("nested over"));
}

TEST(ReadJson, RefusesRepeatedKeysWhereAsked) {
  const char* repeated = R"({"a": 1, "b": {"a": 2}, "a": 3})";
  EXPECT_THAT(Read(repeated, true).message(), HasSubstr("\"a\" occurs twice"));
  EXPECT_TRUE(Read(repeated, false).ok());
  EXPECT_TRUE(Read(R"({"a": 1, "b": {"a": 2}})", true).ok());
}

}  // namespace
}  // namespace cubit
