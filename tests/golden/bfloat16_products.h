// SPDX-License-Identifier: Apache-2.0
//
// A number type on which the plain references become "the same computation done
// plainly in bf16": operands of every product and stored activations are
// rounded to bf16, and all else is exact. What a kernel in bf16 may be compared
// with.
//
// On one of several grids: the values x with x (1 + grid / kNumGrids) in bf16
// are as dense as bf16 itself, and hold the powers of two as it does, but
// rounding to them errs by other amounts. So every grid is another draw of the
// same error.

#ifndef CUBIT_TESTS_GOLDEN_BFLOAT16_PRODUCTS_H_
#define CUBIT_TESTS_GOLDEN_BFLOAT16_PRODUCTS_H_

#include <cmath>

#include "runtime/bfloat16.h"

namespace cubit {
namespace golden {

constexpr int kNumGrids = 8;

inline double RoundToBFloat16(double x, int grid) {
  const double factor = 1 + static_cast<double>(grid) / kNumGrids;
  const float scaled = static_cast<float>(x * factor);
  return static_cast<double>(ToFloat(ToBFloat16(scaled))) / factor;
}

template <int kGrid>
class WithBFloat16Products {
 public:
  using Self = WithBFloat16Products;

  WithBFloat16Products() = default;
  explicit WithBFloat16Products(double value) : value_(value) {}
  explicit operator double() const { return value_; }

  friend Self operator*(const Self& a, const Self& b) {
    return Self(RoundToBFloat16(a.value_, kGrid) *
                RoundToBFloat16(b.value_, kGrid));
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

  // Found beside those of <cmath>.
  // NOLINTBEGIN(readability-identifier-naming)
  friend Self exp(const Self& x) { return Self(std::exp(x.value_)); }
  friend Self log(const Self& x) { return Self(std::log(x.value_)); }
  friend Self sqrt(const Self& x) { return Self(std::sqrt(x.value_)); }
  // NOLINTEND(readability-identifier-naming)
  // The part that comparisons of references look at.
  friend double Real(const Self& x) { return x.value_; }

 private:
  double value_ = 0;
};

// An activation, or the gradient of one, as it lies in memory between ops.
inline double Stored(double x) { return x; }
template <int kGrid>
WithBFloat16Products<kGrid> Stored(const WithBFloat16Products<kGrid>& x) {
  return WithBFloat16Products<kGrid>(
      RoundToBFloat16(static_cast<double>(x), kGrid));
}

}  // namespace golden
}  // namespace cubit

#endif  // CUBIT_TESTS_GOLDEN_BFLOAT16_PRODUCTS_H_
