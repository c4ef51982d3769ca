// SPDX-License-Identifier: Apache-2.0

#include "data/prepare_progress.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "runtime/logging.h"

namespace cubit {
namespace {

constexpr auto kOnTerminal = std::chrono::milliseconds(250);
constexpr auto kInFile = std::chrono::seconds(10);

// Bytes of file for a byte of text, before any file was read.
double UsualRatio(const std::string& path) {
  for (const char* suffix : {".gz", ".xz", ".zst"}) {
    if (absl::EndsWith(path, suffix)) return 0.35;
  }
  return 1;
}

}  // namespace

PrepareProgress::PrepareProgress(const std::vector<PrepareInput>& inputs,
                                 bool shown)
    : inputs_(inputs), shown_(shown), start_(Clock::now()) {
  next_line_ =
      start_ + (ProgressIsShown() ? Clock::duration(kOnTerminal) : kInFile);
  for (const PrepareInput& input : inputs_) total_bytes_ += input.bytes;
}

double PrepareProgress::Share() const {
  if (total_bytes_ == 0) return 0;
  const PrepareInput& input = inputs_[static_cast<size_t>(file_)];
  const double ratio = finished_text_bytes_ == 0
                           ? UsualRatio(input.path)
                           : static_cast<double>(finished_file_bytes_) /
                                 static_cast<double>(finished_text_bytes_);
  const double in_file =
      ratio * static_cast<double>(text_bytes_ - finished_text_bytes_);
  return (static_cast<double>(finished_file_bytes_) +
          std::min(in_file, static_cast<double>(input.bytes))) /
         static_cast<double>(total_bytes_);
}

std::string PrepareProgress::Line(double seconds, int64_t documents) const {
  const double rate = static_cast<double>(text_bytes_) / seconds;
  std::string line = absl::StrFormat(
      "prepare: %.1f MB of text, %d documents, file %d of %d, %.2f MB/s",
      static_cast<double>(text_bytes_) / 1e6, documents, file_ + 1,
      inputs_.size(), rate / 1e6);
  const double share = Share();
  if (share > 0.001) {
    absl::StrAppendFormat(&line, ", %.0f%%, about %.0f s left", 100 * share,
                          seconds * (1 - share) / share);
  }
  return line;
}

void PrepareProgress::Update(int64_t file, int64_t text_bytes,
                             int64_t documents) {
  for (; file_ < file; ++file_) {
    finished_file_bytes_ += inputs_[static_cast<size_t>(file_)].bytes;
    finished_text_bytes_ = text_bytes_;
  }
  text_bytes_ += text_bytes;
  const Clock::time_point now = Clock::now();
  if (!shown_ || now < next_line_) return;
  const std::string line =
      Line(std::chrono::duration<double>(now - start_).count(), documents);
  if (ProgressIsShown()) {
    ShowProgress(line);
    next_line_ = now + kOnTerminal;
  } else {
    LogInfo(line);
    next_line_ = now + kInFile;
  }
}

}  // namespace cubit
