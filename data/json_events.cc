// SPDX-License-Identifier: Apache-2.0

#include "data/json_events.h"

#include <limits>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace cubit {
namespace {

using Json = nlohmann::json;

// A name from a file, safe to print.
std::string Printable(absl::string_view name) {
  constexpr size_t kLongest = 60;
  return absl::StrCat(absl::Utf8SafeCHexEscape(name.substr(0, kLongest)),
                      name.size() > kLongest ? "..." : "");
}

// The reason inside the library's message "[id] parse error at ...: syntax
// error while parsing X - REASON; last read: 'TOKEN'; expected Y", without the
// token, which may be as long as the file.
std::string Reason(absl::string_view message) {
  const size_t dash = message.find(" - ");
  if (dash != absl::string_view::npos) message.remove_prefix(dash + 3);
  const size_t last_read = message.find("; last read:");
  std::string reason = Printable(message.substr(0, last_read));
  const size_t expected = message.rfind("; expected ");
  if (expected != absl::string_view::npos && expected > last_read) {
    absl::StrAppend(&reason, Printable(message.substr(expected)));
  }
  return reason;
}

// The library's events as ours. The names are the library's.
class SaxAdapter : public nlohmann::json_sax<Json> {
 public:
  SaxAdapter(bool unique_keys, JsonHandler* handler)
      : unique_keys_(unique_keys), handler_(handler) {}

  const absl::Status& status() const { return status_; }

  bool null() override { return Scalar({}); }

  bool boolean(bool boolean) override {
    JsonValue value;
    value.kind = JsonValue::Kind::kBool;
    value.boolean = boolean;
    return Scalar(value);
  }

  bool number_integer(int64_t integer) override {
    JsonValue value;
    value.kind = JsonValue::Kind::kInteger;
    value.integer = integer;
    return Scalar(value);
  }

  bool number_unsigned(uint64_t integer) override {
    if (integer > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return number_float(static_cast<double>(integer), "");
    }
    return number_integer(static_cast<int64_t>(integer));
  }

  bool number_float(double real, const std::string& /*text*/) override {
    JsonValue value;
    value.kind = JsonValue::Kind::kReal;
    value.real = real;
    return Scalar(value);
  }

  bool string(std::string& text) override {
    JsonValue value;
    value.kind = JsonValue::Kind::kString;
    value.string = &text;
    return Scalar(value);
  }

  bool binary(binary_t& /*bytes*/) override {
    return Fail("binary data");  // never comes out of text
  }

  bool start_object(size_t /*size*/) override {
    return Begin(JsonValue::Kind::kObject);
  }
  bool end_object() override { return End(); }
  bool start_array(size_t /*size*/) override {
    return Begin(JsonValue::Kind::kArray);
  }
  bool end_array() override { return End(); }

  bool key(std::string& name) override {
    if (unique_keys_ && !keys_.back().insert(name).second) {
      return Fail(absl::StrCat("key \"", Printable(name), "\" occurs twice"));
    }
    path_.back() = std::move(name);
    return true;
  }

  bool parse_error(size_t position, const std::string& /*token*/,
                   const Json::exception& error) override {
    return Fail(absl::StrCat("invalid JSON at byte ", position, ": ",
                             Reason(error.what())));
  }

 private:
  bool Scalar(const JsonValue& value) {
    status_ = handler_->OnValue(path_, value);
    return status_.ok();
  }

  bool Begin(JsonValue::Kind kind) {
    JsonValue value;
    value.kind = kind;
    if (!Scalar(value)) return false;
    if (path_.size() >= kMaxJsonDepth) {
      return Fail(absl::StrCat("JSON nested over ", kMaxJsonDepth, " levels"));
    }
    path_.emplace_back();
    if (unique_keys_) keys_.emplace_back();
    return true;
  }

  bool End() {
    path_.pop_back();
    if (unique_keys_) keys_.pop_back();
    return true;
  }

  bool Fail(absl::string_view what) {
    status_ = absl::InvalidArgumentError(what);
    return false;
  }

  const bool unique_keys_;
  JsonHandler* const handler_;
  JsonPath path_;
  std::vector<absl::flat_hash_set<std::string>> keys_;
  absl::Status status_;
};

}  // namespace

const char* Describe(JsonValue::Kind kind) {
  switch (kind) {
    case JsonValue::Kind::kNull:
      return "null";
    case JsonValue::Kind::kBool:
      return "true or false";
    case JsonValue::Kind::kInteger:
      return "an integer";
    case JsonValue::Kind::kReal:
      return "a number";
    case JsonValue::Kind::kString:
      return "a string";
    case JsonValue::Kind::kArray:
      return "an array";
    case JsonValue::Kind::kObject:
      return "an object";
  }
  return "unknown";
}

absl::Status ReadJson(absl::string_view text, bool unique_keys,
                      JsonHandler* handler) {
  SaxAdapter adapter(unique_keys, handler);
  const bool complete = Json::sax_parse(text.begin(), text.end(), &adapter);
  if (!complete && adapter.status().ok()) {
    return absl::InternalError("the JSON parser stopped without a reason");
  }
  return adapter.status();
}

}  // namespace cubit
