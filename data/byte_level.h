// SPDX-License-Identifier: Apache-2.0
//
// GPT-2's spelling of bytes as printable characters, in which its vocabulary
// files are written: "Ġt" is " t".

#ifndef CUBIT_DATA_BYTE_LEVEL_H_
#define CUBIT_DATA_BYTE_LEVEL_H_

#include <string>

#include "absl/strings/string_view.h"

namespace cubit {

// Replaces *bytes with what `spelling` spells; false if a character of it
// spells no byte.
bool BytesOfSpelling(absl::string_view spelling, std::string* bytes);

// The spelling of `bytes`, in UTF-8.
std::string SpellingOfBytes(absl::string_view bytes);

}  // namespace cubit

#endif  // CUBIT_DATA_BYTE_LEVEL_H_
