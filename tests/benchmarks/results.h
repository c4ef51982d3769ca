// SPDX-License-Identifier: Apache-2.0
//
// Results of a benchmark as JSON.

#ifndef CUBIT_TESTS_BENCHMARKS_RESULTS_H_
#define CUBIT_TESTS_BENCHMARKS_RESULTS_H_

#include <string>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"

namespace cubit {

// Writes `results` to `path`; nothing if `path` is empty.
absl::Status WriteJson(const std::string& path, const nlohmann::json& results);

}  // namespace cubit

#endif  // CUBIT_TESTS_BENCHMARKS_RESULTS_H_
