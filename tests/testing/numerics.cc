// SPDX-License-Identifier: Apache-2.0

#include "tests/testing/numerics.h"

#include <algorithm>
#include <limits>

#include "runtime/philox.h"

namespace cubit {
namespace testing {

HostTensor<float> RandomNormal(uint64_t seed, absl::string_view name,
                               Shape shape, double stddev) {
  HostTensor<float> tensor(shape);
  const Philox random(seed, name);
  for (int64_t i = 0; i < shape.num_elements(); ++i) {
    tensor[i] =
        static_cast<float>(stddev * random.Normal(static_cast<uint64_t>(i)));
  }
  return tensor;
}

HostTensor<float> Poisoned(Shape shape) {
  return HostTensor<float>(shape, std::numeric_limits<float>::quiet_NaN());
}

double Norm(const std::vector<double>& values) {
  double squares = 0;
  for (const double value : values) squares += value * value;
  return std::sqrt(squares);
}

double RelativeTo(const std::vector<double>& want, double error) {
  return error / std::max(Norm(want), 1e-300);
}

double RelativeError(const std::vector<double>& got,
                     const std::vector<double>& want) {
  CUBIT_CHECK_EQ(got.size(), want.size());
  double difference = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
  }
  return RelativeTo(want, std::sqrt(difference));
}

::testing::AssertionResult IsClose(const std::vector<double>& got,
                                   const std::vector<double>& want,
                                   double tolerance) {
  const double error = RelativeError(got, want);
  if (error <= tolerance) {
    return ::testing::AssertionSuccess()
           << "relative error " << error << " within " << tolerance;
  }
  size_t worst = 0;
  double largest = -1;
  for (size_t i = 0; i < got.size(); ++i) {
    const double distance = std::abs(got[i] - want[i]);
    if (std::isnan(distance) || distance > largest) {
      worst = i;
      largest = distance;
      if (std::isnan(distance)) break;
    }
  }
  return ::testing::AssertionFailure()
         << "relative error " << error << " over " << tolerance << "; worst at "
         << worst << ": got " << got[worst] << ", want " << want[worst];
}

}  // namespace testing
}  // namespace cubit
