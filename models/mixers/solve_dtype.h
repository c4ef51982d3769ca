// SPDX-License-Identifier: Apache-2.0
//
// In which dtype a mixer's triangular solve runs, and how it multiplies.

#ifndef CUBIT_MODELS_MIXERS_SOLVE_DTYPE_H_
#define CUBIT_MODELS_MIXERS_SOLVE_DTYPE_H_

#include "models/model_config.h"
#include "ops/solve_precision.h"
#include "runtime/dtype.h"

namespace cubit {

// Whether activations of `dtype` are converted for the solve and back.
inline bool SolvesInFloat32(KrrPrecision precision, DType dtype) {
  return precision != KrrPrecision::kActivations && dtype != DType::kFloat32;
}

// What the solve takes then.
inline DType SolveDType(KrrPrecision precision, DType dtype) {
  return SolvesInFloat32(precision, dtype) ? DType::kFloat32 : dtype;
}

// Products of fp32 operands; where the solve takes bf16, of no effect.
inline SolvePrecision SolveWith(KrrPrecision precision) {
  return precision == KrrPrecision::kTFloat32 ? SolvePrecision::kTFloat32
                                              : SolvePrecision::kBFloat16x3;
}

}  // namespace cubit

#endif  // CUBIT_MODELS_MIXERS_SOLVE_DTYPE_H_
