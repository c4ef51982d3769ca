// SPDX-License-Identifier: Apache-2.0
//
// Elementary functions of arrays for the CPU ops, several elements at a time.
// Written here, not taken from libmvec: that needs -ffast-math, slows down at
// -inf (a mask), and its bits depend on the version of glibc.

#ifndef CUBIT_OPS_VECTOR_MATH_H_
#define CUBIT_OPS_VECTOR_MATH_H_

#include <cstdint>

namespace cubit {

// y[i] = f(x[i]) for i in [0, n). y may be x; other overlap is not allowed.
// y[i] depends on x[i] alone, not on i or n, and NaN gives NaN. Errors are at
// most the stated units in the last place (of the smallest normal number, where
// the result is below it), for every finite x; the tests measure them.

// 1 ulp. exp(-inf) = 0, exp(inf) = inf, exp(0) = 1; results under the smallest
// denormal number are 0, never NaN.
void VectorExp(const float* x, float* y, int64_t n);

// y[i] = exp(x[i] - shift), returning the sum of all y[i], accumulated in
// double and in a fixed order: the softmax of a row once its maximum is known.
// shift must be finite.
double VectorExpSum(const float* x, float shift, float* y, int64_t n);

// 1 ulp. log(0) = -inf, log(inf) = inf, log(x < 0) = NaN.
void VectorLog(const float* x, float* y, int64_t n);

// 3 ulp. tanh(+-inf) = +-1, tanh(-0) = -0.
void VectorTanh(const float* x, float* y, int64_t n);

// 1 / (1 + exp(-x)), 3 ulp, also for negative x, where the result is tiny;
// sigmoid(-inf) = 0, sigmoid(inf) = 1.
void VectorSigmoid(const float* x, float* y, int64_t n);

}  // namespace cubit

#endif  // CUBIT_OPS_VECTOR_MATH_H_
