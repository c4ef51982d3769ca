// SPDX-License-Identifier: Apache-2.0
//
// The passes over memory (norms, activations, loss, embedding, elementwise)
// with bf16 activations, as a GPU holds them.

#include <cmath>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

#include "ops/activations.h"
#include "ops/activations_reference.h"
#include "ops/cross_entropy.h"
#include "ops/cross_entropy_reference.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/layer_norm.h"
#include "ops/layer_norm_reference.h"
#include "ops/matmul_reference.h"
#include "ops/rms_norm.h"
#include "ops/rms_norm_reference.h"
#include "ops/sum_parts.h"
#include "ops/sum_parts_reference.h"
#include "runtime/philox.h"
#include "tests/ops/backend_budget.h"
#include "tests/ops/device_array.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::DeviceArray;
using ::cubit::testing::IsWithinBFloat16Budget;
using ::cubit::testing::Norm;
using ::cubit::testing::RandomBFloat16;
using ::cubit::testing::RandomNormal;
using ::cubit::testing::RelativeTo;
using ::cubit::testing::Rounded;
using ::cubit::testing::Sum;
using ::cubit::testing::ToDouble;
using ::cubit::testing::Widen;

constexpr DType kHalf = DType::kBFloat16;
constexpr DType kFloat = DType::kFloat32;
constexpr float kEps = 1e-5f;
constexpr double kEpsDouble = static_cast<double>(kEps);
constexpr double kFloatEpsilon = 0x1p-23;

// `lead`: elements before every operand (DeviceArray).
struct Size {
  int64_t num_rows;
  int64_t dim;
  int64_t lead;
};

class BFloat16Norm : public ::testing::TestWithParam<Size> {
 protected:
  Size s = GetParam();
  Shape shape = {s.num_rows, s.dim};
  std::vector<float> x = RandomBFloat16("x", s.num_rows* s.dim, 2.0);
  std::vector<float> d_y = RandomBFloat16("d_y", s.num_rows* s.dim);
  std::vector<float> d_x = RandomBFloat16("d_x", s.num_rows* s.dim);
  std::vector<float> weight = RandomNormal(12, "weight", {s.dim}).values();
  std::vector<float> bias = RandomNormal(12, "bias", {s.dim}).values();
  DeviceArray x_device{kHalf, shape, x, s.lead};
  DeviceArray d_y_device{kHalf, shape, d_y, s.lead};
  DeviceArray d_x_device{kHalf, shape, d_x, s.lead};
  DeviceArray weight_device{kFloat, {s.dim}, weight, s.lead};
  DeviceArray bias_device{kFloat, {s.dim}, bias, s.lead};
  DeviceArray y{kHalf, shape, s.lead};
  DeviceArray mean{kFloat, {s.num_rows}};
  DeviceArray rstd{kFloat, {s.num_rows}};
  DeviceArray d_weight{kFloat, {s.dim}, weight};
  DeviceArray d_bias{kFloat, {s.dim}, bias};
  DeviceArray d_x_sums{kFloat, {s.dim}, bias};
  Stream stream;

  // Of d_x as it is stored.
  void ExpectSumsOfInputGradient() const {
    const std::vector<float> stored = d_x_device.values();
    EXPECT_TRUE(IsWithinBFloat16Budget(
        d_x_sums, Sum(bias, reference::ColumnSums(stored, s.dim)),
        Sum(ToDouble(bias), reference::ColumnSums(ToDouble(stored), s.dim))));
  }
};

TEST_P(BFloat16Norm, LayerNorm) {
  const auto plain = reference::LayerNormForward(x, weight, bias, kEpsDouble);
  const auto exact = reference::LayerNormForward(ToDouble(x), ToDouble(weight),
                                                 ToDouble(bias), kEpsDouble);
  LayerNormForward(x_device.view(), weight_device.view(), bias_device.view(),
                   kEps, y.view(), mean.view(), rstd.view(), stream);
  LayerNormBackward(d_y_device.view(), x_device.view(), weight_device.view(),
                    mean.view(), rstd.view(), d_x_device.view(),
                    d_weight.view(), d_bias.view(), d_x_sums.view(), stream);
  stream.Synchronize();
  ExpectSumsOfInputGradient();
  EXPECT_TRUE(IsWithinBFloat16Budget(y, plain.y, exact.y));
  // Sums of bf16 values are nearly exact in fp32, so `plain` errs by almost
  // nothing. The kernel takes a second mean, of x - mean, where values of one
  // binade are all rounded alike: an error of up to half an epsilon of |x|, and
  // as much of the two sums.
  EXPECT_TRUE(IsWithinBFloat16Budget(
      mean, plain.mean, exact.mean,
      RelativeTo(exact.mean, kFloatEpsilon * Norm(ToDouble(x)) /
                                 std::sqrt(static_cast<double>(s.dim)))));
  EXPECT_TRUE(IsWithinBFloat16Budget(rstd, plain.rstd, exact.rstd));
  const auto plain_gradient =
      reference::LayerNormBackward(d_y, x, weight, plain.mean, plain.rstd);
  const auto exact_gradient = reference::LayerNormBackward(
      ToDouble(d_y), ToDouble(x), ToDouble(weight), exact.mean, exact.rstd);
  EXPECT_TRUE(IsWithinBFloat16Budget(d_x_device, Sum(d_x, plain_gradient.d_x),
                                     Sum(ToDouble(d_x), exact_gradient.d_x)));
  EXPECT_TRUE(
      IsWithinBFloat16Budget(d_weight, Sum(weight, plain_gradient.d_weight),
                             Sum(ToDouble(weight), exact_gradient.d_weight)));
  EXPECT_TRUE(
      IsWithinBFloat16Budget(d_bias, Sum(bias, plain_gradient.d_bias),
                             Sum(ToDouble(bias), exact_gradient.d_bias)));
}

TEST_P(BFloat16Norm, RmsNorm) {
  const auto plain = reference::RmsNormForward(x, weight, kEpsDouble);
  const auto exact =
      reference::RmsNormForward(ToDouble(x), ToDouble(weight), kEpsDouble);
  RmsNormForward(x_device.view(), weight_device.view(), kEps, y.view(),
                 rstd.view(), stream);
  RmsNormBackward(d_y_device.view(), x_device.view(), weight_device.view(),
                  rstd.view(), d_x_device.view(), d_weight.view(),
                  d_x_sums.view(), stream);
  stream.Synchronize();
  ExpectSumsOfInputGradient();
  EXPECT_TRUE(IsWithinBFloat16Budget(y, plain.y, exact.y));
  EXPECT_TRUE(IsWithinBFloat16Budget(rstd, plain.rstd, exact.rstd));
  const auto plain_gradient =
      reference::RmsNormBackward(d_y, x, weight, plain.rstd);
  const auto exact_gradient = reference::RmsNormBackward(
      ToDouble(d_y), ToDouble(x), ToDouble(weight), exact.rstd);
  EXPECT_TRUE(IsWithinBFloat16Budget(d_x_device, Sum(d_x, plain_gradient.d_x),
                                     Sum(ToDouble(d_x), exact_gradient.d_x)));
  EXPECT_TRUE(
      IsWithinBFloat16Budget(d_weight, Sum(weight, plain_gradient.d_weight),
                             Sum(ToDouble(weight), exact_gradient.d_weight)));
}

TEST_P(BFloat16Norm, BackwardGivesTheSameBitsTwice) {
  LayerNormForward(x_device.view(), weight_device.view(), bias_device.view(),
                   kEps, y.view(), mean.view(), rstd.view(), stream);
  std::vector<std::vector<float>> results;
  for (int run = 0; run < 2; ++run) {
    const DeviceArray d(kHalf, shape, d_x, s.lead);
    const DeviceArray sums(kFloat, {s.dim}, weight);
    const DeviceArray bias_sums(kFloat, {s.dim}, bias);
    const DeviceArray input_sums(kFloat, {s.dim}, bias);
    LayerNormBackward(d_y_device.view(), x_device.view(), weight_device.view(),
                      mean.view(), rstd.view(), d.view(), sums.view(),
                      bias_sums.view(), input_sums.view(), stream);
    stream.Synchronize();
    for (const DeviceArray* array : {&d, &sums, &bias_sums, &input_sums}) {
      results.push_back(array->values());
    }
  }
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(results[i], results[i + 4]);
}

// Odd rows, and more of them than a block has groups; addresses aligned to an
// element; a warp, two and four warps, and a whole block a row; groups with
// several rows each, one of them more or less; rows too long for wide packs.
INSTANTIATE_TEST_SUITE_P(Sizes, BFloat16Norm,
                         ::testing::Values(Size{5, 37, 0}, Size{301, 1999, 0},
                                           Size{7, 64, 3}, Size{9000, 48, 0},
                                           Size{33, 768, 0},
                                           Size{4999, 1024, 0},
                                           Size{9, 2048, 0}, Size{5, 2560, 0},
                                           Size{3, 8192, 0}, Size{2, 9000, 0}));

class BFloat16Activation : public ::testing::TestWithParam<Size> {
 protected:
  Size s = GetParam();
  std::vector<float> x = RandomBFloat16("x", s.num_rows * 2 * s.dim, 3.0);
  std::vector<float> d_y = RandomBFloat16("d_y", s.num_rows * 2 * s.dim);
  DeviceArray x_device{kHalf, {s.num_rows, 2 * s.dim}, x, s.lead};
  DeviceArray result{kHalf, {s.num_rows, 2 * s.dim}, s.lead};
  Stream stream;
};

template <typename T>
std::vector<T> GeluOf(const std::vector<T>& x) {
  std::vector<T> y;
  for (const T value : x) y.push_back(reference::Gelu(value));
  return y;
}

template <typename T>
std::vector<T> GeluGradient(const std::vector<T>& d_y,
                            const std::vector<T>& x) {
  std::vector<T> d_x;
  for (size_t i = 0; i < x.size(); ++i) {
    d_x.push_back(d_y[i] * reference::GeluDerivative(x[i]));
  }
  return d_x;
}

TEST_P(BFloat16Activation, Gelu) {
  GeluForward(x_device.view(), result.view(), stream);
  stream.Synchronize();
  EXPECT_TRUE(IsWithinBFloat16Budget(result, GeluOf(x), GeluOf(ToDouble(x))));
  const DeviceArray gradient(kHalf, {s.num_rows, 2 * s.dim}, d_y, s.lead);
  GeluBackward(gradient.view(), x_device.view(), gradient.view(), stream);
  stream.Synchronize();
  EXPECT_TRUE(IsWithinBFloat16Budget(gradient, GeluGradient(d_y, x),
                                     GeluGradient(ToDouble(d_y), ToDouble(x))));
}

// y, and the gradient by half of d_y.
template <typename T>
std::pair<std::vector<T>, std::vector<T>> SwiGluOf(const std::vector<T>& x,
                                                   const std::vector<T>& d_y,
                                                   const Size& s) {
  std::vector<T> y;
  std::vector<T> d_x(x.size());
  for (int64_t n = 0; n < s.num_rows; ++n) {
    for (int64_t i = 0; i < s.dim; ++i) {
      const int64_t gate = 2 * n * s.dim + i;
      const int64_t up = gate + s.dim;
      y.push_back(reference::SwiGlu(x[gate], x[up]));
      const auto d =
          reference::SwiGluBackward(d_y[n * s.dim + i], x[gate], x[up]);
      d_x[gate] = d.d_gate;
      d_x[up] = d.d_up;
    }
  }
  return {y, d_x};
}

TEST_P(BFloat16Activation, SwiGlu) {
  const std::vector<float> half(d_y.begin(), d_y.begin() + s.num_rows * s.dim);
  const auto plain = SwiGluOf(x, half, s);
  const auto exact = SwiGluOf(ToDouble(x), ToDouble(half), s);
  const DeviceArray y(kHalf, {s.num_rows, s.dim}, s.lead);
  const DeviceArray d_y_device(kHalf, {s.num_rows, s.dim}, half, s.lead);
  SwiGluForward(x_device.view(), y.view(), stream);
  SwiGluBackward(d_y_device.view(), x_device.view(), x_device.view(), stream);
  stream.Synchronize();
  EXPECT_TRUE(IsWithinBFloat16Budget(y, plain.first, exact.first));
  EXPECT_TRUE(IsWithinBFloat16Budget(x_device, plain.second, exact.second));
}

TEST_P(BFloat16Activation, AddAndScale) {
  const DeviceArray sum(kHalf, {s.num_rows, 2 * s.dim}, d_y, s.lead);
  AddInPlace(x_device.view(), sum.view(), stream);
  stream.Synchronize();
  EXPECT_EQ(sum.values(), Rounded(Sum(x, d_y)));
  ScaleInPlace(0.3f, x_device.view(), stream);
  stream.Synchronize();
  std::vector<float> scaled = x;
  for (float& value : scaled) value *= 0.3f;
  EXPECT_EQ(x_device.values(), Rounded(scaled));
}

INSTANTIATE_TEST_SUITE_P(Sizes, BFloat16Activation,
                         ::testing::Values(Size{1, 1, 0}, Size{3, 7, 0},
                                           Size{5, 64, 1}, Size{3, 1024, 0},
                                           Size{130, 136, 8}));

class BFloat16SumParts : public ::testing::TestWithParam<Size> {};

// Sums in fp32 that are rounded once.
TEST_P(BFloat16SumParts, RoundsOnce) {
  const Size s = GetParam();
  constexpr int64_t kParts = 3;
  const int64_t count = s.num_rows * s.dim;
  const std::vector<float> parts = RandomBFloat16("parts", kParts * count);
  const std::vector<float> bias = RandomBFloat16("bias", s.dim);
  const std::vector<float> residual = RandomBFloat16("residual", count);
  const DeviceArray parts_device(kHalf, {kParts, s.num_rows, s.dim}, parts,
                                 s.lead);
  const DeviceArray bias_device(kHalf, {s.dim}, bias, s.lead);
  const DeviceArray y(kHalf, {s.num_rows, s.dim}, residual, s.lead);
  Stream stream;
  SumParts(parts_device.view(), bias_device.view(), y.view(), y.view(), stream);
  stream.Synchronize();
  EXPECT_EQ(y.values(),
            Rounded(reference::SumParts(parts, bias, residual, kParts)));
}

INSTANTIATE_TEST_SUITE_P(Sizes, BFloat16SumParts,
                         ::testing::Values(Size{1, 1, 0}, Size{3, 7, 0},
                                           Size{5, 64, 1}, Size{130, 136, 0},
                                           Size{33, 768, 8}));

struct LossSize {
  int64_t num_rows;
  int64_t vocab_size;
  int64_t valid_vocab;
  int64_t lead;
};

class BFloat16Loss : public ::testing::TestWithParam<LossSize> {};

TEST_P(BFloat16Loss, CrossEntropy) {
  const LossSize s = GetParam();
  constexpr float kGradScale = 0.37f;
  const std::vector<float> logits =
      RandomBFloat16("logits", s.num_rows * s.vocab_size, 4.0);
  std::vector<int32_t> targets;
  for (int64_t n = 0; n < s.num_rows; ++n) {
    targets.push_back(n % 5 == 1
                          ? kIgnoredTarget
                          : static_cast<int32_t>(n * 7919 % s.valid_vocab));
  }
  const DeviceArray d_logits(kHalf, {s.num_rows, s.vocab_size}, logits, s.lead);
  const DeviceArray targets_device(targets);
  const DeviceArray losses(kFloat, {s.num_rows});
  const DeviceArray alone(kFloat, {s.num_rows});
  Stream stream;
  CrossEntropy(d_logits.view(), targets_device.view(), s.valid_vocab, 1e-4f,
               kGradScale, alone.view(), {}, stream);
  CrossEntropy(d_logits.view(), targets_device.view(), s.valid_vocab, 1e-4f,
               kGradScale, losses.view(), d_logits.view(), stream);
  stream.Synchronize();
  EXPECT_EQ(alone.values(), losses.values());
  const auto loss_of = [&](const auto& values) {
    return reference::CrossEntropyForward(values, targets, s.vocab_size,
                                          s.valid_vocab)
        .losses;
  };
  const auto gradient_of = [&](const auto& values) {
    return reference::CrossEntropyBackward(
        values, targets, s.vocab_size, s.valid_vocab,
        static_cast<double>(1e-4f), static_cast<double>(kGradScale));
  };
  // exp of the special-function unit: 2 ulp where the plain one has half of
  // one, in sums that are far longer than that matters.
  EXPECT_TRUE(testing::IsClose(ToDouble(losses.values()),
                               loss_of(ToDouble(logits)), 1e-6));
  EXPECT_TRUE(IsWithinBFloat16Budget(d_logits, gradient_of(logits),
                                     gradient_of(ToDouble(logits))));
}

// Columns [begin, begin + count) of rows of `width`.
template <typename T>
std::vector<T> ColumnsOf(const std::vector<T>& rows, int64_t width,
                         int64_t begin, int64_t count) {
  std::vector<T> columns;
  for (size_t row = 0; row < rows.size(); row += static_cast<size_t>(width)) {
    const auto first = rows.begin() + static_cast<int64_t>(row) + begin;
    columns.insert(columns.end(), first, first + count);
  }
  return columns;
}

// Two slices of the vocabulary, or one where its length is odd.
TEST_P(BFloat16Loss, CrossEntropyOfSlices) {
  const LossSize s = GetParam();
  constexpr float kGradScale = 0.37f;
  const int64_t num_slices = s.vocab_size % 2 == 0 ? 2 : 1;
  const int64_t extent = s.vocab_size / num_slices;
  const std::vector<float> logits =
      RandomBFloat16("logits", s.num_rows * s.vocab_size, 4.0);
  std::vector<int32_t> targets;
  for (int64_t n = 0; n < s.num_rows; ++n) {
    targets.push_back(n % 5 == 1
                          ? kIgnoredTarget
                          : static_cast<int32_t>(n * 7919 % s.valid_vocab));
  }
  const DeviceArray targets_device(targets);
  const DeviceArray statistics(kFloat, {num_slices, s.num_rows, 3});
  const DeviceArray losses(kFloat, {s.num_rows});
  std::vector<DeviceArray> slices;
  Stream stream;
  for (int64_t p = 0; p < num_slices; ++p) {
    slices.emplace_back(kHalf, Shape{s.num_rows, extent},
                        ColumnsOf(logits, s.vocab_size, p * extent, extent),
                        s.lead);
    CrossEntropyStatistics(
        slices.back().view(), targets_device.view(),
        {p * extent, s.valid_vocab},
        statistics.view().Slice(p, 1).Reshape({s.num_rows, 3}), stream);
  }
  CrossEntropyLosses(statistics.view(), targets_device.view(), s.valid_vocab,
                     losses.view(), stream);
  const auto gradient_of = [&](const auto& values) {
    return reference::CrossEntropyBackward(
        values, targets, s.vocab_size, s.valid_vocab,
        static_cast<double>(1e-4f), static_cast<double>(kGradScale));
  };
  for (int64_t p = 0; p < num_slices; ++p) {
    const DeviceArray& slice = slices[static_cast<size_t>(p)];
    CrossEntropyGradient(slice.view(), targets_device.view(),
                         {p * extent, s.valid_vocab}, statistics.view(), 1e-4f,
                         kGradScale, slice.view(), stream);
    stream.Synchronize();
    EXPECT_TRUE(IsWithinBFloat16Budget(
        slice, ColumnsOf(gradient_of(logits), s.vocab_size, p * extent, extent),
        ColumnsOf(gradient_of(ToDouble(logits)), s.vocab_size, p * extent,
                  extent)))
        << "slice " << p;
  }
  EXPECT_TRUE(testing::IsClose(
      ToDouble(losses.values()),
      reference::CrossEntropyForward(ToDouble(logits), targets, s.vocab_size,
                                     s.valid_vocab)
          .losses,
      1e-6));
}

// Odd; padded; kept in shared memory, and too long for that.
INSTANTIATE_TEST_SUITE_P(Sizes, BFloat16Loss,
                         ::testing::Values(LossSize{7, 37, 31, 0},
                                           LossSize{9, 64, 60, 1},
                                           LossSize{150, 256, 256, 0},
                                           LossSize{3, 50304, 50257, 0},
                                           LossSize{2, 130048, 130000, 0}));

class BFloat16Embedding : public ::testing::TestWithParam<Size> {};

// Few tokens, so that some make long runs; every fourth is one of three.
TEST_P(BFloat16Embedding, ForwardCopiesAndBackwardAddsInOrder) {
  const Size s = GetParam();
  constexpr int64_t kVocabSize = 300;
  const Philox random(1, "ids");
  std::vector<int32_t> ids;
  for (int64_t n = 0; n < s.num_rows; ++n) {
    const auto bits = random.Bits(static_cast<uint64_t>(n));
    ids.push_back(
        static_cast<int32_t>(n % 4 == 0 ? bits % 3 : bits % kVocabSize));
  }
  const std::vector<float> table = RandomBFloat16("table", kVocabSize * s.dim);
  const std::vector<float> d_y = RandomBFloat16("d_y", s.num_rows * s.dim);
  const DeviceArray ids_device(ids);
  const DeviceArray table_device(kHalf, {kVocabSize, s.dim}, table, s.lead);
  const DeviceArray d_y_device(kHalf, {s.num_rows, s.dim}, d_y, s.lead);
  const DeviceArray y(kHalf, {s.num_rows, s.dim}, s.lead);
  const DeviceArray d_table(kFloat, {kVocabSize, s.dim}, table);
  Stream stream;
  EmbeddingForward(ids_device.view(), table_device.view(), y.view(), stream);
  EmbeddingBackward(ids_device.view(), d_y_device.view(), d_table.view(),
                    stream);
  stream.Synchronize();
  std::vector<float> rows;
  std::vector<float> sums = table;
  for (int64_t n = 0; n < s.num_rows; ++n) {
    for (int64_t i = 0; i < s.dim; ++i) {
      const size_t at =
          static_cast<size_t>(ids[static_cast<size_t>(n)] * s.dim + i);
      rows.push_back(table[at]);
      sums[at] += d_y[static_cast<size_t>(n * s.dim + i)];
    }
  }
  EXPECT_EQ(y.values(), rows);
  EXPECT_EQ(d_table.values(), sums);
}

INSTANTIATE_TEST_SUITE_P(Sizes, BFloat16Embedding,
                         ::testing::Values(Size{1, 8, 0}, Size{40, 5, 0},
                                           Size{3000, 72, 0}, Size{3000, 24, 1},
                                           Size{1500, 768, 0}));

}  // namespace
}  // namespace cubit
