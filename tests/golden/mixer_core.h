// SPDX-License-Identifier: Apache-2.0
//
// A mixer core on the inputs of a golden case, there and back: (norm and)
// rotation, per-token factors, solve, attention. Twice: in plain formulas, and
// by the ops of the back end that the program is linked with.

#ifndef CUBIT_TESTS_GOLDEN_MIXER_CORE_H_
#define CUBIT_TESTS_GOLDEN_MIXER_CORE_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "ops/solve_precision.h"
#include "runtime/dtype.h"
#include "tests/golden/golden_file.h"

namespace cubit {
namespace golden {

// Values of every tensor in the group `out` of a file, under the same names.
using Results = std::map<std::string, std::vector<double>>;

// The files give lse = 0 to a query that sees no key (Delta's first row of a
// document), where the ops say -inf, the log of an empty sum. Both runs write
// it as the files do.
void WriteEmptyRowsAsZero(std::vector<double>* lse);

// In double.
Results RunReference(const Case& c);

// The same formulas with the operands of every product, and what lies in memory
// between ops (inputs, x, its gradient, results of one element a head dim),
// rounded to bf16: once for every grid of bfloat16_products.h, the first of
// which is bf16's own.
std::vector<Results> RunPlainBFloat16(const Case& c);

// How the ops compute.
struct Precision {
  std::string name;  // "fp32", "bf16"
  DType dtype = DType::kFloat32;
  SolvePrecision solve = SolvePrecision::kBFloat16x3;  // of fp32 operands
};

// By the ops; the error is one of memory.
absl::StatusOr<Results> RunBackend(const Case& c, const Precision& precision);

}  // namespace golden
}  // namespace cubit

#endif  // CUBIT_TESTS_GOLDEN_MIXER_CORE_H_
