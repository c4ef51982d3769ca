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

}  // namespace
}  // namespace cubit
