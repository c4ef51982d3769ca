// SPDX-License-Identifier: Apache-2.0

#include "ops/embedding.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <vector>

#include "gtest/gtest.h"

#include "ops/embedding_reference.h"
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
using ::cubit::testing::Product;
using ::cubit::testing::RandomNormal;
using ::cubit::testing::Sum;
using ::cubit::testing::ToDouble;

using ComplexVector = std::vector<std::complex<double>>;

struct Size {
  int64_t count;
  int64_t vocab_size;
  int64_t dim;
};

HostTensor<int32_t> RandomIds(int64_t count, int64_t vocab_size) {
  HostTensor<int32_t> ids({count});
  const Philox random(1, "ids");
  for (int64_t n = 0; n < count; ++n) {
    ids[n] = static_cast<int32_t>(random.Bits(static_cast<uint64_t>(n)) %
                                  static_cast<uint64_t>(vocab_size));
  }
  return ids;
}

TEST(EmbeddingReference, BackwardMatchesComplexStep) {
  const std::vector<int32_t> ids = {2, 0, 2, 3};
  const std::vector<double> weight =
      ToDouble(RandomNormal(1, "weight", {4, 3}).values());
  const std::vector<double> d_y =
      ToDouble(RandomNormal(1, "d_y", {4, 3}).values());
  EXPECT_TRUE(IsClose(
      reference::EmbeddingBackward(ids, d_y, 4, 3),
      ComplexStepGradient(weight,
                          [&](const ComplexVector& z) {
                            return Product(
                                d_y, reference::EmbeddingForward(ids, z, 3));
                          }),
      1e-10));
}

class Embedding : public ::testing::TestWithParam<Size> {
 protected:
  Size s = GetParam();
  HostTensor<int32_t> ids = RandomIds(s.count, s.vocab_size);
  Stream stream;
};

TEST_P(Embedding, ForwardCopiesRows) {
  const HostTensor<float> weight =
      RandomNormal(2, "weight", {s.vocab_size, s.dim});
  HostTensor<float> y = Poisoned({s.count, s.dim});
  EmbeddingForward(ids.view(), weight.view(), y.view(), stream);
  EXPECT_EQ(y.values(),
            reference::EmbeddingForward(ids.values(), weight.values(), s.dim));
}

TEST_P(Embedding, BackwardAddsInTheOrderOfTokens) {
  const HostTensor<float> d_y = RandomNormal(2, "d_y", {s.count, s.dim});
  HostTensor<float> d_weight =
      RandomNormal(2, "d_weight", {s.vocab_size, s.dim});
  std::vector<float> want = d_weight.values();
  for (int64_t n = 0; n < s.count; ++n) {
    for (int64_t i = 0; i < s.dim; ++i) {
      want[static_cast<size_t>(ids[n] * s.dim + i)] += d_y[n * s.dim + i];
    }
  }
  EmbeddingBackward(ids.view(), d_y.view(), d_weight.view(), stream);
  EXPECT_EQ(d_weight.values(), want);
}

TEST_P(Embedding, BackwardMatchesReference) {
  const HostTensor<float> d_y = RandomNormal(3, "d_y", {s.count, s.dim});
  HostTensor<float> d_weight({s.vocab_size, s.dim});
  EmbeddingBackward(ids.view(), d_y.view(), d_weight.view(), stream);
  EXPECT_TRUE(IsWithinBudget(
      d_weight.values(),
      reference::EmbeddingBackward(ids.values(), d_y.values(), s.vocab_size,
                                   s.dim),
      reference::EmbeddingBackward(ids.values(), ToDouble(d_y.values()),
                                   s.vocab_size, s.dim)));
}

// The table in slices of three rows, the last of which is cut by the
// vocabulary.
TEST_P(Embedding, SlicesAddUpToTheWhole) {
  constexpr int64_t kRows = 3;
  const HostTensor<float> weight =
      RandomNormal(4, "weight", {s.vocab_size, s.dim});
  const HostTensor<float> d_y = RandomNormal(4, "d_y", {s.count, s.dim});
  HostTensor<float> whole = Poisoned({s.count, s.dim});
  HostTensor<float> d_whole = weight;
  EmbeddingForward(ids.view(), weight.view(), whole.view(), stream);
  EmbeddingBackward(ids.view(), d_y.view(), d_whole.view(), stream);
  HostTensor<float> sum({s.count, s.dim});
  HostTensor<float> d_weight = weight;
  for (int64_t begin = 0; begin < s.vocab_size; begin += kRows) {
    const int64_t rows = std::min(kRows, s.vocab_size - begin);
    const VocabularySlice slice = {begin, s.vocab_size};
    HostTensor<float> y = Poisoned({s.count, s.dim});
    EmbeddingForward(ids.view(), weight.view().Slice(begin, rows), slice,
                     y.view(), stream);
    for (int64_t i = 0; i < s.count * s.dim; ++i) {
      const int64_t row = ids[i / s.dim] - begin;
      if (row < 0 || row >= rows) {
        ASSERT_EQ(y[i], 0.0f) << i;
      }
      sum[i] += y[i];
    }
    EmbeddingBackward(ids.view(), d_y.view(), slice,
                      d_weight.view().Slice(begin, rows), stream);
  }
  EXPECT_EQ(sum.values(), whole.values());
  EXPECT_EQ(d_weight.values(), d_whole.values());
}

// One token; odd sizes; one row for all tokens; few tokens a row; many; many of
// some rows and few of others, with even and odd rows.
INSTANTIATE_TEST_SUITE_P(Sizes, Embedding,
                         ::testing::Values(Size{1, 1, 1}, Size{9, 3, 5},
                                           Size{40, 1, 65}, Size{700, 257, 130},
                                           Size{1000, 5, 136},
                                           Size{3000, 45, 72},
                                           Size{3000, 45, 65}));

// The host cannot look at tokens on a GPU without waiting for them.
TEST(EmbeddingDeathTest, TokensOutsideTheVocabularyAreRefusedOrGiveNan) {
  const HostTensor<float> weight({4, 2});
  HostTensor<float> rows({2, 2});
  HostTensor<float> d_weight({4, 2});
  Stream stream;
  const HostTensor<int32_t> over({2}, {3, 4});
  if (QueryDevice().kind == "cuda") {
    EmbeddingForward(over.view(), weight.view(), rows.view(), stream);
    EXPECT_EQ(rows[0], 0.0f);
    EXPECT_TRUE(std::isnan(rows[2]) && std::isnan(rows[3]));
    EmbeddingBackward(over.view(), HostTensor<float>({2, 2}, 1.0f).view(),
                      d_weight.view(), stream);
    EXPECT_EQ(d_weight.values(), (std::vector<float>{0, 0, 0, 0, 0, 0, 1, 1}));
    return;
  }
  EXPECT_DEATH(
      EmbeddingForward(over.view(), weight.view(), rows.view(), stream),
      "token 1 is 4");
  const HostTensor<int32_t> under({2}, {-1, 0});
  EXPECT_DEATH(
      EmbeddingBackward(under.view(), rows.view(), d_weight.view(), stream),
      "token 0 is -1");
}

// A row of the table that no token of the vocabulary has is no row.
TEST(EmbeddingDeathTest, TokensOfNoSliceAreRefusedOrGiveNan) {
  const HostTensor<float> weight({4, 2});
  HostTensor<float> rows({1, 2});
  Stream stream;
  const HostTensor<int32_t> over({1}, std::vector<int32_t>{6});
  const VocabularySlice slice = {4, 6};
  if (QueryDevice().kind == "cuda") {
    EmbeddingForward(over.view(), weight.view(), slice, rows.view(), stream);
    EXPECT_TRUE(std::isnan(rows[0]) && std::isnan(rows[1]));
    return;
  }
  EXPECT_DEATH(
      EmbeddingForward(over.view(), weight.view(), slice, rows.view(), stream),
      "token 0 is 6");
}

}  // namespace
}  // namespace cubit
