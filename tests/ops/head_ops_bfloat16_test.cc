// SPDX-License-Identifier: Apache-2.0
//
// The per-head passes on bf16 tensors in device memory: computed in fp32 and
// rounded once, so at most half a unit of bf16 from the reference in double
// (of the same bf16 inputs).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

#include "ops/attention_reference.h"
#include "ops/decode.h"
#include "ops/head_norm.h"
#include "ops/heads.h"
#include "ops/krr.h"
#include "ops/rotary.h"
#include "ops/rotary_reference.h"
#include "tests/ops/device_heads.h"
#include "tests/ops/head_array.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::Append;
using ::cubit::testing::DeviceHeads;
using ::cubit::testing::DeviceTensor;
using ::cubit::testing::HeadSize;
using ::cubit::testing::IsClose;
using ::cubit::testing::RandomNormal;
using ::cubit::testing::ToDouble;
using reference::Matrix;

// Relative error that rounding to bf16 (8 bits of mantissa) may make.
constexpr double kHalfUnit = 1.0 / 256;

// Vectors fit, vectors fit whole rows but not their halves, rows at odd
// addresses.
struct Layout {
  HeadSize size;
  int64_t first;
};
const Layout kLayouts[] = {{{2, 6, 33, 64}, 16},
                           {{1, 3, 70, 80}, 16},
                           {{1, 5, 9, 8}, 16},
                           {{1, 2, 40, 128}, 8},
                           {{1, 3, 20, 6}, 3}};

TEST(RotaryBFloat16, TurnsThereAndBack) {
  for (const Layout& layout : kLayouts) {
    const HeadSize& size = layout.size;
    DeviceHeads x(size, "x", 1.0, layout.first);
    const std::vector<float> before = x.Values();
    DeviceTensor<float> table(Shape{size.seq_len + 7, size.head_dim});
    Stream stream;
    RotaryTable(10000.0, table.view(), stream);
    std::vector<double> want;
    for (int64_t pair = 0; pair < size.num_pairs(); ++pair) {
      Append(reference::Rotary(x.Head<double>(pair), 10000.0, 7, 1).values(),
             &want);
    }
    RotaryForward(table.view(), 7, x.view(), stream);
    stream.Synchronize();
    x.Read();
    EXPECT_TRUE(IsClose(ToDouble(x.Values()), want, kHalfUnit));
    EXPECT_TRUE(x.RestIsPoisoned());
    std::vector<double> want_sums(
        static_cast<size_t>(size.num_heads * size.head_dim));
    const DeviceTensor<float> sums(Shape{size.num_heads * size.head_dim},
                                   std::vector<float>(want_sums.size(), 0.0f));
    RotaryBackward(table.view(), 7, {x.view()}, {sums.view()}, stream);
    stream.Synchronize();
    x.Read();
    EXPECT_TRUE(IsClose(ToDouble(x.Values()), ToDouble(before), 2 * kHalfUnit));
    for (int64_t pair = 0; pair < size.num_pairs(); ++pair) {
      const auto head = x.Head<double>(pair);
      for (int64_t i = 0; i < size.seq_len * size.head_dim; ++i) {
        want_sums[static_cast<size_t>(pair % size.num_heads * size.head_dim +
                                      i % size.head_dim)] +=
            head(i / size.head_dim, i % size.head_dim);
      }
    }
    EXPECT_TRUE(IsClose(ToDouble(sums.Read()), want_sums, 1e-5));
  }
}

// |r|^2 is that of the rounded rows, which the solve reads.
TEST(KrrRotaryFactorsBFloat16, TurnAsTheRotationAndMeasureWhatIsStored) {
  for (const Layout& layout : kLayouts) {
    const HeadSize& size = layout.size;
    DeviceHeads r(size, "r", 1.0, layout.first);
    DeviceHeads rotated = DeviceHeads(size, "r", 1.0, layout.first);
    DeviceTensor<float> table(Shape{size.seq_len + 7, size.head_dim});
    const Shape scalars = {size.batch, size.num_heads, size.seq_len};
    const DeviceTensor<float> column_scale(scalars), value_scale(scalars),
        scale(Shape{size.num_heads},
              std::vector<float>(static_cast<size_t>(size.num_heads), 3.0f));
    Stream stream;
    RotaryTable(10000.0, table.view(), stream);
    KrrRotaryFactorsForward(table.view(), 7, r.view(), {}, scale.view(), {}, {},
                            column_scale.view(), value_scale.view(), stream);
    RotaryForward(table.view(), 7, rotated.view(), stream);
    stream.Synchronize();
    r.Read();
    rotated.Read();
    EXPECT_EQ(r.Values(), rotated.Values());
    EXPECT_TRUE(r.RestIsPoisoned());
    std::vector<double> want;
    for (int64_t pair = 0; pair < size.num_pairs(); ++pair) {
      const Matrix<double> head = r.Head<double>(pair);
      for (int64_t t = 0; t < size.seq_len; ++t) {
        want.push_back(3 / std::sqrt(RowDot(head, t, head, t) + 1e-12));
      }
    }
    EXPECT_TRUE(IsClose(ToDouble(column_scale.Read()), want, 5e-7));
    EXPECT_EQ(value_scale.Read(), std::vector<float>(want.size(), 1.0f));
  }
}

// Rows of `x` scaled to the length of their head's gain, [B, H, T, K].
std::vector<double> Normalized(const DeviceHeads& x, const HeadSize& size,
                               const std::vector<float>& gains) {
  std::vector<double> values;
  for (int64_t pair = 0; pair < size.num_pairs(); ++pair) {
    const Matrix<double> head = x.Head<double>(pair);
    const double length =
        static_cast<double>(gains[static_cast<size_t>(pair % size.num_heads)]);
    for (int64_t t = 0; t < size.seq_len; ++t) {
      const double norm = std::sqrt(RowDot(head, t, head, t) + 1e-12);
      for (int64_t c = 0; c < size.head_dim; ++c) {
        values.push_back(length * head(t, c) / norm);
      }
    }
  }
  return values;
}

TEST(HeadNormBFloat16, GivesRowsOfTheGainsLength) {
  for (const Layout& layout : kLayouts) {
    const HeadSize& size = layout.size;
    DeviceHeads x(size, "x", 2.0, layout.first);
    std::vector<float> gains;
    for (int64_t h = 0; h < size.num_heads; ++h) {
      gains.push_back(0.5f + static_cast<float>(h));
    }
    const DeviceTensor<float> gain(Shape{size.num_heads}, gains);
    const DeviceTensor<float> inv_norm(
        Shape{size.batch, size.num_heads, size.seq_len});
    const std::vector<double> want = Normalized(x, size, gains);
    Stream stream;
    HeadNormForward(gain.view(), x.view(), inv_norm.view(), stream);
    stream.Synchronize();
    x.Read();
    EXPECT_TRUE(IsClose(ToDouble(x.Values()), want, kHalfUnit));
    EXPECT_TRUE(x.RestIsPoisoned());
  }
}

// Of a norm whose gain is 2 and whose 1 / |x| is 0.25 everywhere.
struct NormGradient {
  std::vector<double> d_x;     // [B, H, T, K]
  std::vector<double> d_gain;  // [H]
};
NormGradient GradientOfNorm(const DeviceHeads& y, const DeviceHeads& d_y,
                            const HeadSize& size) {
  NormGradient gradient;
  gradient.d_gain.assign(static_cast<size_t>(size.num_heads), 0.0);
  for (int64_t pair = 0; pair < size.num_pairs(); ++pair) {
    const Matrix<double> y_head = y.Head<double>(pair);
    const Matrix<double> d_head = d_y.Head<double>(pair);
    for (int64_t t = 0; t < size.seq_len; ++t) {
      const double product = RowDot(y_head, t, d_head, t);
      gradient.d_gain[static_cast<size_t>(pair % size.num_heads)] +=
          product / 2;
      for (int64_t c = 0; c < size.head_dim; ++c) {
        gradient.d_x.push_back(0.5 *
                               (d_head(t, c) - y_head(t, c) * product / 4));
      }
    }
  }
  return gradient;
}

TEST(HeadNormBackwardBFloat16, MatchesTheFormula) {
  for (const Layout& layout : kLayouts) {
    const HeadSize& size = layout.size;
    const DeviceHeads y(size, "y", 1.0, layout.first);
    DeviceHeads d(size, "d", 1.0, layout.first);
    const DeviceTensor<float> gain(
        Shape{size.num_heads},
        std::vector<float>(static_cast<size_t>(size.num_heads), 2.0f));
    const DeviceTensor<float> d_gain(
        Shape{size.num_heads},
        std::vector<float>(static_cast<size_t>(size.num_heads), 1.0f));
    const Shape scalars = {size.batch, size.num_heads, size.seq_len};
    const DeviceTensor<float> inv_norm(
        scalars,
        std::vector<float>(static_cast<size_t>(scalars.num_elements()), 0.25f));
    NormGradient want = GradientOfNorm(y, d, size);
    for (double& value : want.d_gain) value += 1;  // what was there
    Stream stream;
    HeadNormBackward(y.view(), gain.view(), inv_norm.view(), d.view(),
                     d_gain.view(), stream);
    stream.Synchronize();
    d.Read();
    EXPECT_TRUE(IsClose(ToDouble(d.Values()), want.d_x, kHalfUnit));
    EXPECT_TRUE(IsClose(ToDouble(d_gain.Read()), want.d_gain, 1e-5));
    EXPECT_TRUE(d.RestIsPoisoned());
  }
}

TEST(KrrHealthBFloat16, MatchesItsDefinition) {
  for (const Layout& layout : kLayouts) {
    const HeadSize& size = layout.size;
    const DeviceHeads r(size, "r", 0.3, layout.first),
        v(size, "v", 1.0, layout.first), x(size, "x", 2.0, layout.first);
    const Shape scalars = {size.batch, size.num_heads, size.seq_len};
    const std::vector<float> column_scale =
        RandomNormal(9, "column_scale", scalars, 0.1).values();
    const std::vector<float> value_scale =
        RandomNormal(9, "value_scale", scalars).values();
    std::vector<float> lse = RandomNormal(9, "lse", scalars, 0.1).values();
    for (float& value : lse) value += 3;
    const DeviceTensor<float> columns(scalars, column_scale),
        values(scalars, value_scale), lse_device(scalars, lse),
        log_lambda(
            Shape{size.num_heads},
            std::vector<float>(static_cast<size_t>(size.num_heads), -2.0f)),
        result(Shape{3});
    Stream stream;
    KrrHealth(r.view(), v.view(), columns.view(), values.view(),
              log_lambda.view(), x.view(), lse_device.view(), result.view(),
              stream);
    stream.Synchronize();
    double diagonal = 1, largest_x = 0, largest_v = 0;
    for (int64_t i = 0; i < scalars.num_elements(); ++i) {
      const int64_t pair = i / size.seq_len;
      const int64_t t = i % size.seq_len;
      const size_t n = static_cast<size_t>(i);
      const Matrix<double> r_head = r.Head<double>(pair);
      const Matrix<double> v_head = v.Head<double>(pair);
      const Matrix<double> x_head = x.Head<double>(pair);
      const double score =
          static_cast<double>(column_scale[n]) * RowDot(r_head, t, r_head, t);
      diagonal =
          std::min(diagonal, std::exp(score - static_cast<double>(lse[n])));
      for (int64_t c = 0; c < size.head_dim; ++c) {
        largest_x = std::max(largest_x, std::abs(x_head(t, c)));
        largest_v = std::max(
            largest_v,
            std::abs(v_head(t, c) * static_cast<double>(value_scale[n])));
      }
    }
    EXPECT_TRUE(IsClose(ToDouble(result.Read()),
                        {diagonal, largest_x / largest_v, std::exp(-2.0)},
                        1e-6));
  }
}

TEST(KrrScalarsBFloat16, MatchTheFormula) {
  const HeadSize size = {2, 3, 1100, 1};
  const DeviceHeads logits(size, "logits", 1.0, 5);
  DeviceHeads d_logits(size, 5);
  const Shape scalars = {2, 3, 1100};
  const std::vector<float> shares = RandomNormal(8, "shares", scalars).values();
  const std::vector<float> d_values =
      RandomNormal(8, "d_values", scalars).values();
  const DeviceTensor<float> shares_device(scalars, shares),
      d_values_device(scalars, d_values),
      upper_scale(Shape{3}, {0.5f, 1.5f, -2.0f}),
      d_scale(Shape{3}, std::vector<float>(3, 1.0f)),
      d_lower(Shape{3}, std::vector<float>(3, 2.0f)),
      d_upper(Shape{3}, std::vector<float>(3, 3.0f));
  Stream stream;
  KrrScalarsBackward(logits.view(), upper_scale.view(), shares_device.view(),
                     d_values_device.view(), d_logits.view(), d_scale.view(),
                     d_lower.view(), d_upper.view(), stream);
  stream.Synchronize();
  d_logits.Read();
  const std::vector<double> upper = ToDouble(upper_scale.Read());
  std::vector<double> want_scale(3, 1.0), want_lower(3, 2.0),
      want_upper(3, 3.0), want_logits;
  const std::vector<double> x = ToDouble(logits.Values());
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t h = i / 1100 % 3;
    const double s = 1 / (1 + std::exp(-x[i]));
    const double d_value = d_values[i];
    want_scale[h] += shares[i];
    want_lower[h] += d_value;
    want_upper[h] += d_value * s;
    want_logits.push_back(d_value * upper[h] * s * (1 - s));
  }
  EXPECT_TRUE(IsClose(ToDouble(d_scale.Read()), want_scale, 1e-6));
  EXPECT_TRUE(IsClose(ToDouble(d_lower.Read()), want_lower, 1e-6));
  EXPECT_TRUE(IsClose(ToDouble(d_upper.Read()), want_upper, 1e-6));
  EXPECT_TRUE(IsClose(ToDouble(d_logits.Values()), want_logits, kHalfUnit));
  EXPECT_TRUE(d_logits.RestIsPoisoned());
}

TEST(CopyHeadsBFloat16, ConvertsBothWays) {
  for (const Layout& layout : kLayouts) {
    const HeadSize& size = layout.size;
    const DeviceHeads x(size, "x", 1.0, layout.first);
    const Shape wide_shape = {size.batch, size.seq_len,
                              size.num_heads * size.head_dim};
    const DeviceTensor<float> wide(wide_shape);
    const HeadTensor wide_heads =
        HeadsOf(wide.view(), 0, size.num_heads, size.head_dim);
    DeviceHeads y(size, layout.first);
    Stream stream;
    CopyHeads(x.view(), wide_heads, stream);
    AddHeads(x.view(), wide_heads, stream);
    CopyHeads(wide_heads, y.view(), stream);
    AddHeads(wide_heads, y.view(), stream);
    stream.Synchronize();
    y.Read();
    std::vector<float> want = x.Values();
    // 2 x and 4 x are exact.
    for (float& value : want) value *= 4;
    EXPECT_EQ(y.Values(), want);
    EXPECT_TRUE(y.RestIsPoisoned());
  }
}

TEST(SigmoidHeadsBFloat16, WritesFp32FromBFloat16) {
  const HeadSize size = {2, 3, 50, 1};
  const DeviceHeads x(size, "x", 2.0, 5);
  const DeviceTensor<float> y(Shape{2, 3, 50});
  Stream stream;
  SigmoidHeads(x.view(), ScalarsOf(y.view()), stream);
  stream.Synchronize();
  std::vector<double> want;
  for (float value : x.Values()) {
    want.push_back(1 / (1 + std::exp(-static_cast<double>(value))));
  }
  EXPECT_TRUE(IsClose(ToDouble(y.Read()), want, 2e-7));
}

TEST(AttentionDecodeBFloat16, GivesTheLastRowOfAttention) {
  for (const int64_t length : {1, 40, 700, 1500}) {
    const HeadSize size = {1, 3, length, 64};
    const DeviceHeads q({1, 3, 1, 64}, "q"), k(size, "k"), v(size, "v");
    DeviceHeads out({1, 3, 1, 64});
    Stream stream;
    AttentionDecode(q.view(), k.view(), v.view(), 0.125f, length - 1,
                    out.view(), stream);
    stream.Synchronize();
    out.Read();
    std::vector<double> want;
    for (int64_t pair = 0; pair < 3; ++pair) {
      Append(reference::AttentionForward(q.Head<double>(pair),
                                         k.Head<double>(pair),
                                         v.Head<double>(pair), 0.125, {})
                 .out.values(),
             &want);
    }
    EXPECT_TRUE(IsClose(ToDouble(out.Values()), want, kHalfUnit));
    EXPECT_TRUE(out.RestIsPoisoned());
  }
}

}  // namespace
}  // namespace cubit
