// SPDX-License-Identifier: Apache-2.0
//
// What Python does to text, where the definition of a task is Python: white
// space as str.strip sees it, str.capitalize, len, and literals as repr writes
// them. All text is UTF-8.

#ifndef CUBIT_LAUNCH_PYTHON_TEXT_H_
#define CUBIT_LAUNCH_PYTHON_TEXT_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace cubit {

// str.lstrip, str.rstrip and str.strip: Unicode white space, and the four
// separators U+001C to U+001F.
absl::string_view PythonStripLeft(absl::string_view text);
absl::string_view PythonStripRight(absl::string_view text);
absl::string_view PythonStrip(absl::string_view text);

// str.capitalize: the first character in title case, all others in lower case;
// one character for one and whatever stands beside it (Python's few longer
// mappings, such as that of the German sharp s, and its final sigma are left
// out).
std::string PythonCapitalize(absl::string_view text);

// len(text): code points; a byte that is no UTF-8 counts as one.
int64_t PythonLength(absl::string_view text);

// A list, dict, string, integer, True, False or None as Python's repr writes
// it, such as "[{'answer': 'A', 'options': ['x', \"it's\"]}]"; JSON's strings,
// arrays and objects are of this form too. Error: anything else, with the
// offset.
absl::StatusOr<nlohmann::json> ParsePythonLiteral(absl::string_view text);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_PYTHON_TEXT_H_
