// SPDX-License-Identifier: Apache-2.0

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

#include "runtime/device.h"
#include "runtime/thread_pool.h"

namespace cubit {
namespace {

std::string ProcessorName() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.rfind("model name", 0) == 0) {
      return std::string(
          absl::StripAsciiWhitespace(line.substr(line.find(':') + 1)));
    }
  }
  return "CPU";
}

int64_t FreeMemoryBytes() {
  std::ifstream meminfo("/proc/meminfo");
  for (std::string key; meminfo >> key;) {
    int64_t kib = 0;
    if (key == "MemAvailable:" && meminfo >> kib) return kib * 1024;
  }
  return 0;
}

}  // namespace

Stream::Stream() = default;
Stream::~Stream() = default;
Stream::Stream(Stream&&) noexcept = default;
Stream& Stream::operator=(Stream&&) noexcept = default;
void Stream::Synchronize() {}
void Stream::WaitFor(const Event&) {}

Event::Event() = default;
Event::~Event() = default;
Event::Event(Event&&) noexcept = default;
Event& Event::operator=(Event&&) noexcept = default;
// Work of a stream is done when its call returns.
void Event::Record(Stream&) {
  seconds_ = std::chrono::duration<double>(
                 std::chrono::steady_clock::now().time_since_epoch())
                 .count();
}
void Event::Synchronize() {}
bool Event::Reached() const { return true; }
double Event::SecondsBetween(const Event& begin, const Event& end) {
  return end.seconds_ - begin.seconds_;
}

absl::string_view DeviceKind() { return "cpu"; }

DeviceInfo QueryDevice() {
  DeviceInfo info;
  info.name = absl::StrCat(ProcessorName(), " (", ThreadPool::Global().size(),
                           " threads)");
  info.kind = std::string(DeviceKind());
  info.memory_bytes = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) *
                      static_cast<int64_t>(sysconf(_SC_PAGESIZE));
  info.free_bytes = FreeMemoryBytes();
  return info;
}

absl::StatusOr<void*> AllocateDeviceBytes(int64_t bytes) {
  if (bytes == 0) return nullptr;
  // Anonymous pages are zero, and count against memory only once touched.
  void* data = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "%.2f GiB of memory could not be had (%s); %.2f GiB are free. Use a "
        "smaller batch.micro_batch_size or model; --dry_run shows what needs "
        "how much.",
        static_cast<double>(bytes) / (1 << 30), std::strerror(errno),
        static_cast<double>(FreeMemoryBytes()) / (1 << 30)));
  }
  return data;
}

void FreeDeviceBytes(void* data, int64_t bytes) {
  if (data != nullptr) munmap(data, static_cast<size_t>(bytes));
}

absl::StatusOr<void*> AllocatePinnedBytes(int64_t bytes) {
  return AllocateDeviceBytes(bytes);
}

void FreePinnedBytes(void* data, int64_t bytes) {
  FreeDeviceBytes(data, bytes);
}

void CopyToDevice(void* device, const void* host, int64_t bytes, Stream&) {
  if (bytes > 0) std::memcpy(device, host, static_cast<size_t>(bytes));
}
void CopyToHost(void* host, const void* device, int64_t bytes, Stream&) {
  if (bytes > 0) std::memcpy(host, device, static_cast<size_t>(bytes));
}
void CopyOnDevice(void* target, const void* source, int64_t bytes, Stream&) {
  std::memmove(target, source, static_cast<size_t>(bytes));
}
void SetZero(void* device, int64_t bytes, Stream&) {
  std::memset(device, 0, static_cast<size_t>(bytes));
}

}  // namespace cubit
