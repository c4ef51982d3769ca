// SPDX-License-Identifier: Apache-2.0

#include "ops/convert_heads.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "gtest/gtest.h"

#include "runtime/bfloat16.h"
#include "runtime/device.h"
#include "tests/ops/device_array.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using testing::DeviceArray;
using testing::RandomNormal;

constexpr int64_t kHeads = 3;

// [2, 17, 3, K] from column `first` of rows as wide as `first` more.
struct Layout {
  int64_t first;
  int64_t head_dim;

  int64_t inner() const { return kHeads * head_dim; }
  int64_t width() const { return 2 * first + inner(); }
  Shape shape() const { return {2, 17, width()}; }
  HeadTensor Of(const DeviceArray& array) const {
    return HeadsOf(array.view(), first, kHeads, head_dim);
  }
};

// Rows of odd length at odd addresses, and rows that vectors fit.
constexpr Layout kLayouts[] = {{3, 5}, {8, 64}, {5, 1}};

float Rounded(float x) { return ToFloat(ToBFloat16(x)); }

TEST(ConvertHeads, RoundsOnceAndBackIsExactAndNothingElseIsWritten) {
  for (const Layout& layout : kLayouts) {
    SCOPED_TRACE(layout.head_dim);
    const std::vector<float> values =
        RandomNormal(1, "x", layout.shape()).values();
    const DeviceArray x(DType::kFloat32, layout.shape(), values);
    const DeviceArray narrow(DType::kBFloat16, layout.shape());
    const DeviceArray back(DType::kFloat32, layout.shape());
    Stream stream;
    ConvertHeads(layout.Of(x), layout.Of(narrow), stream);
    ConvertHeads(layout.Of(narrow), layout.Of(back), stream);
    stream.Synchronize();
    const std::vector<float> got_narrow = narrow.values();
    const std::vector<float> got_back = back.values();
    for (size_t i = 0; i < values.size(); ++i) {
      const auto column = static_cast<int64_t>(i) % layout.width();
      const bool inside =
          column >= layout.first && column < layout.first + layout.inner();
      if (inside) {
        ASSERT_EQ(got_narrow[i], Rounded(values[i])) << i;
        ASSERT_EQ(got_back[i], Rounded(values[i])) << i;
      } else {
        ASSERT_TRUE(std::isnan(got_narrow[i]) && std::isnan(got_back[i])) << i;
      }
    }
  }
}

TEST(ConvertHeads, TiesGoToEvenAndNanStays) {
  const std::vector<float> values = {1 + 1.0f / 256, 1 + 3.0f / 256,
                                     -1 - 1.0f / 256,
                                     std::numeric_limits<float>::quiet_NaN()};
  const DeviceArray x(DType::kFloat32, {1, 1, 4}, values);
  const DeviceArray y(DType::kBFloat16, {1, 1, 4});
  Stream stream;
  ConvertHeads(HeadsOf(x.view(), 0, 1, 4), HeadsOf(y.view(), 0, 1, 4), stream);
  stream.Synchronize();
  const std::vector<float> got = y.values();
  EXPECT_EQ(got[0], 1.0f);
  EXPECT_EQ(got[1], 1 + 1.0f / 64);
  EXPECT_EQ(got[2], -1.0f);
  EXPECT_TRUE(std::isnan(got[3]));
}

TEST(ConvertHeadsDeathTest, OneDtypeIsRefused) {
  const DeviceArray x(DType::kFloat32, {1, 1, 4});
  const DeviceArray y(DType::kFloat32, {1, 1, 4});
  Stream stream;
  EXPECT_DEATH(ConvertHeads(HeadsOf(x.view(), 0, 1, 4),
                            HeadsOf(y.view(), 0, 1, 4), stream),
               "dtype|F32 to F32");
}

}  // namespace
}  // namespace cubit
