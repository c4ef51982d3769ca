// SPDX-License-Identifier: Apache-2.0

#include "data/json_events.h"

#include <cmath>
#include <cstring>
#include <system_error>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/charconv.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

#include "data/utf8.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr char kByteOrderMark[] = "\xEF\xBB\xBF";

// A name from a file, safe to print.
std::string Printable(absl::string_view name) {
  constexpr size_t kLongest = 60;
  return absl::StrCat(absl::Utf8SafeCHexEscape(name.substr(0, kLongest)),
                      name.size() > kLongest ? "..." : "");
}

// JSON of RFC 8259. Containers are kept on a stack of its own, strings are
// copied in runs: text of documents passes through here.
class JsonParser {
 public:
  JsonParser(absl::string_view text, bool unique_keys, JsonHandler* handler,
             std::string* buffer)
      : text_(text),
        unique_keys_(unique_keys),
        handler_(handler),
        string_(*buffer) {}

  absl::Status Run() {
    if (absl::StartsWith(text_, kByteOrderMark)) at_ = 3;
    CUBIT_RETURN_IF_ERROR(Value());
    while (!open_.empty()) CUBIT_RETURN_IF_ERROR(Continue());
    SkipSpace();
    return at_ == text_.size() ? absl::OkStatus() : Bad("nothing more wanted");
  }

 private:
  struct Container {
    bool is_object;
    bool has_values = false;
    absl::flat_hash_set<std::string> keys;  // where they must differ
  };

  // What stands at at_ is not `wanted`.
  absl::Status Bad(absl::string_view wanted) const {
    return absl::InvalidArgumentError(
        absl::StrCat("invalid JSON at byte ", at_ + 1, ": ",
                     at_ == text_.size() ? "it ends, " : "", wanted));
  }

  void SkipSpace() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' ||
                                  text_[at_] == '\r' || text_[at_] == '\t')) {
      ++at_;
    }
  }

  bool Take(char wanted) {
    if (at_ == text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }

  absl::Status Value();
  absl::Status Begin(bool is_object);
  absl::Status Continue();
  absl::Status Key();
  absl::Status Word(absl::string_view word, JsonValue value);
  absl::Status Number();
  bool TakeDigits();
  absl::Status String(std::string* value);
  absl::Status Escape(std::string* value);
  absl::Status CodePoint(std::string* value);
  absl::StatusOr<uint32_t> FourDigits();

  const absl::string_view text_;
  const bool unique_keys_;
  JsonHandler* const handler_;
  size_t at_ = 0;
  JsonPath path_;
  std::vector<Container> open_;
  std::string& string_;  // the last one
};

absl::Status JsonParser::Value() {
  SkipSpace();
  if (at_ == text_.size()) return Bad("a value wanted");
  JsonValue value;
  switch (text_[at_]) {
    case '{':
    case '[':
      return Begin(text_[at_] == '{');
    case '"':
      ++at_;
      CUBIT_RETURN_IF_ERROR(String(&string_));
      value.kind = JsonValue::Kind::kString;
      value.string = &string_;
      return handler_->OnValue(path_, value);
    case 't':
      value.boolean = true;
      value.kind = JsonValue::Kind::kBool;
      return Word("true", value);
    case 'f':
      value.kind = JsonValue::Kind::kBool;
      return Word("false", value);
    case 'n':
      return Word("null", value);
    default:
      return Number();
  }
}

absl::Status JsonParser::Begin(bool is_object) {
  JsonValue value;
  value.kind = is_object ? JsonValue::Kind::kObject : JsonValue::Kind::kArray;
  CUBIT_RETURN_IF_ERROR(handler_->OnValue(path_, value));
  if (path_.size() >= kMaxJsonDepth) {
    return absl::InvalidArgumentError(
        absl::StrCat("JSON nested over ", kMaxJsonDepth, " levels"));
  }
  ++at_;
  path_.emplace_back();
  open_.emplace_back();
  open_.back().is_object = is_object;
  return absl::OkStatus();
}

// The next value of the innermost container, or its end.
absl::Status JsonParser::Continue() {
  Container& container = open_.back();
  SkipSpace();
  if (Take(container.is_object ? '}' : ']')) {
    open_.pop_back();
    path_.pop_back();
    return absl::OkStatus();
  }
  if (container.has_values && !Take(',')) {
    return Bad(container.is_object ? "\",\" or \"}\" wanted"
                                   : "\",\" or \"]\" wanted");
  }
  container.has_values = true;
  if (container.is_object) CUBIT_RETURN_IF_ERROR(Key());
  return Value();
}

absl::Status JsonParser::Key() {
  SkipSpace();
  if (!Take('"')) return Bad("a key wanted");
  CUBIT_RETURN_IF_ERROR(String(&path_.back()));
  if (unique_keys_ && !open_.back().keys.insert(path_.back()).second) {
    return absl::InvalidArgumentError(
        absl::StrCat("key \"", Printable(path_.back()), "\" occurs twice"));
  }
  SkipSpace();
  return Take(':') ? absl::OkStatus() : Bad("\":\" wanted");
}

absl::Status JsonParser::Word(absl::string_view word, JsonValue value) {
  for (const char c : word) {
    if (!Take(c)) return Bad(absl::StrCat("\"", word, "\" wanted"));
  }
  return handler_->OnValue(path_, value);
}

bool JsonParser::TakeDigits() {
  const size_t begin = at_;
  while (at_ < text_.size() && absl::ascii_isdigit(text_[at_])) ++at_;
  return at_ > begin;
}

absl::Status JsonParser::Number() {
  const size_t begin = at_;
  Take('-');
  // No digit follows a leading zero.
  if (!Take('0') && !TakeDigits()) {
    return Bad(begin == at_ ? "a value wanted" : "a digit wanted");
  }
  bool is_integer = true;
  if (Take('.')) {
    is_integer = false;
    if (!TakeDigits()) return Bad("a digit wanted");
  }
  if (Take('e') || Take('E')) {
    is_integer = false;
    if (!Take('+')) Take('-');
    if (!TakeDigits()) return Bad("a digit wanted");
  }
  const absl::string_view digits = text_.substr(begin, at_ - begin);
  JsonValue value;
  if (is_integer && absl::SimpleAtoi(digits, &value.integer)) {
    value.kind = JsonValue::Kind::kInteger;
    return handler_->OnValue(path_, value);
  }
  value.kind = JsonValue::Kind::kReal;
  const auto result = absl::from_chars(
      digits.data(), digits.data() + digits.size(), value.real);
  // What is too small is zero.
  if (result.ec == std::errc::result_out_of_range && std::abs(value.real) > 1) {
    return Bad("the number before it is too large");
  }
  return handler_->OnValue(path_, value);
}

// How many bytes from the beginning stand for themselves in a string: ASCII but
// quotes, backslashes and control characters. Eight at a time; `suspect` has
// the high bit of every byte that is something else, and perhaps of bytes after
// the first such.
size_t PlainBytes(absl::string_view text) {
  constexpr uint64_t kOnes = 0x0101010101010101u;
  constexpr uint64_t kHighBits = 0x80 * kOnes;
  const auto zeros = [](uint64_t word) {
    return (word - kOnes) & ~word & kHighBits;
  };
  size_t at = 0;
  for (; at + sizeof(uint64_t) <= text.size(); at += sizeof(uint64_t)) {
    uint64_t word;
    std::memcpy(&word, text.data() + at, sizeof(word));
    const uint64_t control = (word - 0x20 * kOnes) & ~word & kHighBits;
    const uint64_t suspect = control | (word & kHighBits) |
                             zeros(word ^ ('"' * kOnes)) |
                             zeros(word ^ ('\\' * kOnes));
    // The first byte is the lowest on the machines that we build for.
    if (suspect != 0) {
      return at + static_cast<size_t>(__builtin_ctzll(suspect)) / 8;
    }
  }
  while (at < text.size() && text[at] != '"' && text[at] != '\\' &&
         static_cast<unsigned char>(text[at] - 0x20) < 0x60) {
    ++at;
  }
  return at;
}

// From behind the opening quote to behind the closing one.
absl::Status JsonParser::String(std::string* value) {
  value->clear();
  while (true) {
    const size_t plain = PlainBytes(text_.substr(at_));
    value->append(text_.data() + at_, plain);
    at_ += plain;
    if (at_ == text_.size()) return Bad("a closing quote wanted");
    if (Take('"')) return absl::OkStatus();
    if (Take('\\')) {
      CUBIT_RETURN_IF_ERROR(Escape(value));
      continue;
    }
    const auto length =
        static_cast<size_t>(Utf8CharacterLength(text_.substr(at_)));
    if (length == 0) return Bad("UTF-8 wanted");
    if (length == 1) return Bad("a control character is not escaped");
    value->append(text_.data() + at_, length);
    at_ += length;
  }
}

absl::Status JsonParser::Escape(std::string* value) {
  constexpr absl::string_view kNames = "\"\\/bfnrt";
  constexpr absl::string_view kMeanings = "\"\\/\b\f\n\r\t";
  if (Take('u')) return CodePoint(value);
  const size_t which =
      at_ == text_.size() ? absl::string_view::npos : kNames.find(text_[at_]);
  if (which == absl::string_view::npos) return Bad("an escape wanted");
  value->push_back(kMeanings[which]);
  ++at_;
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> JsonParser::FourDigits() {
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i, ++at_) {
    if (at_ == text_.size() || !absl::ascii_isxdigit(text_[at_])) {
      return Bad("four hexadecimal digits wanted");
    }
    const char c = absl::ascii_tolower(text_[at_]);
    value = 16 * value + static_cast<uint32_t>(
                             absl::ascii_isdigit(c) ? c - '0' : c - 'a' + 10);
  }
  return value;
}

// Behind "\u". Code points beyond 16 bits are two escapes, a pair of
// surrogates.
absl::Status JsonParser::CodePoint(std::string* value) {
  CUBIT_ASSIGN_OR_RETURN(uint32_t code, FourDigits());
  if (code >= 0xDC00 && code < 0xE000) {
    return Bad("a low surrogate stands alone before it");
  }
  if (code >= 0xD800 && code < 0xDC00) {
    if (!Take('\\') || !Take('u')) return Bad("a low surrogate wanted");
    CUBIT_ASSIGN_OR_RETURN(const uint32_t low, FourDigits());
    if (low < 0xDC00 || low >= 0xE000) {
      return Bad("a low surrogate wanted before it");
    }
    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
  }
  const auto put = [value](uint32_t byte) {
    value->push_back(static_cast<char>(byte));
  };
  if (code < 0x80) {
    put(code);
    return absl::OkStatus();
  }
  if (code < 0x800) {
    put(0xC0 | code >> 6);
  } else {
    if (code < 0x10000) {
      put(0xE0 | code >> 12);
    } else {
      put(0xF0 | code >> 18);
      put(0x80 | (code >> 12 & 0x3F));
    }
    put(0x80 | (code >> 6 & 0x3F));
  }
  put(0x80 | (code & 0x3F));
  return absl::OkStatus();
}

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
                      JsonHandler* handler, std::string* buffer) {
  std::string own;
  return JsonParser(text, unique_keys, handler,
                    buffer == nullptr ? &own : buffer)
      .Run();
}

}  // namespace cubit
