// SPDX-License-Identifier: Apache-2.0
//
// Shows texts that are generated at the same time, in the order of their
// prompts: the first that is not complete as it grows, those after it once
// their turn comes.

#ifndef CUBIT_LAUNCH_TEXT_PRINTER_H_
#define CUBIT_LAUNCH_TEXT_PRINTER_H_

#include <cstddef>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

#include "launch/sampler.h"

namespace cubit {

class TextPrinter {
 public:
  // With `json`, one object a line once a text is complete. Else each prompt
  // with its text, under a line "--- prompt 2 of 3" if there are several.
  TextPrinter(std::vector<std::string> prompts, bool json, std::FILE* out);

  void OnText(size_t index, absl::string_view piece);
  void OnFinish(size_t index, const GeneratedText& text);

 private:
  struct Pending {
    std::string text;  // not shown yet
    bool finished = false;
  };

  void Write(absl::string_view text);
  // Shows what can be shown, up to the first text that is not complete.
  void Advance();
  void Begin(size_t index);

  std::vector<std::string> prompts_;
  std::vector<Pending> pending_;
  bool json_;
  std::FILE* out_;
  size_t current_ = 0;
  bool begun_ = false;  // the current one
};

}  // namespace cubit

#endif  // CUBIT_LAUNCH_TEXT_PRINTER_H_
