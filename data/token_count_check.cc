// SPDX-License-Identifier: Apache-2.0

#include "data/token_count_check.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace cubit {
namespace {

constexpr size_t kShown = 20;

}  // namespace

// The members' names are the report's; the arguments' the document's.
void TokenCountCheck::Add(int64_t document, int64_t document_stated,
                          int64_t document_counted) {
  if (document_stated < 0) return;
  ++documents;
  stated += document_stated;
  counted += document_counted;
  if (document_stated == document_counted) return;
  ++differing;
  if (first.size() < kShown) {
    first.push_back({document, document_stated, document_counted});
  }
}

std::string TokenCountCheck::ToString() const {
  if (documents == 0) return "";
  std::string text = absl::StrFormat(
      "token_count: %d of %d documents have as many tokens as their file "
      "states; %d stated in all, %d counted (%+d)",
      documents - differing, documents, stated, counted, counted - stated);
  if (differing == 0) return text;
  absl::StrAppend(&text, ". Document (counted from 0) and difference:");
  for (const Difference& difference : first) {
    absl::StrAppendFormat(&text, " %d (%+d)", difference.document,
                          difference.counted - difference.stated);
  }
  const auto shown = static_cast<int64_t>(first.size());
  if (differing > shown) {
    absl::StrAppendFormat(&text, " and %d more", differing - shown);
  }
  return text;
}

}  // namespace cubit
