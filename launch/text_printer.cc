// SPDX-License-Identifier: Apache-2.0

#include "launch/text_printer.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

namespace cubit {
namespace {

// Bytes that are no UTF-8 become U+FFFD: JSON has no other way.
std::string JsonLine(const std::string& prompt, const GeneratedText& text) {
  nlohmann::ordered_json object;
  object["prompt"] = prompt;
  object["text"] = text.text;
  object["finish_reason"] = std::string(Name(text.reason));
  object["tokens"] = text.num_tokens;
  return object.dump(-1, ' ', false,
                     nlohmann::ordered_json::error_handler_t::replace) +
         "\n";
}

}  // namespace

TextPrinter::TextPrinter(std::vector<std::string> prompts, bool json,
                         std::FILE* out)
    : prompts_(std::move(prompts)),
      pending_(prompts_.size()),
      json_(json),
      out_(out) {
  Advance();
}

void TextPrinter::Write(absl::string_view text) {
  std::fwrite(text.data(), 1, text.size(), out_);
}

void TextPrinter::Begin(size_t index) {
  if (begun_ || json_) return;
  begun_ = true;
  if (prompts_.size() > 1) {
    Write(absl::StrFormat("--- prompt %d of %d\n", index + 1, prompts_.size()));
  }
  Write(prompts_[index]);
}

void TextPrinter::Advance() {
  while (current_ < pending_.size()) {
    Begin(current_);
    Pending& pending = pending_[current_];
    Write(pending.text);
    pending.text.clear();
    if (!pending.finished) break;
    if (!json_) Write("\n");
    ++current_;
    begun_ = false;
  }
  std::fflush(out_);
}

void TextPrinter::OnText(size_t index, absl::string_view piece) {
  if (json_) return;
  pending_[index].text.append(piece.data(), piece.size());
  if (index == current_) Advance();
}

void TextPrinter::OnFinish(size_t index, const GeneratedText& text) {
  if (json_) pending_[index].text = JsonLine(prompts_[index], text);
  pending_[index].finished = true;
  if (index == current_) Advance();
}

}  // namespace cubit
