// SPDX-License-Identifier: Apache-2.0
//
// A GPU's solve of bf16 tensors takes its blocks of rows in another way where
// heads are few (ForwardSolver::kFewHeads): the bits are those of many.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

#include "ops/delta_solve.h"
#include "ops/krr.h"
#include "runtime/device.h"
#include "tests/ops/device_array.h"

namespace cubit {
namespace {

using ::cubit::testing::DeviceArray;
using ::cubit::testing::RandomBFloat16;

constexpr int64_t kHeads = 2;
constexpr int64_t kSequences = 70;  // 140 heads are many, two are few
constexpr int64_t kSeqLen = 400;    // seven blocks, the last one not whole

// x and lse of all sequences, some of which were solved.
struct Solution {
  std::vector<float> x, lse;
};

class FewHeads : public ::testing::TestWithParam<int64_t> {
 protected:
  DeviceArray Rows(const char* name, int64_t columns, double stddev) const {
    return {DType::kBFloat16,
            {kSequences, kSeqLen, columns},
            RandomBFloat16(name, kSequences * kSeqLen * columns, stddev)};
  }
  static DeviceArray Scalars(const char* name) {
    std::vector<float> values =
        RandomBFloat16(name, kSequences * kHeads * kSeqLen, 0.1);
    for (float& x : values) x = std::exp(x);
    return {DType::kFloat32, {kSequences, kHeads, kSeqLen}, values};
  }
  ConstHeadTensor Heads(const DeviceArray& rows, int64_t begin,
                        int64_t count) const {
    return HeadsOf(ConstTensor(rows.view().Slice(begin, count)), 0, kHeads,
                   head_dim_);
  }

  // solve(first sequence, sequences, x, lse, stream).
  template <typename Solve>
  void ExpectTheSameBits(const Solve& solve) const {
    DeviceArray x(DType::kBFloat16, {kSequences, kSeqLen, columns_});
    DeviceArray lse(DType::kFloat32, {kSequences, kHeads, kSeqLen});
    const auto run = [&](int64_t begin, int64_t count) {
      Stream stream;
      solve(begin, count,
            HeadsOf(x.view().Slice(begin, count), 0, kHeads, head_dim_),
            lse.view().Slice(begin, count), stream);
      stream.Synchronize();
      return Solution{x.values(), lse.values()};
    };
    const Solution many = run(0, kSequences);
    for (const float value : many.x) ASSERT_TRUE(std::isfinite(value));
    for (const int64_t sequence : {int64_t{0}, kSequences - 1}) {
      x.Fill(std::vector<float>(many.x.size(), 0));
      lse.Fill(std::vector<float>(many.lse.size(), 0));
      const Solution few = run(sequence, 1);
      const auto same = [&](const std::vector<float>& a,
                            const std::vector<float>& b, int64_t width) {
        const std::ptrdiff_t count = kSeqLen * width;
        const std::ptrdiff_t begin = sequence * count;
        return std::equal(a.begin() + begin, a.begin() + begin + count,
                          b.begin() + begin);
      };
      EXPECT_TRUE(same(few.x, many.x, columns_)) << sequence;
      EXPECT_TRUE(same(few.lse, many.lse, kHeads)) << sequence;
    }
  }

  const int64_t head_dim_ = GetParam();
  const int64_t columns_ = kHeads * head_dim_;
};

TEST_P(FewHeads, HaveTheBitsOfManyInKrr) {
  const DeviceArray r =
      Rows("r", columns_, 4 / std::sqrt(static_cast<double>(head_dim_)));
  const DeviceArray v = Rows("v", columns_, 1);
  const DeviceArray column_scale = Scalars("column scale");
  const DeviceArray value_scale = Scalars("value scale");
  const DeviceArray log_lambda(DType::kFloat32, {kHeads}, {-23.0f, -1.0f});
  ExpectTheSameBits([&](int64_t begin, int64_t count, const HeadTensor& x,
                        const Tensor& lse, Stream& stream) {
    KrrSolveForward(Heads(r, begin, count), Heads(v, begin, count),
                    column_scale.view().Slice(begin, count),
                    value_scale.view().Slice(begin, count), log_lambda.view(),
                    AttentionMask(), SolvePrecision::kBFloat16x3,
                    /*first_row=*/0, x, lse, stream);
  });
}

TEST_P(FewHeads, HaveTheBitsOfManyInDelta) {
  const DeviceArray w = Rows("w", columns_, 1);
  const DeviceArray k = Rows("k", columns_, 1);
  const DeviceArray v = Rows("v", columns_, 1);
  const DeviceArray beta = Rows("beta", kHeads, 0.5);
  ExpectTheSameBits([&](int64_t begin, int64_t count, const HeadTensor& x,
                        const Tensor& lse, Stream& stream) {
    DeltaSolveForward(
        Heads(w, begin, count), Heads(k, begin, count), Heads(v, begin, count),
        HeadsOf(ConstTensor(beta.view().Slice(begin, count)), 0, kHeads, 1),
        /*scale=*/0.3f, AttentionMask(), SolvePrecision::kBFloat16x3,
        /*first_row=*/0, x, lse, stream);
  });
}

INSTANTIATE_TEST_SUITE_P(HeadDims, FewHeads, ::testing::Values(64, 128),
                         ::testing::PrintToStringParamName());

}  // namespace
}  // namespace cubit
