// SPDX-License-Identifier: Apache-2.0

#include "data/utf8.h"

#include <cstring>

namespace cubit {
namespace {

constexpr uint64_t kHighBits = 0x8080808080808080u;

bool InRange(char c, int low, int high) {
  const int byte = static_cast<unsigned char>(c);
  return byte >= low && byte <= high;
}

bool IsContinuation(char c) { return InRange(c, 0x80, 0xBF); }

}  // namespace

int Utf8CharacterLength(absl::string_view text) {
  if (text.empty()) return 0;
  const int first = static_cast<unsigned char>(text[0]);
  if (first < 0x80) return 1;
  if (first < 0xC2 || first > 0xF4) return 0;
  const size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  if (text.size() < length) return 0;
  // The second byte rules out overlong forms, surrogates and code points over
  // the last one.
  const int low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const int high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  if (!InRange(text[1], low, high)) return 0;
  if (length > 2 && !IsContinuation(text[2])) return 0;
  if (length > 3 && !IsContinuation(text[3])) return 0;
  return static_cast<int>(length);
}

int64_t ValidUtf8Prefix(absl::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    uint64_t word;
    while (at + sizeof(word) <= text.size()) {
      std::memcpy(&word, text.data() + at, sizeof(word));
      if ((word & kHighBits) != 0) break;
      at += sizeof(word);
    }
    if (at == text.size()) break;
    const int length = Utf8CharacterLength(text.substr(at));
    if (length == 0) break;
    at += static_cast<size_t>(length);
  }
  return static_cast<int64_t>(at);
}

}  // namespace cubit
