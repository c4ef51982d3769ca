// SPDX-License-Identifier: Apache-2.0

#include "parallel/wavefront_trace.h"

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_format.h"

#include "runtime/file_system.h"
#include "runtime/status_macros.h"

namespace cubit {

double WavefrontTrace::Now() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() -
                                       origin_)
      .count();
}

int64_t WavefrontTrace::Begin(int rank) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return begun_[rank]++;
}

void WavefrontTrace::Record(const WavefrontSpan& span) {
  const std::lock_guard<std::mutex> lock(mutex_);
  spans_.push_back(span);
}

std::vector<WavefrontSpan> WavefrontTrace::Spans() const {
  std::vector<WavefrontSpan> spans;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    spans = spans_;
  }
  std::stable_sort(spans.begin(), spans.end(),
                   [](const WavefrontSpan& a, const WavefrontSpan& b) {
                     return std::tie(a.start, a.rank) <
                            std::tie(b.start, b.rank);
                   });
  return spans;
}

std::string ToJsonLines(const std::vector<WavefrontSpan>& spans) {
  std::string text;
  for (const WavefrontSpan& span : spans) {
    absl::StrAppendFormat(
        &text,
        "{\"rank\":%d,\"wavefront\":%d,\"kind\":\"%s\",\"rows\":%d,"
        "\"columns\":%d,\"group\":%d,\"start\":%.17g,\"end\":%.17g}\n",
        span.rank, span.wavefront, Name(span.action.kind), span.action.rows,
        span.action.columns, span.action.group, span.start, span.end);
  }
  return text;
}

absl::Status WriteTextFile(const std::string& path, const std::string& text) {
  CUBIT_ASSIGN_OR_RETURN(auto file, FileSystem::Posix().Create(path));
  CUBIT_RETURN_IF_ERROR(
      file->Append(text.data(), static_cast<int64_t>(text.size())));
  return file->Close();
}

}  // namespace cubit
