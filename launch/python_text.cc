// SPDX-License-Identifier: Apache-2.0

#include "launch/python_text.h"

#include <locale.h>
#include <wctype.h>

#include <algorithm>

#include "data/utf8.h"
#include "runtime/check.h"

namespace cubit {
namespace {

// The code of a byte that is no UTF-8: beyond all characters.
constexpr uint32_t kNoCharacter = 0x110000;

// The character that `text` begins with and its length, 1 for kNoCharacter.
struct Character {
  uint32_t code = 0;
  size_t length = 0;
};

Character FirstCharacter(absl::string_view text) {
  const int length = Utf8CharacterLength(text);
  const auto byte = [&](size_t i) {
    return static_cast<uint32_t>(static_cast<unsigned char>(text[i]));
  };
  if (length == 0) return {kNoCharacter, 1};
  if (length == 1) return {byte(0), 1};
  // The first byte holds 7 - length bits, each of the others six.
  uint32_t code = byte(0) & ((1U << (7 - length)) - 1);
  for (size_t i = 1; i < static_cast<size_t>(length); ++i) {
    code = (code << 6) | (byte(i) & 0x3FU);
  }
  return {code, static_cast<size_t>(length)};
}

bool IsSpace(uint32_t code) {
  return (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x20) ||
         code == 0x85 || code == 0xA0 || code == 0x1680 ||
         (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
         code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

void AppendUtf8(uint32_t code, std::string* text) {
  const auto add = [text](uint32_t byte) {
    text->push_back(static_cast<char>(static_cast<unsigned char>(byte)));
  };
  if (code < 0x80) {
    add(code);
  } else if (code < 0x800) {
    add(0xC0 | (code >> 6));
    add(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    add(0xE0 | (code >> 12));
    add(0x80 | ((code >> 6) & 0x3F));
    add(0x80 | (code & 0x3F));
  } else {
    add(0xF0 | (code >> 18));
    add(0x80 | ((code >> 12) & 0x3F));
    add(0x80 | ((code >> 6) & 0x3F));
    add(0x80 | (code & 0x3F));
  }
}

// Case by Unicode, whatever the user's locale is.
locale_t UnicodeLocale() {
  static const locale_t locale =
      newlocale(LC_CTYPE_MASK, "C.UTF-8", static_cast<locale_t>(nullptr));
  CUBIT_CHECK(locale != static_cast<locale_t>(nullptr))
      << "the C library has no locale C.UTF-8";
  return locale;
}

// A reader of Python's literals, one method for each form.
class LiteralParser {
 public:
  explicit LiteralParser(absl::string_view text) : text_(text) {}

  absl::StatusOr<nlohmann::json> Parse() {
    nlohmann::json value = Value(0);
    SkipSpace();
    if (at_ < text_.size()) Fail("the end");
    if (!wanted_.empty()) {
      return absl::InvalidArgumentError("not a Python literal: at byte " +
                                        std::to_string(failed_at_ + 1) +
                                        " wanted " + wanted_);
    }
    return value;
  }

 private:
  // The data sets nest three levels.
  static constexpr int kMaxDepth = 16;

  void Fail(const std::string& wanted) {
    if (wanted_.empty()) {
      wanted_ = wanted;
      failed_at_ = at_;
    }
    at_ = text_.size();
  }
  void SkipSpace() {
    while (at_ < text_.size() &&
           IsSpace(static_cast<unsigned char>(text_[at_]))) {
      ++at_;
    }
  }
  // Takes `word` if the text goes on with it.
  bool Take(absl::string_view word) {
    SkipSpace();
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  nlohmann::json Value(int depth) {
    if (depth > kMaxDepth) {
      Fail("fewer levels");
      return nullptr;
    }
    SkipSpace();
    const char next = at_ < text_.size() ? text_[at_] : '\0';
    if (next == '\'' || next == '"') return String();
    if (Take("[")) return List(depth);
    if (Take("{")) return Dict(depth);
    if (Take("None") || Take("null")) return nullptr;
    if (Take("True") || Take("true")) return true;
    if (Take("False") || Take("false")) return false;
    if (next == '-' || (next >= '0' && next <= '9')) return Integer();
    Fail("a value");
    return nullptr;
  }

  nlohmann::json List(int depth) {
    nlohmann::json list = nlohmann::json::array();
    while (!Take("]")) {
      list.push_back(Value(depth + 1));
      if (Take(",")) continue;
      if (!Take("]")) Fail("\",\" or \"]\"");
      break;
    }
    return list;
  }

  nlohmann::json Dict(int depth) {
    nlohmann::json dict = nlohmann::json::object();
    while (!Take("}")) {
      SkipSpace();
      if (at_ >= text_.size() || (text_[at_] != '\'' && text_[at_] != '"')) {
        Fail("a key in quotes");
        break;
      }
      const std::string key = String();
      if (!Take(":")) Fail("\":\"");
      dict[key] = Value(depth + 1);
      if (Take(",")) continue;
      if (!Take("}")) Fail("\",\" or \"}\"");
      break;
    }
    return dict;
  }

  nlohmann::json Integer() {
    constexpr int64_t kLargest = 1'000'000'000'000;
    const bool negative = text_[at_] == '-';
    if (negative) ++at_;
    int64_t value = 0;
    const size_t first = at_;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9' &&
           value < kLargest) {
      value = value * 10 + (text_[at_++] - '0');
    }
    if (at_ == first || value >= kLargest) Fail("an integer");
    return negative ? -value : value;
  }

  std::string String() {
    const char quote = text_[at_++];
    std::string value;
    while (at_ < text_.size() && text_[at_] != quote) {
      const char c = text_[at_++];
      if (c == '\\') {
        Escape(&value);
      } else {
        value.push_back(c);
      }
    }
    if (at_ >= text_.size()) {
      Fail("a closing quote");
    } else {
      ++at_;
    }
    return value;
  }

  void Escape(std::string* value) {
    if (at_ >= text_.size()) return;
    const char c = text_[at_++];
    switch (c) {
      case 'n':
        return value->push_back('\n');
      case 't':
        return value->push_back('\t');
      case 'r':
        return value->push_back('\r');
      case 'x':
        return CodePoint(2, value);
      case 'u':
        return CodePoint(4, value);
      case 'U':
        return CodePoint(8, value);
      case '\\':
      case '\'':
      case '"':
      case '/':
        return value->push_back(c);
      default:
        --at_;
        return Fail("a known escape");
    }
  }

  void CodePoint(size_t digits, std::string* value) {
    uint32_t code = 0;
    for (size_t i = 0; i < digits; ++i) {
      constexpr absl::string_view kDigits = "0123456789abcdef";
      const char c = at_ < text_.size() ? text_[at_] : ' ';
      const size_t digit = kDigits.find(
          c >= 'A' && c <= 'F' ? static_cast<char>(c - 'A' + 'a') : c);
      if (digit == absl::string_view::npos) {
        return Fail("a hexadecimal digit");
      }
      code = code * 16 + static_cast<uint32_t>(digit);
      ++at_;
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) {
      return Fail("a code point");
    }
    AppendUtf8(code, value);
  }

  absl::string_view text_;
  size_t at_ = 0;
  std::string wanted_;
  size_t failed_at_ = 0;
};

}  // namespace

absl::string_view PythonStripLeft(absl::string_view text) {
  while (!text.empty()) {
    const Character first = FirstCharacter(text);
    if (!IsSpace(first.code)) break;
    text.remove_prefix(first.length);
  }
  return text;
}

absl::string_view PythonStripRight(absl::string_view text) {
  while (!text.empty()) {
    // Back to the byte that begins the last character.
    size_t begin = text.size() - 1;
    while (begin > 0 && text.size() - begin < 4 &&
           (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) {
      --begin;
    }
    const Character last = FirstCharacter(text.substr(begin));
    if (begin + last.length != text.size() || !IsSpace(last.code)) break;
    text.remove_suffix(last.length);
  }
  return text;
}

absl::string_view PythonStrip(absl::string_view text) {
  return PythonStripRight(PythonStripLeft(text));
}

std::string PythonCapitalize(absl::string_view text) {
  const locale_t locale = UnicodeLocale();
  const wctrans_t title = wctrans_l("totitle", locale);
  std::string result;
  bool first = true;
  while (!text.empty()) {
    const Character next = FirstCharacter(text);
    if (next.code == kNoCharacter) {
      result.push_back(text[0]);
    } else {
      const auto code = static_cast<wint_t>(next.code);
      AppendUtf8(static_cast<uint32_t>(first ? towctrans_l(code, title, locale)
                                             : towlower_l(code, locale)),
                 &result);
    }
    text.remove_prefix(next.length);
    first = false;
  }
  return result;
}

int64_t PythonLength(absl::string_view text) {
  int64_t length = 0;
  while (!text.empty()) {
    text.remove_prefix(FirstCharacter(text).length);
    ++length;
  }
  return length;
}

absl::StatusOr<nlohmann::json> ParsePythonLiteral(absl::string_view text) {
  return LiteralParser(text).Parse();
}

}  // namespace cubit
