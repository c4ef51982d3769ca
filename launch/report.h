// SPDX-License-Identifier: Apache-2.0
//
// A run or several as one page of HTML: curves, loss by position, health of the
// solve, events and what differs in the configuration. The page is
// report/report.html with the numbers put in; it needs no network.

#ifndef CUBIT_LAUNCH_REPORT_H_
#define CUBIT_LAUNCH_REPORT_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "launch/config.h"
#include "launch/metrics.h"

namespace cubit {

struct ReportRun {
  std::string name;
  RunMetrics metrics;
  std::vector<ConfigValue> config;
};

// Reads metrics.jsonl and config.textproto of a run's folder; the name is the
// folder's. The run may still be going on.
absl::StatusOr<ReportRun> LoadReportRun(const std::string& folder);

// The page. A curve of very many steps is thinned: a point stands for several
// steps, with their mean (the largest gradient norm and gain, the smallest
// diagonal).
std::string ReportHtml(const std::vector<ReportRun>& runs);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_REPORT_H_
