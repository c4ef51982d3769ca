// SPDX-License-Identifier: Apache-2.0
//
// A parameter's values on their way into a file.

#ifndef CUBIT_LAUNCH_EXPORT_VALUES_H_
#define CUBIT_LAUNCH_EXPORT_VALUES_H_

#include <vector>

#include "parallel/parameter.h"
#include "runtime/device.h"
#include "runtime/dtype.h"

namespace cubit {

// The bytes of `parameter` as `dtype`: kFloat32 bit for bit, or kBFloat16
// rounded to nearest even (a NaN stays one). CHECK: it is whole.
std::vector<char> ExportedBytes(const Parameter& parameter, DType dtype,
                                Stream& stream);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_EXPORT_VALUES_H_
