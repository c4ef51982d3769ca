// SPDX-License-Identifier: Apache-2.0

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include <cuda_runtime.h>

#include "runtime/check.h"
#include "runtime/command_line.h"
#include "runtime/cuda_check.h"
#include "runtime/device.h"
#include "runtime/memory.h"

namespace cubit {
namespace {

// Dense bf16 products of one multiprocessor and clock, in FLOP: four tensor
// cores, from the vendor's tables of each architecture.
double FlopsPerClock(int major, int minor) {
  if (major == 8 && minor == 0) return 2048;
  if (major == 8) return 1024;
  if (major == 9) return 4096;
  return 0;
}

// Dense bf16 products, FLOP/s, by the vendor's data sheet, whose clock is below
// the highest that the device reports; 0 for devices not listed.
double DatasheetFlops(const std::string& name) {
  constexpr struct {
    const char* part;
    double flops;
  } kDevices[] = {{"H100 PCIe", 756e12},
                  {"H100 NVL", 835e12},
                  {"H100", 989e12},
                  {"H200", 989e12},
                  {"A100", 312e12}};
  for (const auto& device : kDevices) {
    if (name.find(device.part) != std::string::npos) return device.flops;
  }
  return 0;
}

cudaStream_t NewStream() {
  cudaStream_t stream = nullptr;
  CUBIT_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return stream;
}

int CurrentDevice() {
  int device = 0;
  CUBIT_CUDA_CHECK(cudaGetDevice(&device));
  return device;
}

int Attribute(cudaDeviceAttr attribute) {
  int value = 0;
  CUBIT_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, CurrentDevice()));
  return value;
}

std::string NoMemoryMessage(int64_t bytes) {
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  CUBIT_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
  constexpr double kGiB = 1 << 30;
  return absl::StrFormat(
      "%.2f GiB of GPU memory could not be had; %.2f of %.2f GiB are free. Use "
      "a smaller batch.micro_batch_size or model, or recompute activations; "
      "--dry_run shows what needs how much.",
      static_cast<double>(bytes) / kGiB, static_cast<double>(free_bytes) / kGiB,
      static_cast<double>(total_bytes) / kGiB);
}

// What an error means for whoever started the program, and its exit status.
struct Advice {
  const char* text;
  int status;
};

Advice AdviceOn(cudaError_t error) {
  switch (error) {
    case cudaErrorInsufficientDriver:
    case cudaErrorNoDevice:
      return {
          "No GPU that this program can use is here; --device=cpu computes "
          "without one.",
          kExitWrongRequest};
    case cudaErrorNoKernelImageForDevice:
      return {
          "This program was built for another GPU. Build it on the machine "
          "with the GPU, or set CUBIT_CUDA_ARCHS (for example "
          "CUBIT_CUDA_ARCHS=\"80 90a\").",
          kExitOtherHardware};
    case cudaErrorMemoryAllocation:
      return {
          "The GPU's memory is full; nvidia-smi shows who has it. When some is "
          "free, --resume goes on from the last checkpoint.",
          kExitFailed};
    default:
      return {
          "The GPU's state is lost; resume from the last checkpoint with "
          "--resume.",
          kExitFailed};
  }
}

}  // namespace

void CudaFailure(const char* expression, cudaError_t error, const char* file,
                 int line) {
  const Advice advice = AdviceOn(error);
  std::fprintf(stderr, "%s:%d: %s failed: %s (%s). %s\n", file, line,
               expression, cudaGetErrorString(error), cudaGetErrorName(error),
               advice.text);
  if (advice.status == kExitFailed) CallFatalHook(cudaGetErrorString(error));
  std::_Exit(advice.status);
}

int NumMultiprocessors() {
  static const int count = Attribute(cudaDevAttrMultiProcessorCount);
  return count;
}

void* CudaWorkspace(int64_t bytes, Stream& stream) {
  static Buffer* const buffer = new Buffer;  // outlives every stream
  return GrowWorkspace(bytes, buffer, stream);
}

void* GrowWorkspace(int64_t bytes, Buffer* buffer, Stream& stream) {
  if (bytes > buffer->size_bytes()) {
    stream.Synchronize();
    *buffer = Buffer();
    absl::StatusOr<Buffer> grown =
        Buffer::Allocate(bytes, MemoryCategory::kWorkspace);
    if (!grown.ok()) {
      std::fprintf(stderr, "%s\n",
                   std::string(grown.status().message()).c_str());
      std::_Exit(kExitFailed);
    }
    *buffer = *std::move(grown);
  }
  return buffer->data();
}

Stream::Stream() : native_(NewStream()) {}

Stream::~Stream() {
  if (native_ == nullptr) return;
  Synchronize();
  CUBIT_CUDA_CHECK(cudaStreamDestroy(CudaStream(*this)));
}

Stream::Stream(Stream&& other) noexcept
    : native_(std::exchange(other.native_, nullptr)),
      profile_(other.profile_) {}

Stream& Stream::operator=(Stream&& other) noexcept {
  std::swap(native_, other.native_);
  std::swap(profile_, other.profile_);
  return *this;
}

void Stream::Synchronize() {
  CUBIT_CUDA_CHECK(cudaStreamSynchronize(CudaStream(*this)));
}

void Stream::WaitFor(const Event& event) {
  if (event.native_ == nullptr) return;
  CUBIT_CUDA_CHECK(cudaStreamWaitEvent(
      CudaStream(*this), static_cast<cudaEvent_t>(event.native_)));
}

// Made when first recorded: the plan of a run for another machine holds events,
// where there may be no device. Until then its point counts as reached.
Event::Event() = default;

Event::~Event() {
  if (native_ == nullptr) return;
  CUBIT_CUDA_CHECK(cudaEventDestroy(static_cast<cudaEvent_t>(native_)));
}

Event::Event(Event&& other) noexcept
    : native_(std::exchange(other.native_, nullptr)) {}

Event& Event::operator=(Event&& other) noexcept {
  std::swap(native_, other.native_);
  return *this;
}

void Event::Record(Stream& stream) {
  if (native_ == nullptr) {
    cudaEvent_t event = nullptr;
    CUBIT_CUDA_CHECK(cudaEventCreate(&event));
    native_ = event;
  }
  CUBIT_CUDA_CHECK(
      cudaEventRecord(static_cast<cudaEvent_t>(native_), CudaStream(stream)));
}

void Event::Synchronize() {
  if (native_ == nullptr) return;
  CUBIT_CUDA_CHECK(cudaEventSynchronize(static_cast<cudaEvent_t>(native_)));
}

bool Event::Reached() const {
  if (native_ == nullptr) return true;
  const cudaError_t state = cudaEventQuery(static_cast<cudaEvent_t>(native_));
  if (state == cudaErrorNotReady) return false;
  CUBIT_CUDA_CHECK(state);
  return true;
}

double Event::SecondsBetween(const Event& begin, const Event& end) {
  float milliseconds = 0;
  CUBIT_CUDA_CHECK(cudaEventElapsedTime(&milliseconds,
                                        static_cast<cudaEvent_t>(begin.native_),
                                        static_cast<cudaEvent_t>(end.native_)));
  return 1e-3 * milliseconds;
}

absl::string_view DeviceKind() { return "cuda"; }

DeviceInfo QueryDevice() {
  cudaDeviceProp properties;
  CUBIT_CUDA_CHECK(cudaGetDeviceProperties(&properties, CurrentDevice()));
  DeviceInfo info;
  info.name = properties.name;
  info.kind = std::string(DeviceKind());
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  CUBIT_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
  info.memory_bytes = static_cast<int64_t>(total_bytes);
  info.free_bytes = static_cast<int64_t>(free_bytes);
  info.peak_flops = DatasheetFlops(info.name);
  if (info.peak_flops == 0) {
    const double clock = 1e3 * Attribute(cudaDevAttrClockRate);  // kHz
    info.peak_flops = FlopsPerClock(properties.major, properties.minor) *
                      clock * properties.multiProcessorCount;
  }
  return info;
}

absl::StatusOr<void*> AllocateDeviceBytes(int64_t bytes) {
  if (bytes == 0) return nullptr;
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, static_cast<size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // the next check is to see its own error
    return absl::ResourceExhaustedError(NoMemoryMessage(bytes));
  }
  CUBIT_CUDA_CHECK(error);
  CUBIT_CUDA_CHECK(cudaMemset(data, 0, static_cast<size_t>(bytes)));
  // The memset is on the null stream, for which our streams do not wait.
  CUBIT_CUDA_CHECK(cudaDeviceSynchronize());
  return data;
}

void FreeDeviceBytes(void* data, int64_t) {
  if (data != nullptr) CUBIT_CUDA_CHECK(cudaFree(data));
}

absl::StatusOr<void*> AllocatePinnedBytes(int64_t bytes) {
  if (bytes == 0) return nullptr;
  void* data = nullptr;
  const cudaError_t error = cudaMallocHost(&data, static_cast<size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return absl::ResourceExhaustedError(absl::StrFormat(
        "%.1f MiB of pinned host memory could not be had; see ulimit -l and "
        "the machine's free memory",
        static_cast<double>(bytes) / (1 << 20)));
  }
  CUBIT_CUDA_CHECK(error);
  return data;
}

void FreePinnedBytes(void* data, int64_t) {
  if (data != nullptr) CUBIT_CUDA_CHECK(cudaFreeHost(data));
}

void CopyToDevice(void* device, const void* host, int64_t bytes,
                  Stream& stream) {
  CUBIT_CUDA_CHECK(cudaMemcpyAsync(device, host, static_cast<size_t>(bytes),
                                   cudaMemcpyHostToDevice, CudaStream(stream)));
}

void CopyToHost(void* host, const void* device, int64_t bytes, Stream& stream) {
  CUBIT_CUDA_CHECK(cudaMemcpyAsync(host, device, static_cast<size_t>(bytes),
                                   cudaMemcpyDeviceToHost, CudaStream(stream)));
}

void CopyOnDevice(void* target, const void* source, int64_t bytes,
                  Stream& stream) {
  CUBIT_CUDA_CHECK(cudaMemcpyAsync(target, source, static_cast<size_t>(bytes),
                                   cudaMemcpyDeviceToDevice,
                                   CudaStream(stream)));
}

void SetZero(void* device, int64_t bytes, Stream& stream) {
  CUBIT_CUDA_CHECK(cudaMemsetAsync(device, 0, static_cast<size_t>(bytes),
                                   CudaStream(stream)));
}

}  // namespace cubit
