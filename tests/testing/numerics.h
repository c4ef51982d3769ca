// SPDX-License-Identifier: Apache-2.0
//
// Tensors, random values, complex-step derivatives and error measures for
// tests.

#ifndef CUBIT_TESTS_TESTING_NUMERICS_H_
#define CUBIT_TESTS_TESTING_NUMERICS_H_

#include <cmath>
#include <complex>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "gtest/gtest.h"

#include "runtime/tensor.h"

namespace cubit {
namespace testing {

// A tensor that owns its values.
template <typename T>
class HostTensor {
 public:
  HostTensor() = default;
  explicit HostTensor(Shape shape, T value = T())
      : shape_(shape),
        values_(static_cast<size_t>(shape.num_elements()), value) {}
  HostTensor(Shape shape, std::vector<T> values)
      : shape_(shape), values_(std::move(values)) {
    CUBIT_CHECK_EQ(static_cast<int64_t>(values_.size()), shape_.num_elements());
  }

  Tensor view() { return Tensor(values_.data(), DTypeOf<T>::kValue, shape_); }
  ConstTensor view() const {
    return ConstTensor(values_.data(), DTypeOf<T>::kValue, shape_);
  }
  const Shape& shape() const { return shape_; }
  std::vector<T>& values() { return values_; }
  const std::vector<T>& values() const { return values_; }
  T& operator[](int64_t i) { return values_[static_cast<size_t>(i)]; }
  const T& operator[](int64_t i) const {
    return values_[static_cast<size_t>(i)];
  }

 private:
  Shape shape_;
  std::vector<T> values_;
};

// Standard normal values times `stddev`, a function of (seed, name).
HostTensor<float> RandomNormal(uint64_t seed, absl::string_view name,
                               Shape shape, double stddev = 1.0);

// Every value NaN: outputs start so, and a test sees what was never written.
HostTensor<float> Poisoned(Shape shape);

template <typename T>
std::vector<double> ToDouble(const std::vector<T>& values) {
  return std::vector<double>(values.begin(), values.end());
}

// Norm of the difference over the norm of `want` (over 1e-300 if that is 0).
// NaN anywhere gives NaN, which compares as a failure.
double RelativeError(const std::vector<double>& got,
                     const std::vector<double>& want);

double Norm(const std::vector<double>& values);

// `error` over the norm of `want`: an absolute error as part of a tolerance,
// for results that may cancel. `want` may be 0.
double RelativeTo(const std::vector<double>& want, double error);

// Passes if RelativeError <= tolerance; else names the worst element by its
// index with both values.
::testing::AssertionResult IsClose(const std::vector<double>& got,
                                   const std::vector<double>& want,
                                   double tolerance);

// d f / d x_i for every i by complex steps: f takes std::complex<double> inputs
// and returns a complex scalar; exact to rounding for analytic f.
template <typename Function>
std::vector<double> ComplexStepGradient(const std::vector<double>& x,
                                        const Function& f) {
  constexpr double kStep = 1e-30;
  std::vector<std::complex<double>> z(x.begin(), x.end());
  std::vector<double> gradient(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    z[i] = std::complex<double>(x[i], kStep);
    gradient[i] = f(z).imag() / kStep;
    z[i] = x[i];
  }
  return gradient;
}

}  // namespace testing
}  // namespace cubit

#endif  // CUBIT_TESTS_TESTING_NUMERICS_H_
