// SPDX-License-Identifier: Apache-2.0

#include "data/gpt2_pieces.h"

#include <cstddef>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"

#include "data/utf8.h"
#include "runtime/check.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include "pcre2.h"

namespace cubit {
namespace {

// PCRE2's \s takes U+180E for white space, which it is not since Unicode 6.3,
// so the property is spelled out.
constexpr char kWhiteSpace[] =
    "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}"
    "\\x{202f}\\x{205f}\\x{3000}";

// The expression of the header with possessive quantifiers: what a branch took
// it need not give back, save the last white space before a word.
std::string Pattern() {
  return absl::StrCat("'(?:[sdmt]|ll|ve|re)| ?\\p{L}++| ?\\p{N}++| ?[^",
                      kWhiteSpace, "\\p{L}\\p{N}]++|[", kWhiteSpace, "]++\\z|[",
                      kWhiteSpace, "]+(?![^", kWhiteSpace, "])|[", kWhiteSpace,
                      "]");
}

class Expression {
 public:
  Expression() {
    const std::string pattern = Pattern();
    int error = 0;
    PCRE2_SIZE offset = 0;
    code_ = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()),
                          pattern.size(), PCRE2_UTF | PCRE2_ANCHORED, &error,
                          &offset, nullptr);
    CUBIT_CHECK(code_ != nullptr)
        << "PCRE2 error " << error << " at " << offset << " of " << pattern;
    // Without a compiler for this machine PCRE2 interprets, three to four
    // times slower.
    has_jit_ = pcre2_jit_compile(code_, PCRE2_JIT_COMPLETE) == 0;
  }
  Expression(const Expression&) = delete;
  Expression& operator=(const Expression&) = delete;

  const pcre2_code* code() const { return code_; }

  // End of the piece that begins at `start`.
  size_t Match(absl::string_view text, size_t start,
               pcre2_match_data* match) const {
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    const int count = has_jit_
                          ? pcre2_jit_match(code_, subject, text.size(), start,
                                            PCRE2_NO_UTF_CHECK, match, nullptr)
                          : pcre2_match(code_, subject, text.size(), start,
                                        PCRE2_NO_UTF_CHECK, match, nullptr);
    // Every character begins one of the branches.
    CUBIT_CHECK_GT(count, 0);
    const size_t end = pcre2_get_ovector_pointer(match)[1];
    CUBIT_CHECK_GT(end, start);
    return end;
  }

 private:
  pcre2_code* code_;
  bool has_jit_;
};

// Compiled once and never freed: threads may still match when main returns.
const Expression& Gpt2Expression() {
  static const Expression* const expression = new Expression;
  return *expression;
}

struct FreeMatch {
  void operator()(pcre2_match_data* match) const {
    pcre2_match_data_free(match);
  }
};

// Length of the run of bytes at the start of `text` that begin no character.
size_t InvalidPrefix(absl::string_view text) {
  size_t length = 0;
  while (length < text.size() &&
         Utf8CharacterLength(text.substr(length)) == 0) {
    ++length;
  }
  return length;
}

}  // namespace

void ForEachGpt2Piece(absl::string_view text,
                      absl::FunctionRef<void(absl::string_view)> piece) {
  const Expression& expression = Gpt2Expression();
  const std::unique_ptr<pcre2_match_data, FreeMatch> match(
      pcre2_match_data_create_from_pattern(expression.code(), nullptr));
  CUBIT_CHECK(match != nullptr);
  while (!text.empty()) {
    const absl::string_view valid =
        text.substr(0, static_cast<size_t>(ValidUtf8Prefix(text)));
    for (size_t start = 0; start < valid.size();) {
      const size_t end = expression.Match(valid, start, match.get());
      piece(valid.substr(start, end - start));
      start = end;
    }
    text.remove_prefix(valid.size());
    const size_t invalid = InvalidPrefix(text);
    if (invalid > 0) piece(text.substr(0, invalid));
    text.remove_prefix(invalid);
  }
}

}  // namespace cubit
