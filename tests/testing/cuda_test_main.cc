// SPDX-License-Identifier: Apache-2.0
//
// main() of a test that is linked with //ops:cuda. The tests of the ops keep
// their tensors in host vectors; here every vector that a test makes lies in
// pinned memory that the GPU reads and writes at the same address, and kernels
// have finished when the op returns, so one source tests both back ends. Where
// there is no GPU, every case is reported as skipped.

#include <sys/mman.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "tests/testing/cuda_host_memory.h"

namespace cubit {
namespace testing {
namespace {

// Addresses for all pinned memory, so that deleting can tell it from malloc's.
constexpr int64_t kReservedBytes = int64_t{1} << 36;
constexpr int64_t kSlabBytes = int64_t{1} << 25;
// Before every block: its size class. As long as the alignment of the device's
// own allocations, which kernels may rely on.
constexpr int64_t kHeaderBytes = 256;
constexpr int kNumClasses = 37;

// Blocks of 2^c bytes, c the class, kept in a list of free ones for each c.
// Registered, not allocated by CUDA: children of death tests must inherit
// the memory.
class PinnedHeap {
 public:
  void Activate() {
    void* base = mmap(nullptr, kReservedBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) Fail("mmap");
    base_ = static_cast<char*>(base);
    next_ = slab_end_ = base_;
    active_ = true;
  }
  bool active() const { return active_; }
  bool Owns(const void* block) const {
    const char* address = static_cast<const char*>(block);
    return base_ != nullptr && address >= base_ &&
           address < base_ + kReservedBytes;
  }

  void* Allocate(int64_t bytes) {
    int size_class = 9;  // a header and as much again
    while ((int64_t{1} << size_class) < bytes + kHeaderBytes) ++size_class;
    const std::lock_guard<std::mutex> lock(mutex_);
    char* block = free_[static_cast<size_t>(size_class)];
    if (block != nullptr) {
      free_[static_cast<size_t>(size_class)] = *reinterpret_cast<char**>(block);
    } else {
      block = Cut(int64_t{1} << size_class);
    }
    *reinterpret_cast<int*>(block) = size_class;
    return block + kHeaderBytes;
  }

  void Free(void* data) {
    char* block = static_cast<char*>(data) - kHeaderBytes;
    const std::lock_guard<std::mutex> lock(mutex_);
    const int size_class = *reinterpret_cast<int*>(block);
    *reinterpret_cast<char**>(block) = free_[static_cast<size_t>(size_class)];
    free_[static_cast<size_t>(size_class)] = block;
  }

 private:
  [[noreturn]] static void Fail(const char* what) {
    std::fprintf(stderr, "no pinned memory for the test: %s\n", what);
    std::_Exit(1);
  }

  char* Cut(int64_t bytes) {
    if (next_ + bytes > slab_end_) {
      // One registration holds a block whole: a copy may not span two.
      const int64_t slab = bytes > kSlabBytes ? bytes : kSlabBytes;
      next_ = slab_end_;
      slab_end_ = next_ + slab;
      if (slab_end_ > base_ + kReservedBytes) Fail("all is used");
      const char* error = PinHostMemory(next_, static_cast<size_t>(slab));
      if (error != nullptr) Fail(error);
    }
    char* block = next_;
    next_ += bytes;
    return block;
  }

  std::mutex mutex_;
  std::atomic<bool> active_{false};
  char* base_ = nullptr;
  char* next_ = nullptr;
  char* slab_end_ = nullptr;
  std::array<char*, kNumClasses> free_ = {};
};

// Never destroyed: destructors of others still free.
PinnedHeap& Heap() {
  alignas(PinnedHeap) static char storage[sizeof(PinnedHeap)];
  static PinnedHeap* const heap = new (storage) PinnedHeap;
  return *heap;
}

// Memory that CUDA's own start asks for must not ask CUDA for memory.
thread_local bool inside_new = false;

void* New(std::size_t bytes, std::size_t alignment) {
  PinnedHeap& heap = Heap();
  if (heap.active() && !inside_new && alignment <= kHeaderBytes) {
    inside_new = true;
    void* data = heap.Allocate(static_cast<int64_t>(bytes));
    inside_new = false;
    return data;
  }
  void* data = nullptr;
  if (posix_memalign(&data, alignment, bytes) != 0) throw std::bad_alloc();
  return data;
}

void Delete(void* data) {
  if (data == nullptr) return;
  if (Heap().Owns(data)) {
    Heap().Free(data);
  } else {
    std::free(data);
  }
}

class Skipped : public ::testing::Test {
 public:
  void TestBody() override { GTEST_SKIP() << "skipped: no GPU"; }
};

// Puts one case that skips in the place of every case of the program.
void SkipEverything() {
  constexpr char kSuite[] = "WithoutGpu";
  std::vector<std::string> names;
  const ::testing::UnitTest& program = *::testing::UnitTest::GetInstance();
  for (int i = 0; i < program.total_test_suite_count(); ++i) {
    const ::testing::TestSuite& suite = *program.GetTestSuite(i);
    for (int j = 0; j < suite.total_test_count(); ++j) {
      names.push_back(std::string(suite.name()) + "." +
                      suite.GetTestInfo(j)->name());
    }
  }
  for (const std::string& name : names) {
    ::testing::RegisterTest(kSuite, name.c_str(), nullptr, nullptr, __FILE__,
                            __LINE__, []() -> Skipped* { return new Skipped; });
  }
  ::testing::GTEST_FLAG(filter) = std::string(kSuite) + ".*";
}

}  // namespace
}  // namespace testing
}  // namespace cubit

void* operator new(std::size_t bytes) {
  return cubit::testing::New(bytes, alignof(std::max_align_t));
}
void* operator new[](std::size_t bytes) {
  return cubit::testing::New(bytes, alignof(std::max_align_t));
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return cubit::testing::New(bytes, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t bytes, std::align_val_t alignment) {
  return cubit::testing::New(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* data) noexcept { cubit::testing::Delete(data); }
void operator delete[](void* data) noexcept { cubit::testing::Delete(data); }
void operator delete(void* data, std::size_t) noexcept {
  cubit::testing::Delete(data);
}
void operator delete[](void* data, std::size_t) noexcept {
  cubit::testing::Delete(data);
}
void operator delete(void* data, std::align_val_t) noexcept {
  cubit::testing::Delete(data);
}
void operator delete[](void* data, std::align_val_t) noexcept {
  cubit::testing::Delete(data);
}
void operator delete(void* data, std::size_t, std::align_val_t) noexcept {
  cubit::testing::Delete(data);
}
void operator delete[](void* data, std::size_t, std::align_val_t) noexcept {
  cubit::testing::Delete(data);
}

int main(int argc, char** argv) {
  // Read when CUDA starts: a launch returns when the kernel has finished.
  setenv("CUDA_LAUNCH_BLOCKING", "1", /*overwrite=*/1);
  const bool has_gpu = cubit::testing::HasGpu();
  if (has_gpu) cubit::testing::Heap().Activate();
  ::testing::InitGoogleTest(&argc, argv);
  if (!has_gpu) cubit::testing::SkipEverything();
  return RUN_ALL_TESTS();
}
