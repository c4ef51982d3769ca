// SPDX-License-Identifier: Apache-2.0
//
// What computes: the host or one accelerator. Every op takes a Stream; on the
// CPU a stream runs each call before it returns, on CUDA it is a cudaStream_t.
// Implemented once per back end (device_cpu.cc); the binary is linked with one.

#ifndef CUBIT_RUNTIME_DEVICE_H_
#define CUBIT_RUNTIME_DEVICE_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace cubit {

class Event;
class StepProfile;  // profile_range.h

// An order of work. Move-only; destroying it waits for its work.
class Stream {
 public:
  Stream();
  ~Stream();
  Stream(Stream&& other) noexcept;
  Stream& operator=(Stream&& other) noexcept;
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // Blocks the host until all work issued so far has finished.
  void Synchronize();
  // What follows here begins after the point that `event` recorded, which may
  // be another stream's. The host does not wait.
  void WaitFor(const Event& event);
  // The back end's handle (cudaStream_t); null on the CPU.
  void* native() const { return native_; }

  // Where ranges of this stream's work are timed; null while nobody asks.
  StepProfile* profile() const { return profile_; }
  void set_profile(StepProfile* profile) { profile_ = profile; }

 private:
  void* native_ = nullptr;
  StepProfile* profile_ = nullptr;
};

// A point in a stream's work. Move-only.
class Event {
 public:
  Event();
  ~Event();
  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  // The point is where `stream` stands now; an earlier one is forgotten.
  void Record(Stream& stream);
  // Blocks the host until the recorded point was reached.
  void Synchronize();
  // Whether it was reached; does not wait.
  bool Reached() const;
  // Seconds of the device between two points that were both reached.
  static double SecondsBetween(const Event& begin, const Event& end);

 private:
  friend class Stream;

  void* native_ = nullptr;
  double seconds_ = 0;  // of the host's clock, where there is no handle
};

// "cpu" or "cuda": what this program was linked for. Needs no device.
absl::string_view DeviceKind();

// Facts about the device that this process computes on.
struct DeviceInfo {
  std::string name;          // "AMD EPYC (8 threads)", "NVIDIA H200"
  std::string kind;          // "cpu" or "cuda"
  int64_t memory_bytes = 0;  // installed
  int64_t free_bytes = 0;    // now, of those
  // Peak of dense products in the training precision, FLOP/s; 0 if unknown.
  double peak_flops = 0;
};
DeviceInfo QueryDevice();

// Device memory, zeroed, aligned to 256 bytes. The error says how much was
// asked for and how much is free. Use memory.h instead, which counts.
absl::StatusOr<void*> AllocateDeviceBytes(int64_t bytes);
void FreeDeviceBytes(void* data, int64_t bytes);

// Host memory that copies to and from the device need not wait for. Errors as
// above.
absl::StatusOr<void*> AllocatePinnedBytes(int64_t bytes);
void FreePinnedBytes(void* data, int64_t bytes);

// Copies `bytes` between host and device memory, in stream order. Host memory
// that is not pinned may make the call wait.
void CopyToDevice(void* device, const void* host, int64_t bytes,
                  Stream& stream);
void CopyToHost(void* host, const void* device, int64_t bytes, Stream& stream);
void CopyOnDevice(void* target, const void* source, int64_t bytes,
                  Stream& stream);
// Sets every byte to zero.
void SetZero(void* device, int64_t bytes, Stream& stream);

}  // namespace cubit

#endif  // CUBIT_RUNTIME_DEVICE_H_
