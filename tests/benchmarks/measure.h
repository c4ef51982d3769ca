// SPDX-License-Identifier: Apache-2.0
//
// What benchmarks share: timing, the machine's peak, results as JSON.

#ifndef CUBIT_TESTS_BENCHMARKS_MEASURE_H_
#define CUBIT_TESTS_BENCHMARKS_MEASURE_H_

#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "nlohmann/json.hpp"

namespace cubit {

// Shortest time of one call within `seconds` of calls, after one that is not
// counted: others on the machine only ever lengthen it.
double BestSeconds(double seconds, absl::FunctionRef<void()> call);

// FLOP/s of large sgemms, one on each thread of the pool. On a shared machine
// the rate drifts: measure it beside what is compared with it.
double SgemmRate(double seconds);

// Writes `results` to `path`; nothing if `path` is empty.
absl::Status WriteJson(const std::string& path, const nlohmann::json& results);

}  // namespace cubit

#endif  // CUBIT_TESTS_BENCHMARKS_MEASURE_H_
