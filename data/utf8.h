// SPDX-License-Identifier: Apache-2.0
//
// Where text stops being UTF-8 (Unicode 15, table 3-7: no overlong forms, no
// surrogates, nothing beyond U+10FFFF).

#ifndef CUBIT_DATA_UTF8_H_
#define CUBIT_DATA_UTF8_H_

#include <cstdint>

#include "absl/strings/string_view.h"

namespace cubit {

// Length of the valid UTF-8 character that `text` begins with, 1 to 4; 0 if it
// begins with none (or is empty).
int Utf8CharacterLength(absl::string_view text);

// Length in bytes of the longest prefix of `text` that is valid UTF-8;
// text.size() if all of it is.
int64_t ValidUtf8Prefix(absl::string_view text);

}  // namespace cubit

#endif  // CUBIT_DATA_UTF8_H_
