// SPDX-License-Identifier: Apache-2.0

#include "data/byte_level.h"

#include <array>
#include <cstdint>

#include "data/utf8.h"

namespace cubit {
namespace {

// Bytes that are printable in Latin-1 stand for themselves; the n-th of the
// others, in order, is spelled by the character 256 + n.
constexpr int kFirstOther = 256;

constexpr bool SpellsItself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) ||
         (byte >= 0xAE && byte <= 0xFF);
}

struct Tables {
  std::array<int, 256> character = {};  // by byte
  std::array<int, 512> byte = {};       // by character; -1: none

  Tables() {
    byte.fill(-1);
    int next = kFirstOther;
    for (int b = 0; b < 256; ++b) {
      character[b] = SpellsItself(b) ? b : next++;
      byte[character[b]] = b;
    }
  }
};

const Tables& ByteTables() {
  static const Tables* const tables = new Tables;
  return *tables;
}

}  // namespace

bool BytesOfSpelling(absl::string_view spelling, std::string* bytes) {
  const Tables& tables = ByteTables();
  bytes->clear();
  while (!spelling.empty()) {
    const int length = Utf8CharacterLength(spelling);
    // Every character of the spelling lies below U+0200.
    if (length != 1 && length != 2) return false;
    int character = static_cast<unsigned char>(spelling[0]);
    if (length == 2) {
      character = (character & 0x1F) << 6 |
                  (static_cast<unsigned char>(spelling[1]) & 0x3F);
    }
    if (character >= static_cast<int>(tables.byte.size()) ||
        tables.byte[character] < 0) {
      return false;
    }
    bytes->push_back(static_cast<char>(tables.byte[character]));
    spelling.remove_prefix(static_cast<size_t>(length));
  }
  return true;
}

std::string SpellingOfBytes(absl::string_view bytes) {
  const Tables& tables = ByteTables();
  std::string spelling;
  for (const char c : bytes) {
    const int character = tables.character[static_cast<unsigned char>(c)];
    if (character < 0x80) {
      spelling.push_back(static_cast<char>(character));
    } else {
      spelling.push_back(static_cast<char>(0xC0 | character >> 6));
      spelling.push_back(static_cast<char>(0x80 | (character & 0x3F)));
    }
  }
  return spelling;
}

}  // namespace cubit
