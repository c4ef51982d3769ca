// SPDX-License-Identifier: Apache-2.0

#include "runtime/memory.h"

#include <cstring>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cubit {
namespace {

using ::testing::HasSubstr;

Buffer AllocateOrDie(int64_t bytes, MemoryCategory category) {
  absl::StatusOr<Buffer> buffer = Buffer::Allocate(bytes, category);
  CUBIT_CHECK(buffer.ok());
  return std::move(buffer).value();
}

TEST(Buffer, IsCountedInItsCategoryWhileItLives) {
  const MemoryUse before = CurrentMemoryUse();
  {
    const Buffer a = AllocateOrDie(1000, MemoryCategory::kParameters);
    const Buffer b = AllocateOrDie(24, MemoryCategory::kOptimizer);
    const MemoryUse during = CurrentMemoryUse();
    EXPECT_EQ(during[MemoryCategory::kParameters],
              before[MemoryCategory::kParameters] + 1000);
    EXPECT_EQ(during[MemoryCategory::kOptimizer],
              before[MemoryCategory::kOptimizer] + 24);
    EXPECT_EQ(during.total(), before.total() + 1024);
  }
  EXPECT_EQ(CurrentMemoryUse().bytes, before.bytes);
}

TEST(Buffer, MovingKeepsTheCount) {
  const int64_t before = CurrentMemoryUse().total();
  Buffer a = AllocateOrDie(100, MemoryCategory::kData);
  void* const data = a.data();
  Buffer b = std::move(a);
  EXPECT_EQ(b.data(), data);
  EXPECT_EQ(b.size_bytes(), 100);
  EXPECT_EQ(CurrentMemoryUse().total(), before + 100);
  b = AllocateOrDie(10, MemoryCategory::kWorkspace);
  EXPECT_EQ(b.size_bytes(), 10);
  EXPECT_EQ(CurrentMemoryUse().total(), before + 10);
  b = Buffer();
  EXPECT_EQ(CurrentMemoryUse().total(), before);
}

TEST(PeakMemoryBytes, RemembersTheLargestTotal) {
  { const Buffer a = AllocateOrDie(1 << 20, MemoryCategory::kActivations); }
  const int64_t peak = PeakMemoryBytes();
  EXPECT_GE(peak, 1 << 20);
  { const Buffer b = AllocateOrDie(1 << 10, MemoryCategory::kActivations); }
  EXPECT_EQ(PeakMemoryBytes(), peak);
}

TEST(Buffer, FailureNamesTheCategory) {
  const MemoryUse before = CurrentMemoryUse();
  const absl::StatusOr<Buffer> buffer =
      Buffer::Allocate(int64_t{1} << 60, MemoryCategory::kGradients);
  EXPECT_EQ(buffer.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(buffer.status().message(), HasSubstr("gradients: "));
  EXPECT_EQ(CurrentMemoryUse().bytes, before.bytes);
}

TEST(MemoryCategory, NamesAreDistinct) {
  EXPECT_EQ(Name(MemoryCategory::kParameters), "parameters");
  EXPECT_EQ(Name(MemoryCategory::kGradients), "gradients");
  EXPECT_EQ(Name(MemoryCategory::kOptimizer), "optimizer");
  EXPECT_EQ(Name(MemoryCategory::kActivations), "activations");
  EXPECT_EQ(Name(MemoryCategory::kWorkspace), "workspace");
  EXPECT_EQ(Name(MemoryCategory::kData), "data");
}

// One of each case: odd sizes, an empty tensor, a scalar, several dtypes.
std::vector<Tensor> Layout(Arena& arena) {
  return {arena.Allocate(DType::kFloat32, {3, 5}),
          arena.Allocate(DType::kBFloat16, {1}),
          arena.Allocate(DType::kUInt8, {257}),
          arena.Allocate(DType::kInt64, {0, 4}),
          arena.Allocate(DType::kFloat64, {}),
          arena.Allocate(DType::kInt32, {2, 2, 2, 64})};
}

TEST(Arena, MeasuringTellsExactlyWhatTheLayoutNeeds) {
  const int64_t before = CurrentMemoryUse().total();
  Arena measure = Arena::Measuring();
  const std::vector<Tensor> measured = Layout(measure);
  EXPECT_TRUE(measure.measuring());
  EXPECT_EQ(CurrentMemoryUse().total(), before);

  absl::StatusOr<Arena> arena =
      Arena::Create(measure.used_bytes(), MemoryCategory::kActivations);
  ASSERT_TRUE(arena.ok());
  const std::vector<Tensor> real = Layout(*arena);
  EXPECT_EQ(arena->used_bytes(), measure.used_bytes());
  EXPECT_EQ(arena->used_bytes(), arena->capacity_bytes());
  EXPECT_EQ(CurrentMemoryUse().total(), before + measure.used_bytes());
  for (size_t i = 0; i < real.size(); ++i) {
    EXPECT_EQ(measured[i].shape(), real[i].shape());
    EXPECT_EQ(measured[i].dtype(), real[i].dtype());
    EXPECT_TRUE(measured[i].empty());
  }
}

TEST(Arena, TensorsAreAlignedApartAndZero) {
  Arena measure = Arena::Measuring();
  Layout(measure);
  absl::StatusOr<Arena> arena =
      Arena::Create(measure.used_bytes(), MemoryCategory::kWorkspace);
  ASSERT_TRUE(arena.ok());
  const std::vector<Tensor> tensors = Layout(*arena);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto* bytes = static_cast<const unsigned char*>(tensors[i].raw());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes) % 256, 0u);
    // Zero until written, so nothing written before reached this one.
    for (int64_t j = 0; j < tensors[i].size_bytes(); ++j) {
      ASSERT_EQ(bytes[j], 0) << "tensor " << i << " byte " << j;
    }
    std::memset(tensors[i].raw(), 0xff,
                static_cast<size_t>(tensors[i].size_bytes()));
  }
}

TEST(ArenaDeathTest, RefusesMoreThanWasMeasured) {
  absl::StatusOr<Arena> arena = Arena::Create(512, MemoryCategory::kWorkspace);
  ASSERT_TRUE(arena.ok());
  arena->Allocate(DType::kUInt8, {512});
  EXPECT_DEATH(arena->Allocate(DType::kUInt8, {1}), "arena is full");
}

}  // namespace
}  // namespace cubit
