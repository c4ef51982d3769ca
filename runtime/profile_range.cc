// SPDX-License-Identifier: Apache-2.0

#include "runtime/profile_range.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "runtime/check.h"

namespace cubit {
namespace {

constexpr char kOther[] = "other";

}  // namespace

void StepProfile::Begin() {
  CUBIT_CHECK(points_.empty()) << "Begin twice";
  Mark(kOther);
}

void StepProfile::End() {
  CUBIT_CHECK(!points_.empty()) << "End without Begin";
  CUBIT_CHECK(open_.empty()) << "a range is open";
  Mark(kOther);
  events_[points_.back().event].Synchronize();
  for (size_t i = 0; i + 1 < points_.size(); ++i) {
    const double seconds = Event::SecondsBetween(events_[points_[i].event],
                                                 events_[points_[i + 1].event]);
    seconds_[points_[i].category] += seconds;
    total_seconds_ += seconds;
  }
  ++num_steps_;
  points_.clear();
}

void StepProfile::Mark(const char* category) {
  if (events_.size() == points_.size()) events_.emplace_back();
  events_[points_.size()].Record(*stream_);
  points_.push_back({category, points_.size()});
}

void StepProfile::Enter(const char* category) {
  open_.push_back(category);
  if (!points_.empty()) Mark(category);
}

void StepProfile::Leave() {
  open_.pop_back();
  if (!points_.empty()) Mark(open_.empty() ? kOther : open_.back());
}

std::string StepProfile::ToString() const {
  std::vector<std::pair<double, std::string>> rows;
  for (const auto& [category, seconds] : seconds_) {
    rows.emplace_back(seconds, category);
  }
  std::sort(rows.rbegin(), rows.rend());
  const double steps = static_cast<double>(std::max<int64_t>(1, num_steps_));
  const double total = std::max(total_seconds_, 1e-12);
  std::string text;
  for (const auto& [seconds, category] : rows) {
    absl::StrAppend(
        &text, absl::StrFormat("%-16s %10.3f ms %5.1f%%\n", category,
                               1e3 * seconds / steps, 100 * seconds / total));
  }
  absl::StrAppend(&text,
                  absl::StrFormat("%-16s %10.3f ms of %d steps\n", "step",
                                  1e3 * total_seconds_ / steps, num_steps_));
  return text;
}

ProfileRange::ProfileRange(const char* category, Stream& stream)
    : profile_(stream.profile()) {
  PushProfilerRange(category);
  if (profile_ != nullptr) profile_->Enter(category);
}

ProfileRange::~ProfileRange() {
  if (profile_ != nullptr) profile_->Leave();
  PopProfilerRange();
}

ProfileLabel::ProfileLabel(const char* phase, int64_t index) {
  if (!ProfilerListens()) return;
  PushProfilerRange(absl::StrCat(phase, " ", index).c_str());
}

ProfileLabel::~ProfileLabel() {
  if (ProfilerListens()) PopProfilerRange();
}

}  // namespace cubit
