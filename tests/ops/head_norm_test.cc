// SPDX-License-Identifier: Apache-2.0

#include "ops/head_norm.h"

#include <cmath>
#include <complex>
#include <vector>

#include "gtest/gtest.h"

#include "ops/head_norm_reference.h"
#include "runtime/device.h"
#include "tests/ops/backend_budget.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::ComplexStepGradient;
using ::cubit::testing::HostTensor;
using ::cubit::testing::IsClose;
using ::cubit::testing::IsWithinBudget;
using ::cubit::testing::Norm;
using ::cubit::testing::Poisoned;
using ::cubit::testing::Product;
using ::cubit::testing::RandomNormal;
using ::cubit::testing::RelativeTo;
using ::cubit::testing::Sum;
using ::cubit::testing::ToDouble;

using ComplexVector = std::vector<std::complex<double>>;

struct Size {
  int64_t batch;
  int64_t seq_len;
  int64_t num_heads;
  int64_t head_dim;

  int64_t rows() const { return batch * seq_len * num_heads; }
};

TEST(HeadNormReference, BackwardMatchesComplexStep) {
  const int64_t num_heads = 2, head_dim = 5;
  const std::vector<double> x =
      ToDouble(RandomNormal(1, "x", {6, head_dim}).values());
  const std::vector<double> gain =
      ToDouble(RandomNormal(1, "gain", {num_heads}).values());
  const std::vector<double> d_y =
      ToDouble(RandomNormal(1, "d_y", {6, head_dim}).values());
  const auto loss = [&](const ComplexVector& x_step,
                        const ComplexVector& gain_step) {
    return Product(
        d_y,
        reference::HeadNormForward(x_step, gain_step, num_heads, head_dim).y);
  };
  const ComplexVector zx(x.begin(), x.end());
  const ComplexVector zg(gain.begin(), gain.end());
  const auto forward = reference::HeadNormForward(x, gain, num_heads, head_dim);
  const auto gradient = reference::HeadNormBackward(
      d_y, x, gain, forward.inv_norm, num_heads, head_dim);
  EXPECT_TRUE(
      IsClose(gradient.d_x,
              ComplexStepGradient(
                  x, [&](const ComplexVector& z) { return loss(z, zg); }),
              1e-10));
  EXPECT_TRUE(
      IsClose(gradient.d_gain,
              ComplexStepGradient(
                  gain, [&](const ComplexVector& z) { return loss(zx, z); }),
              1e-10));
}

// Heads that lie in the middle of a wider projection, whose other columns are
// NaN: what touches them is seen.
class Projection {
 public:
  Projection(Size size, const std::vector<float>& heads)
      : size_(size), columns_(Poisoned({size.batch, size.seq_len, width()})) {
    for (int64_t n = 0; n < size.batch * size.seq_len; ++n) {
      for (int64_t i = 0; i < inner(); ++i) {
        columns_[n * width() + kFirst + i] =
            heads[static_cast<size_t>(n * inner() + i)];
      }
    }
  }

  HeadTensor view() {
    return HeadsOf(columns_.view(), kFirst, size_.num_heads, size_.head_dim);
  }

  // The heads [B, T, H, K], packed.
  std::vector<float> heads() const {
    std::vector<float> values;
    for (int64_t n = 0; n < size_.batch * size_.seq_len; ++n) {
      for (int64_t i = 0; i < inner(); ++i) {
        values.push_back(columns_[n * width() + kFirst + i]);
      }
    }
    return values;
  }

  bool others_untouched() const {
    int64_t num_nan = 0;
    for (const float value : columns_.values()) num_nan += std::isnan(value);
    return num_nan == size_.batch * size_.seq_len * (width() - inner());
  }

 private:
  static constexpr int64_t kFirst = 3;
  int64_t inner() const { return size_.num_heads * size_.head_dim; }
  int64_t width() const { return inner() + kFirst + 2; }

  Size size_;
  HostTensor<float> columns_;  // [B, T, inner + 5]
};

// [B, T, H] as the reference has it -> [B, H, T] as the op writes it.
template <typename T>
std::vector<T> ByHead(const std::vector<T>& x, const Size& s) {
  std::vector<T> result(x.size());
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t t = 0; t < s.seq_len; ++t) {
      for (int64_t h = 0; h < s.num_heads; ++h) {
        result[(b * s.num_heads + h) * s.seq_len + t] =
            x[(b * s.seq_len + t) * s.num_heads + h];
      }
    }
  }
  return result;
}

class HeadNorm : public ::testing::TestWithParam<Size> {
 protected:
  Size s = GetParam();
  HostTensor<float> x = RandomNormal(2, "x", {s.rows(), s.head_dim});
  HostTensor<float> gain = RandomNormal(2, "gain", {s.num_heads});
  HostTensor<float> d_y = RandomNormal(2, "d_y", {s.rows(), s.head_dim});
  HostTensor<float> inv_norm = Poisoned({s.batch, s.num_heads, s.seq_len});
  Projection y{s, x.values()};
  Projection d_x{s, d_y.values()};
  Stream stream;

  void CheckForward(const std::vector<float>& gain_values) {
    const auto plain = reference::HeadNormForward(x.values(), gain_values,
                                                  s.num_heads, s.head_dim);
    const auto exact = reference::HeadNormForward(
        ToDouble(x.values()), ToDouble(gain_values), s.num_heads, s.head_dim);
    EXPECT_TRUE(IsWithinBudget(y.heads(), plain.y, exact.y));
    EXPECT_TRUE(IsWithinBudget(inv_norm.values(), ByHead(plain.inv_norm, s),
                               ByHead(exact.inv_norm, s)));
    EXPECT_TRUE(y.others_untouched());
  }

  // d_gain is one number a head, a sum whose terms may cancel; the budget is
  // of what is left. A GPU takes the terms from y, rounded in inv_norm, in gain
  // times it, in y and in the sum: four errors of 2^-24 of the terms.
  double GainRounding() const {
    if (DeviceKind() == "cpu") return 0;
    const auto u = reference::HeadNormForward<double>(ToDouble(x.values()), {},
                                                      s.num_heads, s.head_dim)
                       .y;
    std::vector<double> terms;
    for (size_t i = 0; i < u.size(); ++i) {
      terms.push_back(u[i] * static_cast<double>(d_y.values()[i]));
    }
    return std::sqrt(4.0) * 0x1p-24 * Norm(terms);
  }

  template <typename T>
  reference::HeadNormGradient<T> ReferenceGradient(
      const std::vector<float>& gain_values) {
    const std::vector<T> wide_x = testing::Widen<T>(x.values());
    const std::vector<T> wide_gain = testing::Widen<T>(gain_values);
    const auto forward =
        reference::HeadNormForward(wide_x, wide_gain, s.num_heads, s.head_dim);
    return reference::HeadNormBackward(testing::Widen<T>(d_y.values()), wide_x,
                                       wide_gain, forward.inv_norm, s.num_heads,
                                       s.head_dim);
  }
};

TEST_P(HeadNorm, MatchesReference) {
  HeadNormForward(gain.view(), y.view(), inv_norm.view(), stream);
  CheckForward(gain.values());
  HostTensor<float> d_gain = RandomNormal(3, "d_gain", {s.num_heads});
  const std::vector<float> before = d_gain.values();
  HeadNormBackward(y.view(), gain.view(), inv_norm.view(), d_x.view(),
                   d_gain.view(), stream);
  const auto plain = ReferenceGradient<float>(gain.values());
  const auto exact = ReferenceGradient<double>(gain.values());
  EXPECT_TRUE(IsWithinBudget(d_x.heads(), plain.d_x, exact.d_x));
  const std::vector<double> want = Sum(ToDouble(before), exact.d_gain);
  EXPECT_TRUE(IsWithinBudget(d_gain.values(), Sum(before, plain.d_gain), want,
                             RelativeTo(want, GainRounding())));
  EXPECT_TRUE(d_x.others_untouched());
}

TEST_P(HeadNorm, MatchesReferenceWithoutGain) {
  HeadNormForward({}, y.view(), inv_norm.view(), stream);
  CheckForward({});
  HeadNormBackward(y.view(), {}, inv_norm.view(), d_x.view(), {}, stream);
  EXPECT_TRUE(IsWithinBudget(d_x.heads(), ReferenceGradient<float>({}).d_x,
                             ReferenceGradient<double>({}).d_x));
  EXPECT_TRUE(d_x.others_untouched());
}

INSTANTIATE_TEST_SUITE_P(Sizes, HeadNorm,
                         ::testing::Values(Size{1, 1, 1, 2}, Size{2, 3, 1, 64},
                                           Size{1, 5, 3, 17},
                                           Size{2, 150, 4, 32}));

TEST(HeadNormForward, RowsOfZerosStayZero) {
  HostTensor<float> x({1, 2, 8}, 0.0f);
  HostTensor<float> inv_norm = Poisoned({1, 2, 2});
  Stream stream;
  HeadNormForward({}, HeadsOf(x.view(), 0, 2, 4), inv_norm.view(), stream);
  for (const float value : x.values()) EXPECT_EQ(value, 0.0f);
  for (const float value : inv_norm.values()) EXPECT_FLOAT_EQ(value, 1e6f);
}

TEST(HeadNormBackward, AGainOfZeroGetsNoGradient) {
  HostTensor<float> y = RandomNormal(4, "x", {1, 3, 8});
  HostTensor<float> d_x = RandomNormal(4, "d_y", {1, 3, 8});
  const HostTensor<float> gain({2}, {0.0f, 1.5f});
  HostTensor<float> inv_norm = Poisoned({1, 2, 3});
  HostTensor<float> d_gain({2}, {7.0f, 0.0f});
  Stream stream;
  HeadNormForward(gain.view(), HeadsOf(y.view(), 0, 2, 4), inv_norm.view(),
                  stream);
  HeadNormBackward(HeadsOf(y.view(), 0, 2, 4), gain.view(), inv_norm.view(),
                   HeadsOf(d_x.view(), 0, 2, 4), d_gain.view(), stream);
  EXPECT_EQ(d_gain[0], 7.0f);
  EXPECT_NE(d_gain[1], 0.0f);
  for (int64_t t = 0; t < 3; ++t) {
    for (int64_t i = 0; i < 4; ++i) {
      EXPECT_EQ(d_x[t * 8 + i], 0.0f);
      EXPECT_NE(d_x[t * 8 + 4 + i], 0.0f);
    }
  }
}

}  // namespace
}  // namespace cubit
