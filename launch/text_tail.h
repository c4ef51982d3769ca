// SPDX-License-Identifier: Apache-2.0
//
// A text that grows by the bytes of tokens: where a stop string ends it, and
// how much of it may be shown already.

#ifndef CUBIT_LAUNCH_TEXT_TAIL_H_
#define CUBIT_LAUNCH_TEXT_TAIL_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace cubit {

class TextTail {
 public:
  // Empty strings among `stop` are ignored.
  explicit TextTail(std::vector<std::string> stop);

  // Appends bytes. True if the text now holds a stop string: it is cut before
  // the first one, and complete.
  bool Append(absl::string_view bytes);

  // What may be shown and was not returned before: whole UTF-8 characters that
  // no stop string can take back any more.
  absl::string_view TakeReady();
  // The rest of a complete text.
  absl::string_view TakeRest();

  const std::string& text() const { return text_; }

 private:
  absl::string_view TakeUntil(size_t end);

  std::vector<std::string> stop_;
  std::string text_;
  size_t shown_ = 0;
};

}  // namespace cubit

#endif  // CUBIT_LAUNCH_TEXT_TAIL_H_
