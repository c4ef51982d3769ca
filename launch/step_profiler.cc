// SPDX-License-Identifier: Apache-2.0

#include "launch/step_profiler.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "launch/profile_event.h"
#include "parallel/agreement.h"
#include "parallel/wavefront_drawing.h"
#include "parallel/wavefront_schedule.h"
#include "runtime/file_system.h"
#include "runtime/logging.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

// The first wavefront among `spans` (ordered by start) in one direction.
std::vector<WavefrontSpan> FirstWavefront(
    const std::vector<WavefrontSpan>& spans, bool forward) {
  const auto first = std::find_if(
      spans.begin(), spans.end(), [forward](const WavefrontSpan& span) {
        return IsForward(span.action.kind) == forward;
      });
  std::vector<WavefrontSpan> result;
  for (auto span = first; span != spans.end(); ++span) {
    if (span->wavefront == first->wavefront) result.push_back(*span);
  }
  return result;
}

// Ranks run one program: their spans have one form.
std::string Packed(const std::vector<WavefrontSpan>& spans) {
  return std::string(reinterpret_cast<const char*>(spans.data()),
                     spans.size() * sizeof(WavefrontSpan));
}

void AppendUnpacked(const std::string& text,
                    std::vector<WavefrontSpan>* spans) {
  for (size_t at = 0; at + sizeof(WavefrontSpan) <= text.size();
       at += sizeof(WavefrontSpan)) {
    WavefrontSpan span;
    std::memcpy(&span, text.data() + at, sizeof(span));
    spans->push_back(span);
  }
}

void WarnIfNotWritten(const absl::Status& status) {
  if (status.ok()) return;
  LogWarning(absl::StrCat("the trace of wavefronts is not whole: ",
                          status.message(), "; training goes on"));
}

}  // namespace

StepProfiler::StepProfiler(int64_t first, int64_t last, std::string folder,
                           TrainState* state)
    : first_(first), last_(last), folder_(std::move(folder)), state_(state) {}

absl::Status StepProfiler::Begin(int64_t step) {
  if (!IsProfiled(step)) return absl::OkStatus();
  Stream& stream = state_->stream();
  if (profile_ == nullptr) {
    profile_ = std::make_unique<StepProfile>(&stream);
    MeshCommunicators& mesh = state_->mesh();
    if (mesh.size(MeshAxis::kCp) > 1) {
      // The clocks of all ranks begin together.
      Stream host;
      CUBIT_RETURN_IF_ERROR(mesh.control().Barrier(host));
      host.Synchronize();
      trace_ = std::make_unique<WavefrontTrace>();
    }
  }
  state_->observer().trace = trace_.get();
  stream.set_profile(profile_.get());
  profile_->Begin();
  return absl::OkStatus();
}

void StepProfiler::End(int64_t step) {
  if (!IsProfiled(step)) return;
  profile_->End();
  state_->stream().set_profile(nullptr);
  state_->observer().trace = nullptr;
}

absl::StatusOr<EventMetrics> StepProfiler::Report(int64_t step) {
  if (step != last_ || profile_ == nullptr) return EventMetrics();
  LogInfo(absl::StrFormat("device time of steps %d to %d:\n%s", first_, last_,
                          profile_->ToString()));
  const auto profile = std::exchange(profile_, nullptr);
  if (trace_ != nullptr) CUBIT_RETURN_IF_ERROR(ReportWavefronts());
  return GatherProfiles(*profile, step, &state_->mesh().control());
}

absl::Status StepProfiler::ReportWavefronts() {
  const std::vector<WavefrontSpan> spans = trace_->Spans();
  trace_.reset();
  // Other methods than the wavefront leave none, on every rank.
  if (spans.empty()) return absl::OkStatus();
  WarnIfNotWritten(WriteTrace(spans));
  for (const bool forward : {true, false}) {
    CUBIT_RETURN_IF_ERROR(Draw(FirstWavefront(spans, forward), forward));
  }
  if (state_->mesh().rank() == 0) {
    LogInfo(absl::StrCat("wavefronts of steps ", first_, " to ", last_, ": ",
                         folder_));
  }
  return absl::OkStatus();
}

absl::Status StepProfiler::WriteTrace(
    const std::vector<WavefrontSpan>& spans) const {
  CUBIT_RETURN_IF_ERROR(FileSystem::Posix().CreateFolders(folder_));
  return WriteTextFile(
      JoinPath(folder_, absl::StrCat("wavefront_rank_", state_->mesh().rank(),
                                     ".jsonl")),
      ToJsonLines(spans));
}

absl::Status StepProfiler::Draw(const std::vector<WavefrontSpan>& spans,
                                bool forward) {
  MeshCommunicators& mesh = state_->mesh();
  CUBIT_ASSIGN_OR_RETURN(const std::vector<std::string> texts,
                         GatherTexts(&mesh.control(), Packed(spans)));
  if (mesh.rank() != 0) return absl::OkStatus();
  std::vector<WavefrontSpan> all;
  for (const int rank : mesh.mesh().Group(MeshAxis::kCp, 0)) {
    AppendUnpacked(texts[static_cast<size_t>(rank)], &all);
  }
  const char* const name = forward ? "forward" : "backward";
  const std::string title =
      absl::StrFormat("Step %d: the first wavefront %s on %d ranks", first_,
                      name, mesh.size(MeshAxis::kCp));
  WarnIfNotWritten(
      WriteTextFile(JoinPath(folder_, absl::StrCat("wavefront_", name, ".svg")),
                    DrawWavefront(all, title, "s")));
  return absl::OkStatus();
}

}  // namespace cubit
