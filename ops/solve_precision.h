// SPDX-License-Identifier: Apache-2.0
//
// How the triangular solves (krr.h, delta_solve.h) form products of fp32
// tensors on tensor cores, which take shorter operands.

#ifndef CUBIT_OPS_SOLVE_PRECISION_H_
#define CUBIT_OPS_SOLVE_PRECISION_H_

namespace cubit {

// Says nothing about bf16 tensors, which are multiplied as they are, nor about
// the CPU, which computes in fp32. Sums are fp32 everywhere. The solve
// amplifies errors; docs/decisions/0008 has the measured table.
enum class SolvePrecision {
  // Each operand as the sum of two bf16 numbers, three of the four products:
  // errors near 2^-16 of a product.
  kBFloat16x3,
  // Operands rounded to tf32: errors near 2^-11, a third fewer products.
  kTFloat32,
};

}  // namespace cubit

#endif  // CUBIT_OPS_SOLVE_PRECISION_H_
