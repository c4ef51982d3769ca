// SPDX-License-Identifier: Apache-2.0

#include "runtime/memory.h"

#include <algorithm>
#include <mutex>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"

#include "runtime/device.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr int64_t kAlignment = 256;

// The process-wide count: memory is a resource of the process, so its ledger
// is the one mutable global of this file.
std::mutex ledger_mutex;
MemoryUse ledger_use;     // guarded by ledger_mutex
int64_t ledger_peak = 0;  // guarded by ledger_mutex

void Count(MemoryCategory category, int64_t bytes) {
  const std::lock_guard<std::mutex> lock(ledger_mutex);
  ledger_use[category] += bytes;
  ledger_peak = std::max(ledger_peak, ledger_use.total());
}

}  // namespace

absl::string_view Name(MemoryCategory category) {
  constexpr absl::string_view kNames[kNumMemoryCategories] = {
      "parameters",  "gradients", "optimizer",
      "activations", "workspace", "data"};
  return kNames[static_cast<size_t>(category)];
}

int64_t MemoryUse::total() const {
  return std::accumulate(bytes.begin(), bytes.end(), int64_t{0});
}

MemoryUse CurrentMemoryUse() {
  const std::lock_guard<std::mutex> lock(ledger_mutex);
  return ledger_use;
}

int64_t PeakMemoryBytes() {
  const std::lock_guard<std::mutex> lock(ledger_mutex);
  return ledger_peak;
}

absl::StatusOr<Buffer> Buffer::Allocate(int64_t bytes,
                                        MemoryCategory category) {
  absl::StatusOr<void*> data = AllocateDeviceBytes(bytes);
  if (!data.ok()) {
    return absl::Status(
        data.status().code(),
        absl::StrCat(Name(category), ": ", data.status().message()));
  }
  Buffer buffer;
  buffer.data_ = *data;
  buffer.bytes_ = bytes;
  buffer.category_ = category;
  Count(category, bytes);
  return buffer;
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  FreeDeviceBytes(data_, bytes_);
  Count(category_, -bytes_);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      category_(other.category_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(category_, other.category_);
  return *this;
}

absl::StatusOr<PinnedBuffer> PinnedBuffer::Allocate(int64_t bytes) {
  PinnedBuffer buffer;
  CUBIT_ASSIGN_OR_RETURN(buffer.data_, AllocatePinnedBytes(bytes));
  buffer.bytes_ = bytes;
  return buffer;
}

PinnedBuffer::~PinnedBuffer() { FreePinnedBytes(data_, bytes_); }

PinnedBuffer::PinnedBuffer(PinnedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Arena Arena::Measuring() {
  Arena arena;
  arena.measuring_ = true;
  return arena;
}

absl::StatusOr<Arena> Arena::Create(int64_t bytes, MemoryCategory category) {
  Arena arena;
  CUBIT_ASSIGN_OR_RETURN(arena.buffer_, Buffer::Allocate(bytes, category));
  return arena;
}

Tensor Arena::Allocate(DType dtype, Shape shape) {
  const int64_t bytes = shape.num_elements() * SizeOf(dtype);
  const int64_t begin = used_;
  used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (measuring_) return Tensor(nullptr, dtype, shape);
  CUBIT_CHECK_LE(used_, capacity_bytes()) << "arena is full";
  return Tensor(static_cast<char*>(buffer_.data()) + begin, dtype, shape);
}

}  // namespace cubit
