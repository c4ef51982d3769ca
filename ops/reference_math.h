// SPDX-License-Identifier: Apache-2.0
//
// What references need to stay analytic when T is std::complex<double>.

#ifndef CUBIT_OPS_REFERENCE_MATH_H_
#define CUBIT_OPS_REFERENCE_MATH_H_

#include <complex>

namespace cubit {
namespace reference {

// The part of x that comparisons may look at.
inline double Real(float x) { return static_cast<double>(x); }
inline double Real(double x) { return x; }
inline double Real(const std::complex<double>& x) { return x.real(); }

}  // namespace reference
}  // namespace cubit

#endif  // CUBIT_OPS_REFERENCE_MATH_H_
