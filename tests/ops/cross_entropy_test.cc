// SPDX-License-Identifier: Apache-2.0

#include "ops/cross_entropy.h"

#include <cmath>
#include <complex>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

#include "ops/cross_entropy_reference.h"
#include "runtime/philox.h"
#include "tests/ops/backend_budget.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::ComplexStepGradient;
using ::cubit::testing::HostTensor;
using ::cubit::testing::IsClose;
using ::cubit::testing::IsWithinBudget;
using ::cubit::testing::Poisoned;
using ::cubit::testing::RandomNormal;
using ::cubit::testing::ToDouble;

using ComplexVector = std::vector<std::complex<double>>;

struct Size {
  int64_t num_rows;
  int64_t vocab_size;
  int64_t valid_vocab;
  float z_loss;
};

constexpr float kGradScale = 0.37f;

// Every fifth target is ignored, beginning with the second.
HostTensor<int32_t> Targets(const Size& s) {
  HostTensor<int32_t> targets({s.num_rows});
  const Philox random(1, "targets");
  for (int64_t n = 0; n < s.num_rows; ++n) {
    targets[n] =
        n % 5 == 1
            ? kIgnoredTarget
            : static_cast<int32_t>(random.Bits(static_cast<uint64_t>(n)) %
                                   static_cast<uint64_t>(s.valid_vocab));
  }
  return targets;
}

TEST(CrossEntropyReference, BackwardMatchesComplexStep) {
  const Size s = {4, 6, 5, 0.01f};
  const std::vector<double> logits =
      ToDouble(RandomNormal(1, "logits", {4, 6}, 2.0).values());
  const std::vector<int32_t> targets = Targets(s).values();
  EXPECT_TRUE(IsClose(
      reference::CrossEntropyBackward(logits, targets, 6, 5, 0.01, 0.7),
      ComplexStepGradient(logits,
                          [&](const ComplexVector& z) {
                            const auto result = reference::CrossEntropyForward(
                                z, targets, 6, 5);
                            std::complex<double> total = 0;
                            for (size_t n = 0; n < targets.size(); ++n) {
                              total += result.losses[n] +
                                       0.01 * result.lse[n] * result.lse[n];
                            }
                            return 0.7 * total;
                          }),
      1e-10));
}

class CrossEntropyOp : public ::testing::TestWithParam<Size> {
 protected:
  Size s = GetParam();
  HostTensor<float> logits =
      RandomNormal(2, "logits", {s.num_rows, s.vocab_size}, 4.0);
  HostTensor<int32_t> targets = Targets(s);
  HostTensor<float> losses = Poisoned({s.num_rows});
  HostTensor<float> d_logits = Poisoned({s.num_rows, s.vocab_size});
  Stream stream;

  template <typename T>
  std::vector<T> ReferenceLosses() {
    return reference::CrossEntropyForward(testing::Widen<T>(logits.values()),
                                          targets.values(), s.vocab_size,
                                          s.valid_vocab)
        .losses;
  }
  template <typename T>
  std::vector<T> ReferenceGradient() {
    return reference::CrossEntropyBackward(
        testing::Widen<T>(logits.values()), targets.values(), s.vocab_size,
        s.valid_vocab, static_cast<double>(s.z_loss),
        static_cast<double>(kGradScale));
  }
};

TEST_P(CrossEntropyOp, MatchesReference) {
  CrossEntropy(logits.view(), targets.view(), s.valid_vocab, s.z_loss,
               kGradScale, losses.view(), d_logits.view(), stream);
  EXPECT_TRUE(IsWithinBudget(losses.values(), ReferenceLosses<float>(),
                             ReferenceLosses<double>()));
  EXPECT_TRUE(IsWithinBudget(d_logits.values(), ReferenceGradient<float>(),
                             ReferenceGradient<double>()));
}

TEST_P(CrossEntropyOp, LossIsTheSameBitsWithoutGradientAndInPlace) {
  CrossEntropy(logits.view(), targets.view(), s.valid_vocab, s.z_loss,
               kGradScale, losses.view(), d_logits.view(), stream);
  HostTensor<float> alone = Poisoned({s.num_rows});
  CrossEntropy(logits.view(), targets.view(), s.valid_vocab, s.z_loss,
               kGradScale, alone.view(), {}, stream);
  EXPECT_EQ(alone.values(), losses.values());
  HostTensor<float> in_place = Poisoned({s.num_rows});
  CrossEntropy(logits.view(), targets.view(), s.valid_vocab, s.z_loss,
               kGradScale, in_place.view(), logits.view(), stream);
  EXPECT_EQ(in_place.values(), losses.values());
  EXPECT_EQ(logits.values(), d_logits.values());
}

TEST_P(CrossEntropyOp, PaddingTakesNoPart) {
  for (int64_t n = 0; n < s.num_rows; ++n) {
    for (int64_t v = s.valid_vocab; v < s.vocab_size; ++v) {
      logits[n * s.vocab_size + v] = std::numeric_limits<float>::quiet_NaN();
    }
  }
  CrossEntropy(logits.view(), targets.view(), s.valid_vocab, s.z_loss,
               kGradScale, losses.view(), d_logits.view(), stream);
  EXPECT_TRUE(IsWithinBudget(losses.values(), ReferenceLosses<float>(),
                             ReferenceLosses<double>()));
  for (int64_t n = 0; n < s.num_rows; ++n) {
    for (int64_t v = 0; v < s.vocab_size; ++v) {
      const float d = d_logits[n * s.vocab_size + v];
      ASSERT_FALSE(std::isnan(d)) << n << ", " << v;
      if (v >= s.valid_vocab || targets[n] == kIgnoredTarget) {
        ASSERT_EQ(d, 0.0f) << n << ", " << v;
      }
    }
  }
}

TEST_P(CrossEntropyOp, IgnoredRowsHaveLossZero) {
  CrossEntropy(logits.view(), targets.view(), s.valid_vocab, s.z_loss,
               kGradScale, losses.view(), d_logits.view(), stream);
  for (int64_t n = 0; n < s.num_rows; ++n) {
    if (targets[n] == kIgnoredTarget) {
      EXPECT_EQ(losses[n], 0.0f);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, CrossEntropyOp,
                         ::testing::Values(Size{1, 1, 1, 0.0f},
                                           Size{3, 2, 2, 0.0f},
                                           Size{7, 37, 31, 1e-4f},
                                           Size{150, 256, 256, 0.0f},
                                           Size{3, 50304, 50257, 1e-4f},
                                           Size{2, 60008, 60008, 0.0f}));

TEST(CrossEntropy, LargeLogitsDoNotOverflow) {
  const HostTensor<float> logits({2, 3},
                                 {1e4f, -1e4f, 0.0f, -1e4f, -1e4f, -1e4f});
  const HostTensor<int32_t> targets({2}, {1, 0});
  HostTensor<float> losses = Poisoned({2});
  HostTensor<float> d_logits = Poisoned({2, 3});
  Stream stream;
  CrossEntropy(logits.view(), targets.view(), 3, 0.0f, 1.0f, losses.view(),
               d_logits.view(), stream);
  EXPECT_EQ(losses[0], 2e4f);
  EXPECT_FLOAT_EQ(losses[1], std::log(3.0f));
  const std::vector<double> want = {1, -1, 0, -2.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0};
  EXPECT_TRUE(IsClose(ToDouble(d_logits.values()), want, 1e-6));
}

TEST(CrossEntropy, ALogitThatIsNotANumberShowsInTheLoss) {
  const HostTensor<float> logits(
      {1, 3}, {0.0f, std::numeric_limits<float>::quiet_NaN(), 1.0f});
  const HostTensor<int32_t> targets({1}, 0);
  HostTensor<float> losses({1});
  Stream stream;
  CrossEntropy(logits.view(), targets.view(), 3, 0.0f, 1.0f, losses.view(), {},
               stream);
  EXPECT_TRUE(std::isnan(losses[0]));
}

TEST(CrossEntropyDeathTest, TargetsInThePaddingAreRefusedOrGiveNan) {
  const HostTensor<float> logits({1, 4});
  const HostTensor<int32_t> targets({1}, 3);
  HostTensor<float> losses({1});
  Stream stream;
  if (QueryDevice().kind == "cuda") {
    CrossEntropy(logits.view(), targets.view(), 3, 0.0f, 1.0f, losses.view(),
                 {}, stream);
    EXPECT_TRUE(std::isnan(losses[0]));
    return;
  }
  EXPECT_DEATH(CrossEntropy(logits.view(), targets.view(), 3, 0.0f, 1.0f,
                            losses.view(), {}, stream),
               "target 3");
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

// The statistics of `num_slices` equal slices, one behind the other.
template <typename T>
std::vector<T> ReferenceStatistics(const std::vector<T>& logits,
                                   const std::vector<int32_t>& targets,
                                   const Size& s, int64_t num_slices) {
  const int64_t extent = s.vocab_size / num_slices;
  std::vector<T> all;
  for (int64_t p = 0; p < num_slices; ++p) {
    const std::vector<T> one = reference::CrossEntropyStatistics(
        ColumnsOf(logits, s.vocab_size, p * extent, extent), targets, extent,
        p * extent, s.valid_vocab);
    all.insert(all.end(), one.begin(), one.end());
  }
  return all;
}

TEST(CrossEntropyReference, GradientIsTheComplexStepThroughTheSlices) {
  const Size s = {4, 9, 5, 0.01f};  // the last of three slices is padding
  const std::vector<double> logits =
      ToDouble(RandomNormal(3, "logits", {4, 9}, 2.0).values());
  const std::vector<int32_t> targets = Targets(s).values();
  const auto loss = [&](const ComplexVector& z) {
    const auto result = reference::CrossEntropyMerge(
        ReferenceStatistics(z, targets, s, 3), targets);
    std::complex<double> total = 0;
    for (size_t n = 0; n < targets.size(); ++n) {
      total += result.losses[n] + 0.01 * result.lse[n] * result.lse[n];
    }
    return 0.7 * total;
  };
  EXPECT_TRUE(
      IsClose(reference::CrossEntropyBackward(logits, targets, 9, 5, 0.01, 0.7),
              ComplexStepGradient(logits, loss), 1e-10));
}

struct SlicedSize {
  Size size;
  int64_t num_slices;
};

class SlicedCrossEntropy : public ::testing::TestWithParam<SlicedSize> {
 protected:
  Size s = GetParam().size;
  int64_t num_slices = GetParam().num_slices;
  int64_t extent = s.vocab_size / num_slices;
  HostTensor<float> logits =
      RandomNormal(4, "logits", {s.num_rows, s.vocab_size}, 4.0);
  HostTensor<int32_t> targets = Targets(s);
  HostTensor<float> statistics = Poisoned({num_slices, s.num_rows, 3});
  Stream stream;

  VocabularySlice SliceOf(int64_t p) const {
    return {p * extent, s.valid_vocab};
  }
  HostTensor<float> LogitsOf(int64_t p) const {
    return HostTensor<float>(
        {s.num_rows, extent},
        ColumnsOf(logits.values(), s.vocab_size, p * extent, extent));
  }
  void MakeStatistics() {
    for (int64_t p = 0; p < num_slices; ++p) {
      CrossEntropyStatistics(
          LogitsOf(p).view(), targets.view(), SliceOf(p),
          statistics.view().Slice(p, 1).Reshape({s.num_rows, 3}), stream);
    }
  }
  template <typename T>
  std::vector<T> ReferenceGradientOf(int64_t p) const {
    return ColumnsOf(
        reference::CrossEntropyBackward(
            testing::Widen<T>(logits.values()), targets.values(), s.vocab_size,
            s.valid_vocab, static_cast<double>(s.z_loss),
            static_cast<double>(kGradScale)),
        s.vocab_size, p * extent, extent);
  }
};

TEST_P(SlicedCrossEntropy, StatisticsMatchReference) {
  MakeStatistics();
  std::vector<float> got = statistics.values();
  std::vector<float> plain =
      ReferenceStatistics(logits.values(), targets.values(), s, num_slices);
  std::vector<double> exact = ReferenceStatistics(
      ToDouble(logits.values()), targets.values(), s, num_slices);
  // The maximum of nothing, which no relative error can stand beside.
  for (size_t i = 0; i < got.size(); ++i) {
    if (plain[i] != std::numeric_limits<float>::lowest()) continue;
    EXPECT_EQ(got[i], plain[i]) << i;
    got[i] = plain[i] = 0.0f;
    exact[i] = 0.0;
  }
  EXPECT_TRUE(IsWithinBudget(got, plain, exact));
}

TEST_P(SlicedCrossEntropy, LossesAreThoseOfTheWholeVocabulary) {
  MakeStatistics();
  HostTensor<float> losses = Poisoned({s.num_rows});
  CrossEntropyLosses(statistics.view(), targets.view(), s.valid_vocab,
                     losses.view(), stream);
  const auto whole = [&](const auto& values) {
    return reference::CrossEntropyForward(values, targets.values(),
                                          s.vocab_size, s.valid_vocab)
        .losses;
  };
  EXPECT_TRUE(IsWithinBudget(losses.values(), whole(logits.values()),
                             whole(ToDouble(logits.values()))));
  for (int64_t n = 0; n < s.num_rows; ++n) {
    if (targets[n] == kIgnoredTarget) {
      EXPECT_EQ(losses[n], 0.0f);
    }
  }
}

TEST_P(SlicedCrossEntropy, GradientsAreSlicesOfTheWholeAlsoInPlace) {
  MakeStatistics();
  for (int64_t p = 0; p < num_slices; ++p) {
    HostTensor<float> slice = LogitsOf(p);
    HostTensor<float> d_logits = Poisoned({s.num_rows, extent});
    CrossEntropyGradient(slice.view(), targets.view(), SliceOf(p),
                         statistics.view(), s.z_loss, kGradScale,
                         d_logits.view(), stream);
    EXPECT_TRUE(IsWithinBudget(d_logits.values(), ReferenceGradientOf<float>(p),
                               ReferenceGradientOf<double>(p)))
        << "slice " << p;
    CrossEntropyGradient(slice.view(), targets.view(), SliceOf(p),
                         statistics.view(), s.z_loss, kGradScale, slice.view(),
                         stream);
    EXPECT_EQ(slice.values(), d_logits.values()) << "slice " << p;
  }
}

TEST_P(SlicedCrossEntropy, PaddingTakesNoPart) {
  for (int64_t n = 0; n < s.num_rows; ++n) {
    for (int64_t v = s.valid_vocab; v < s.vocab_size; ++v) {
      logits[n * s.vocab_size + v] = std::numeric_limits<float>::quiet_NaN();
    }
  }
  MakeStatistics();
  for (int64_t p = 0; p < num_slices; ++p) {
    HostTensor<float> d_logits = LogitsOf(p);
    CrossEntropyGradient(d_logits.view(), targets.view(), SliceOf(p),
                         statistics.view(), s.z_loss, kGradScale,
                         d_logits.view(), stream);
    for (int64_t i = 0; i < s.num_rows * extent; ++i) {
      ASSERT_FALSE(std::isnan(d_logits[i])) << "slice " << p << ", " << i;
      if (p * extent + i % extent >= s.valid_vocab) {
        ASSERT_EQ(d_logits[i], 0.0f) << "slice " << p << ", " << i;
      }
    }
  }
}

// One slice; padding in the last, over the last two, and all of two; packs.
INSTANTIATE_TEST_SUITE_P(Sizes, SlicedCrossEntropy,
                         ::testing::Values(SlicedSize{{7, 37, 31, 1e-4f}, 1},
                                           SlicedSize{{1, 2, 2, 0.0f}, 2},
                                           SlicedSize{{7, 36, 31, 1e-4f}, 2},
                                           SlicedSize{{50, 512, 300, 0.0f}, 4},
                                           SlicedSize{{9, 64, 11, 1e-2f}, 4},
                                           SlicedSize{{3, 50304, 50257, 1e-4f},
                                                      8}));

TEST(SlicedCrossEntropyDeathTest, TargetsInThePaddingAreRefusedOrGiveNan) {
  const HostTensor<float> statistics({1, 1, 3}, {0.0f, 4.0f, 0.0f});
  const HostTensor<float> logits({1, 4});
  const HostTensor<int32_t> targets({1}, 3);
  HostTensor<float> losses({1});
  HostTensor<float> d_logits({1, 4});
  Stream stream;
  const auto gradient = [&] {
    CrossEntropyGradient(logits.view(), targets.view(), {0, 3},
                         statistics.view(), 0.0f, 1.0f, d_logits.view(),
                         stream);
  };
  if (QueryDevice().kind == "cuda") {
    CrossEntropyLosses(statistics.view(), targets.view(), 3, losses.view(),
                       stream);
    gradient();
    EXPECT_TRUE(std::isnan(losses[0]) && std::isnan(d_logits[0]));
    return;
  }
  EXPECT_DEATH(CrossEntropyLosses(statistics.view(), targets.view(), 3,
                                  losses.view(), stream),
               "target 3");
  EXPECT_DEATH(gradient(), "target 3");
}

}  // namespace
}  // namespace cubit
