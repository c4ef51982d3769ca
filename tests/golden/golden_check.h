// SPDX-License-Identifier: Apache-2.0
//
// Compares every tensor of every file of golden values with what the plain
// reference (double) and the back end of this program compute, in each of its
// precisions.

#ifndef CUBIT_TESTS_GOLDEN_GOLDEN_CHECK_H_
#define CUBIT_TESTS_GOLDEN_GOLDEN_CHECK_H_

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace cubit {
namespace golden {

// Largest relative errors (norm of the difference over norm).
constexpr double kReferenceTolerance = 1e-10;
constexpr double kBackendTolerance = 2e-5;  // of the CPU, in fp32
// On CUDA: fp32 tensors with two ways of multiplying, and bf16 ones, which may
// have twice the error of a plain evaluation besides (docs/numerics.md).
constexpr double kBFloat16x3Tolerance = 2e-4;
constexpr double kTFloat32Tolerance = 5e-3;
constexpr double kBFloat16Epsilon = 1.0 / 256;

// Norm of got - want over the norm of want; 0 if they are equal. NaN and
// unequal sizes give NaN.
double RelativeError(const std::vector<double>& got,
                     const std::vector<double>& want);

// Checks every .h5 file of `folder`, in the order of their names; prints one
// line per file, tensor and back end, and a summary. OK if all is within
// tolerance; else InvalidArgument (nothing to check, unreadable or malformed
// files) or FailedPrecondition (tensors past it). A bad file does not keep the
// others from being checked.
absl::Status CheckFolder(const std::string& folder, std::ostream& out);

}  // namespace golden
}  // namespace cubit

#endif  // CUBIT_TESTS_GOLDEN_GOLDEN_CHECK_H_
