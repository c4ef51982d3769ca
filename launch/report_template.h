// SPDX-License-Identifier: Apache-2.0
//
// The text of launch/report/report.html, as part of the program.

#ifndef CUBIT_LAUNCH_REPORT_TEMPLATE_H_
#define CUBIT_LAUNCH_REPORT_TEMPLATE_H_

#include "absl/strings/string_view.h"

namespace cubit {

// "@DATA@" in it stands for the numbers, as JSON.
absl::string_view ReportTemplate();

}  // namespace cubit

#endif  // CUBIT_LAUNCH_REPORT_TEMPLATE_H_
