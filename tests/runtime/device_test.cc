// SPDX-License-Identifier: Apache-2.0

#include "runtime/device.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cubit {
namespace {

using ::testing::HasSubstr;

TEST(Device, SaysWhatItIs) {
  const DeviceInfo info = QueryDevice();
  EXPECT_EQ(info.kind, "cpu");
  EXPECT_THAT(info.name, HasSubstr("threads)"));
  EXPECT_GT(info.memory_bytes, 1 << 20);
}

TEST(AllocateDeviceBytes, GivesAlignedZeroes) {
  constexpr int64_t kBytes = 10001;
  absl::StatusOr<void*> data = AllocateDeviceBytes(kBytes);
  ASSERT_TRUE(data.ok());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(*data) % 256, 0u);
  const char* bytes = static_cast<const char*>(*data);
  EXPECT_TRUE(
      std::all_of(bytes, bytes + kBytes, [](char c) { return c == 0; }));
  FreeDeviceBytes(*data, kBytes);
}

TEST(AllocateDeviceBytes, NothingIsNoMemory) {
  absl::StatusOr<void*> data = AllocateDeviceBytes(0);
  ASSERT_TRUE(data.ok());
  EXPECT_EQ(*data, nullptr);
  FreeDeviceBytes(*data, 0);
}

TEST(AllocateDeviceBytes, SaysHowMuchWasAskedForAndWhatToDo) {
  const absl::StatusOr<void*> data = AllocateDeviceBytes(int64_t{1} << 60);
  ASSERT_EQ(data.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(data.status().message(), HasSubstr("1073741824.00 GiB"));
  EXPECT_THAT(data.status().message(), HasSubstr("are free"));
  EXPECT_THAT(data.status().message(), HasSubstr("micro_batch_size"));
}

TEST(Copy, GoesThereAndBack) {
  Stream stream;
  std::vector<int> host = {1, 2, 3, 4};
  const int64_t bytes = static_cast<int64_t>(host.size() * sizeof(int));
  absl::StatusOr<void*> device = AllocateDeviceBytes(bytes);
  ASSERT_TRUE(device.ok());
  CopyToDevice(*device, host.data(), bytes, stream);
  std::vector<int> back(4);
  CopyToHost(back.data(), *device, bytes, stream);
  stream.Synchronize();
  EXPECT_EQ(back, host);
  // Overlapping: three elements, one place on.
  CopyOnDevice(static_cast<int*>(*device) + 1, *device, 12, stream);
  CopyToHost(back.data(), *device, bytes, stream);
  EXPECT_EQ(back, std::vector<int>({1, 1, 2, 3}));
  SetZero(*device, 8, stream);
  CopyToHost(back.data(), *device, bytes, stream);
  EXPECT_EQ(back, std::vector<int>({0, 0, 2, 3}));
  FreeDeviceBytes(*device, bytes);
}

}  // namespace
}  // namespace cubit
