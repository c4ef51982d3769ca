// SPDX-License-Identifier: Apache-2.0

#include "launch/profile_event.h"

#include <cstddef>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/types/variant.h"

#include "parallel/agreement.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr char kRank[] = ".rank";

// "CATEGORY=SECONDS" lines.
std::string TextOf(const StepProfile& profile) {
  std::string text;
  for (const auto& [category, seconds] : profile.seconds()) {
    absl::StrAppend(
        &text,
        absl::StrFormat("%s=%.9g\n", category,
                        seconds / static_cast<double>(profile.num_steps())));
  }
  return text;
}

absl::Status AddRank(const std::string& text, size_t rank,
                     EventMetrics* event) {
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    const std::vector<std::string> parts = absl::StrSplit(line, '=');
    double seconds = 0;
    if (parts.size() != 2 || !absl::SimpleAtod(parts[1], &seconds)) {
      return absl::InternalError(
          absl::StrCat("rank ", rank, " sent a profile with ", line));
    }
    event->fields.emplace_back(absl::StrCat(parts[0], kRank, rank), seconds);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<EventMetrics> GatherProfiles(const StepProfile& own,
                                            int64_t step,
                                            Communicator* control) {
  CUBIT_ASSIGN_OR_RETURN(const std::vector<std::string> texts,
                         GatherTexts(control, TextOf(own)));
  EventMetrics event;
  event.event = "profile";
  event.step = step;
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    CUBIT_RETURN_IF_ERROR(AddRank(texts[rank], rank, &event));
  }
  return event;
}

std::vector<std::map<std::string, double>> ProfilesOfRanks(
    const EventMetrics& event) {
  std::vector<std::map<std::string, double>> ranks;
  for (const auto& [name, value] : event.fields) {
    const size_t dot = name.rfind(kRank);
    const double* seconds = absl::get_if<double>(&value);
    size_t rank = 0;
    if (dot == std::string::npos || seconds == nullptr ||
        !absl::SimpleAtoi(name.substr(dot + sizeof(kRank) - 1), &rank)) {
      continue;
    }
    if (ranks.size() <= rank) ranks.resize(rank + 1);
    ranks[rank][name.substr(0, dot)] = *seconds;
  }
  return ranks;
}

}  // namespace cubit
