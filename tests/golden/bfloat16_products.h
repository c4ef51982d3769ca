// SPDX-License-Identifier: Apache-2.0
//
// A number type on which the plain references become "the same computation done
// plainly in bf16": operands of every product are rounded to bf16, and all else
// is exact. What a kernel in bf16 may be compared with.

#ifndef CUBIT_TESTS_GOLDEN_BFLOAT16_PRODUCTS_H_
#define CUBIT_TESTS_GOLDEN_BFLOAT16_PRODUCTS_H_

#include <cmath>

#include "runtime/bfloat16.h"

namespace cubit {
namespace golden {

inline double RoundToBFloat16(double x) {
  return static_cast<double>(ToFloat(ToBFloat16(static_cast<float>(x))));
}

class WithBFloat16Products {
 public:
  using Self = WithBFloat16Products;

  WithBFloat16Products() = default;
  explicit WithBFloat16Products(double value) : value_(value) {}
  explicit operator double() const { return value_; }

  friend Self operator*(const Self& a, const Self& b) {
    return Self(RoundToBFloat16(a.value_) * RoundToBFloat16(b.value_));
  }
  friend Self operator+(const Self& a, const Self& b) {
    return Self(a.value_ + b.value_);
  }
  friend Self operator-(const Self& a, const Self& b) {
    return Self(a.value_ - b.value_);
  }
  friend Self operator/(const Self& a, const Self& b) {
    return Self(a.value_ / b.value_);
  }
  friend Self operator-(const Self& a) { return Self(-a.value_); }
  Self& operator+=(const Self& b) { return *this = *this + b; }
  Self& operator-=(const Self& b) { return *this = *this - b; }
  Self& operator*=(const Self& b) { return *this = *this * b; }
  Self& operator/=(const Self& b) { return *this = *this / b; }

  friend Self exp(const Self& x) { return Self(std::exp(x.value_)); }
  friend Self log(const Self& x) { return Self(std::log(x.value_)); }
  friend Self sqrt(const Self& x) { return Self(std::sqrt(x.value_)); }
  // The part that comparisons of references look at.
  friend double Real(const Self& x) { return x.value_; }

 private:
  double value_ = 0;
};

}  // namespace golden
}  // namespace cubit

#endif  // CUBIT_TESTS_GOLDEN_BFLOAT16_PRODUCTS_H_
