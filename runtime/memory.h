// SPDX-License-Identifier: Apache-2.0
//
// Ownership of device memory, counted by category. Everything a step needs is
// laid out in arenas before the first step; an arena that measures lays out the
// same objects without memory, which is how --dry_run is exact.

#ifndef CUBIT_RUNTIME_MEMORY_H_
#define CUBIT_RUNTIME_MEMORY_H_

#include <array>
#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "runtime/tensor.h"

namespace cubit {

enum class MemoryCategory {
  kParameters,
  kGradients,
  kOptimizer,
  kActivations,
  kWorkspace,
  kData
};
constexpr int kNumMemoryCategories = 6;

// "parameters", "gradients", ...
absl::string_view Name(MemoryCategory category);

// Bytes by category.
struct MemoryUse {
  std::array<int64_t, kNumMemoryCategories> bytes = {};

  int64_t& operator[](MemoryCategory category) {
    return bytes[static_cast<size_t>(category)];
  }
  int64_t operator[](MemoryCategory category) const {
    return bytes[static_cast<size_t>(category)];
  }
  int64_t total() const;
};

// Bytes that all living Buffers of this process hold, and the largest total so
// far. Thread-safe.
MemoryUse CurrentMemoryUse();
int64_t PeakMemoryBytes();

// Owned device bytes. Move-only.
class Buffer {
 public:
  static absl::StatusOr<Buffer> Allocate(int64_t bytes,
                                         MemoryCategory category);
  Buffer() = default;
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return data_; }
  int64_t size_bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
  MemoryCategory category_ = MemoryCategory::kWorkspace;
};

// Owned host memory that the device copies from and to without a wait
// (device.h); not counted. Move-only.
class PinnedBuffer {
 public:
  static absl::StatusOr<PinnedBuffer> Allocate(int64_t bytes);
  PinnedBuffer() = default;
  ~PinnedBuffer();
  PinnedBuffer(PinnedBuffer&& other) noexcept;
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  void* data() const { return data_; }
  int64_t size_bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Hands out tensors from one Buffer, one after the other, each aligned to 256
// bytes; nothing is given back before the arena dies. Usage:
//
//   Arena measure = Arena::Measuring();
//   Layout(measure);                            // same function both times
//   CUBIT_ASSIGN_OR_RETURN(Arena arena,
//       Arena::Create(measure.used_bytes(), MemoryCategory::kActivations));
//   Layout(arena);
//
// Asking for more than was measured is a check failure: the plan was wrong.
class Arena {
 public:
  // Counts only; the tensors it returns point at no memory.
  static Arena Measuring();
  static absl::StatusOr<Arena> Create(int64_t bytes, MemoryCategory category);

  Tensor Allocate(DType dtype, Shape shape);

  bool measuring() const { return measuring_; }
  int64_t used_bytes() const { return used_; }
  int64_t capacity_bytes() const { return buffer_.size_bytes(); }

 private:
  Arena() = default;

  Buffer buffer_;
  int64_t used_ = 0;
  bool measuring_ = false;
};

}  // namespace cubit

#endif  // CUBIT_RUNTIME_MEMORY_H_
