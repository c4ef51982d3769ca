// SPDX-License-Identifier: Apache-2.0
//
// Draws the pipeline schedules for docs/parallelism.md: four ranks, eight
// micro-batches, backwards twice as long as forwards, messages beside the
// computation.

#include "parallel/pipeline_drawing.h"

#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

#include "parallel/pipeline_schedule.h"
#include "parallel/pipeline_simulator.h"
#include "runtime/command_line.h"
#include "runtime/file_system.h"
#include "runtime/status_macros.h"

ABSL_FLAG(std::string, out, "docs/images",
          "folder for pipeline_gpipe.svg, pipeline_1f1b.svg and "
          "pipeline_interleaved_1f1b.svg");

namespace cubit {
namespace {

constexpr char kUsage[] = R"(Draws the pipeline schedules.

  bazel run //tests/benchmarks:pipeline_drawing -- --out=$PWD/docs/images
)";

absl::Status Draw(PipelineSchedule schedule, const std::string& title) {
  const int chunks = schedule == PipelineSchedule::kInterleaved1F1B ? 2 : 1;
  const PipelineShape shape = {/*pp_size=*/4, /*num_micro_batches=*/8, chunks};
  PipelineTimes times;
  times.forward = 1.0 / chunks;
  times.backward = 2.0 / chunks;
  CUBIT_ASSIGN_OR_RETURN(const auto programs, MakePipeline(schedule, shape));
  CUBIT_ASSIGN_OR_RETURN(
      const PipelineRun run,
      SimulatePipeline(programs, shape, times, MessageMode::kAsynchronous));
  const std::string path =
      JoinPath(absl::GetFlag(FLAGS_out),
               absl::StrCat("pipeline_", Name(schedule), ".svg"));
  return WriteFileAtomically(FileSystem::Posix(), path,
                             DrawPipelineSvg(run, title));
}

absl::Status DrawAll() {
  CUBIT_RETURN_IF_ERROR(Draw(PipelineSchedule::kGPipe,
                             "GPipe: all forwards, then all backwards"));
  CUBIT_RETURN_IF_ERROR(Draw(
      PipelineSchedule::k1F1B,
      "1F1B: one forward, one backward; the same time, fewer activations"));
  return Draw(PipelineSchedule::kInterleaved1F1B,
              "Interleaved 1F1B: two chunks a rank, each of half the layers");
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  cubit::ParseCommandLine(argc, argv, cubit::kUsage);
  return cubit::ExitStatus(cubit::DrawAll());
}
