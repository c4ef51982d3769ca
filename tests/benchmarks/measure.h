// SPDX-License-Identifier: Apache-2.0
//
// What CPU benchmarks share: timing, the machine's peak, results as JSON.

#ifndef CUBIT_TESTS_BENCHMARKS_MEASURE_H_
#define CUBIT_TESTS_BENCHMARKS_MEASURE_H_

#include "absl/functional/function_ref.h"

#include "tests/benchmarks/results.h"  // IWYU pragma: export

namespace cubit {

// Shortest time of one call within `seconds` of calls, after one that is not
// counted: others on the machine only ever lengthen it.
double BestSeconds(double seconds, absl::FunctionRef<void()> call);

// FLOP/s of large sgemms, one on each thread of the pool. On a shared machine
// the rate drifts: measure it beside what is compared with it.
double SgemmRate(double seconds);

}  // namespace cubit

#endif  // CUBIT_TESTS_BENCHMARKS_MEASURE_H_
