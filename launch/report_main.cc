// SPDX-License-Identifier: Apache-2.0
//
// //launch:report: runs as one page to look at.

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_format.h"

#include "launch/report.h"
#include "runtime/command_line.h"
#include "runtime/file_system.h"
#include "runtime/status_macros.h"

ABSL_FLAG(std::string, out, "",
          "file to write; empty: report.html in the run's folder, or here if "
          "there are several runs");

namespace cubit {
namespace {

constexpr char kUsage[] = R"(Draws a run, or several together, as one page.

The page has curves with values under the pointer, loss by position, throughput,
the health of the solve, events, and what differs in the configurations. It is
one file and needs no network. A run may still be going on.

Examples:
  bazel run //launch:report -- runs/tiny
  bazel run //launch:report -- runs/tiny runs/tiny-2 --out=compared.html
)";

absl::Status Report(const std::vector<std::string>& folders) {
  if (folders.empty()) {
    return absl::InvalidArgumentError(
        "no run is named; give the folder of one or more, such as runs/tiny");
  }
  std::vector<ReportRun> runs;
  std::map<std::string, int> uses;
  for (const std::string& folder : folders) {
    CUBIT_ASSIGN_OR_RETURN(ReportRun run, LoadReportRun(folder));
    ++uses[run.name];
    runs.push_back(std::move(run));
  }
  for (size_t i = 0; i < runs.size(); ++i) {
    if (uses[runs[i].name] > 1) runs[i].name = folders[i];
  }
  std::string out = absl::GetFlag(FLAGS_out);
  if (out.empty()) {
    out = folders.size() == 1 ? JoinPath(folders[0], "report.html")
                              : "report.html";
  }
  const std::string page = ReportHtml(runs);
  CUBIT_RETURN_IF_ERROR(WriteFileAtomically(FileSystem::Posix(), out, page));
  absl::PrintF("%s: %d bytes, %d runs\n", out, page.size(), runs.size());
  return absl::OkStatus();
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  const std::vector<std::string> folders =
      cubit::ParseCommandLine(argc, argv, cubit::kUsage);
  return cubit::ExitStatus(cubit::Report(folders));
}
