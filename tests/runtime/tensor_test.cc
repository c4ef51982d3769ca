// SPDX-License-Identifier: Apache-2.0

#include "runtime/tensor.h"

#include <numeric>
#include <vector>

#include "gtest/gtest.h"

namespace cubit {
namespace {

std::vector<float> Counting(int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  std::iota(values.begin(), values.end(), 0.0f);
  return values;
}

Tensor ViewOf(std::vector<float>& values, Shape shape) {
  return Tensor(values.data(), DType::kFloat32, shape);
}

TEST(Shape, CountsElements) {
  EXPECT_EQ(Shape().num_elements(), 1);
  EXPECT_EQ(Shape({5}).num_elements(), 5);
  EXPECT_EQ(Shape({2, 3, 4}).num_elements(), 24);
  EXPECT_EQ(Shape({2, 0, 4}).num_elements(), 0);
  EXPECT_EQ(Shape({int64_t{1} << 20, int64_t{1} << 20}).num_elements(),
            int64_t{1} << 40);
}

TEST(Shape, ComparesRankAndDims) {
  EXPECT_EQ(Shape({2, 3}), Shape({2, 3}));
  EXPECT_NE(Shape({2, 3}), Shape({3, 2}));
  EXPECT_NE(Shape({2}), Shape({2, 1}));
  EXPECT_NE(Shape({0}), Shape());
}

TEST(Shape, PrintsItsDims) {
  EXPECT_EQ(Shape().ToString(), "[]");
  EXPECT_EQ(Shape({7}).ToString(), "[7]");
  EXPECT_EQ(Shape({2, 3, 4, 5}).ToString(), "[2, 3, 4, 5]");
}

TEST(ShapeDeathTest, RefusesWhatIsNoShape) {
  EXPECT_DEATH(Shape({1, 2, 3, 4, 5}), "5 vs. 4");
  EXPECT_DEATH(Shape({2, -1}), "-1 vs. 0");
  const Shape shape = {2, 3};
  EXPECT_DEATH(shape[2], "dim 2 of 2");
  EXPECT_DEATH(shape[-1], "dim -1 of 2");
}

TEST(DType, SizesAndNamesAreThoseOfSafetensors) {
  EXPECT_EQ(SizeOf(DType::kFloat32), 4);
  EXPECT_EQ(SizeOf(DType::kFloat64), 8);
  EXPECT_EQ(SizeOf(DType::kBFloat16), 2);
  EXPECT_EQ(SizeOf(DType::kInt32), 4);
  EXPECT_EQ(SizeOf(DType::kInt64), 8);
  EXPECT_EQ(SizeOf(DType::kUInt8), 1);
  EXPECT_EQ(Name(DType::kFloat32), "F32");
  EXPECT_EQ(Name(DType::kFloat64), "F64");
  EXPECT_EQ(Name(DType::kBFloat16), "BF16");
  EXPECT_EQ(Name(DType::kInt32), "I32");
  EXPECT_EQ(Name(DType::kInt64), "I64");
  EXPECT_EQ(Name(DType::kUInt8), "U8");
}

TEST(Tensor, DefaultIsAbsent) {
  EXPECT_TRUE(Tensor().empty());
  EXPECT_TRUE(ConstTensor().empty());
  EXPECT_TRUE(ConstTensor(Tensor()).empty());
}

TEST(Tensor, ReshapeAndConstShareTheMemory) {
  std::vector<float> values = Counting(24);
  const Tensor x = ViewOf(values, {2, 3, 4});
  const Tensor rows = x.Reshape({6, 4});
  EXPECT_EQ(rows.shape(), Shape({6, 4}));
  EXPECT_EQ(rows.raw(), x.raw());
  EXPECT_EQ(rows.size_bytes(), 96);
  const ConstTensor constant = x;
  EXPECT_EQ(constant.data<float>(), values.data());
  EXPECT_EQ(constant.Reshape({24}).dim(0), 24);
}

TEST(Tensor, SliceTakesRowsOfTheFirstDim) {
  std::vector<float> values = Counting(24);
  const Tensor x = ViewOf(values, {4, 3, 2});
  const Tensor middle = x.Slice(1, 2);
  EXPECT_EQ(middle.shape(), Shape({2, 3, 2}));
  EXPECT_EQ(middle.data<float>()[0], 6.0f);
  EXPECT_EQ(ConstTensor(x).Slice(3, 1).data<float>()[0], 18.0f);
  EXPECT_EQ(x.Slice(4, 0).num_elements(), 0);
}

TEST(Tensor, SliceOfATensorWithoutMemoryHasNone) {
  const Tensor measured(nullptr, DType::kFloat32, {4, 3});
  EXPECT_TRUE(measured.Slice(2, 1).empty());
  EXPECT_EQ(measured.Slice(2, 1).shape(), Shape({1, 3}));
  EXPECT_TRUE(ConstTensor(measured).Slice(2, 1).empty());
}

TEST(TensorDeathTest, ContractsAreChecked) {
  std::vector<float> values = Counting(6);
  const Tensor x = ViewOf(values, {2, 3});
  EXPECT_DEATH(x.data<double>(), "dtype F32");
  EXPECT_DEATH(ConstTensor(x).data<int32_t>(), "dtype F32");
  EXPECT_DEATH(x.Reshape({7}), "7 vs. 6");
  EXPECT_DEATH(x.Slice(1, 2), "rows \\[1, 3\\) of \\[2, 3\\]");
  EXPECT_DEATH(x.Slice(-1, 1), "rows \\[-1, 0\\)");
  EXPECT_DEATH(CUBIT_CHECK_SHAPE(x, {2, 4}),
               "x: wanted \\[2, 4\\], got \\[2, 3\\]");
}

TEST(HeadsOf, AddressesColumnsOfAFusedProjection) {
  constexpr int64_t kBatch = 2;
  constexpr int64_t kSeqLen = 3;
  constexpr int64_t kColumns = 10;
  std::vector<float> values = Counting(kBatch * kSeqLen * kColumns);
  const Tensor x = ViewOf(values, {kBatch, kSeqLen, kColumns});
  const HeadTensor heads = HeadsOf(x, 4, 3, 2);
  const ConstHeadTensor constant = HeadsOf(ConstTensor(x), 4, 3, 2);
  EXPECT_EQ(heads.batch, kBatch);
  EXPECT_EQ(heads.seq_len, kSeqLen);
  for (int64_t b = 0; b < kBatch; ++b) {
    for (int64_t t = 0; t < kSeqLen; ++t) {
      for (int64_t h = 0; h < 3; ++h) {
        const float want =
            static_cast<float>((b * kSeqLen + t) * kColumns + 4 + h * 2);
        EXPECT_EQ(heads.row<float>(b, t, h)[0], want);
        EXPECT_EQ(heads.row<float>(b, t, h)[1], want + 1);
        EXPECT_EQ(constant.row<float>(b, t, h)[0], want);
        EXPECT_EQ(ConstHeadTensor(heads).row<float>(b, t, h)[0], want);
      }
    }
  }
}

TEST(SliceSequence, KeepsStridesAndMovesTheFirstRow) {
  std::vector<float> values = Counting(2 * 5 * 6);
  const HeadTensor heads = HeadsOf(ViewOf(values, {2, 5, 6}), 0, 3, 2);
  const HeadTensor part = SliceSequence(heads, 2, 2);
  EXPECT_EQ(part.seq_len, 2);
  EXPECT_EQ(part.row<float>(1, 1, 2), heads.row<float>(1, 3, 2));
  const ConstHeadTensor constant = SliceSequence(ConstHeadTensor(heads), 4, 1);
  EXPECT_EQ(constant.row<float>(1, 0, 0), heads.row<float>(1, 4, 0));
  HeadTensor absent = heads;
  absent.data = nullptr;
  EXPECT_TRUE(SliceSequence(absent, 2, 2).empty());
}

TEST(HeadsOfDeathTest, RefusesHeadsOutsideTheColumns) {
  std::vector<float> values = Counting(12);
  const Tensor x = ViewOf(values, {1, 2, 6});
  EXPECT_DEATH(HeadsOf(x, 2, 3, 2), "3 heads of 2 from column 2");
  EXPECT_DEATH(HeadsOf(x, -1, 3, 2), "from column -1");
  EXPECT_DEATH(HeadsOf(x.Reshape({2, 6}), 0, 3, 2), "2 vs. 3");
  EXPECT_DEATH(SliceSequence(HeadsOf(x, 0, 3, 2), 1, 2),
               "rows \\[1, 3\\) of 2");
}

}  // namespace
}  // namespace cubit
