// SPDX-License-Identifier: Apache-2.0

#include "launch/text_tail.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"

namespace cubit {
namespace {

// Bytes at the end of `text` that begin a UTF-8 character without ending it.
size_t UnfinishedBytes(absl::string_view text) {
  for (size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if ((byte & 0xC0) == 0x80) continue;
    const size_t length = byte >= 0xF0   ? 4
                          : byte >= 0xE0 ? 3
                          : byte >= 0xC0 ? 2
                                         : 1;
    return length > back ? back : 0;
  }
  return 0;
}

// Length of the longest end of `text` that begins `word` without being it.
size_t BegunBytes(absl::string_view text, absl::string_view word) {
  for (size_t length = std::min(text.size(), word.size() - 1); length > 0;
       --length) {
    if (absl::EndsWith(text, word.substr(0, length))) return length;
  }
  return 0;
}

}  // namespace

TextTail::TextTail(std::vector<std::string> stop) : stop_(std::move(stop)) {
  stop_.erase(std::remove(stop_.begin(), stop_.end(), ""), stop_.end());
}

bool TextTail::Append(absl::string_view bytes) {
  const size_t old_size = text_.size();
  text_.append(bytes.data(), bytes.size());
  size_t end = std::string::npos;
  for (const std::string& word : stop_) {
    // A stop string may have begun in the bytes before.
    const size_t from = old_size - std::min(old_size, word.size() - 1);
    end = std::min(end, text_.find(word, from));
  }
  if (end == std::string::npos) return false;
  text_.resize(end);
  return true;
}

absl::string_view TextTail::TakeReady() {
  size_t held = UnfinishedBytes(text_);
  for (const std::string& word : stop_) {
    held = std::max(held, BegunBytes(text_, word));
  }
  // What is held may begin inside a character that the stop string shares.
  const absl::string_view ready =
      absl::string_view(text_).substr(0, text_.size() - held);
  return TakeUntil(ready.size() - UnfinishedBytes(ready));
}

absl::string_view TextTail::TakeRest() { return TakeUntil(text_.size()); }

absl::string_view TextTail::TakeUntil(size_t end) {
  if (end <= shown_) return absl::string_view();
  const absl::string_view piece =
      absl::string_view(text_).substr(shown_, end - shown_);
  shown_ = end;
  return piece;
}

}  // namespace cubit
