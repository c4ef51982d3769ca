// SPDX-License-Identifier: Apache-2.0
//
// For .cu files: a CUDA call that fails in mid-run ends the process with the
// expression, the library's words and what to do; and the CUDA stream behind a
// Stream.

#ifndef CUBIT_RUNTIME_CUDA_CHECK_H_
#define CUBIT_RUNTIME_CUDA_CHECK_H_

#include <cstdint>

#include <cuda_runtime.h>

#include "runtime/device.h"

namespace cubit {

class Buffer;

// Ends the process (status 2: the run can be resumed).
[[noreturn]] void CudaFailure(const char* expression, cudaError_t error,
                              const char* file, int line);

#define CUBIT_CUDA_CHECK(expression)                                           \
  do {                                                                         \
    const cudaError_t cubit_cuda_error = (expression);                         \
    if (cubit_cuda_error != cudaSuccess) {                                     \
      ::cubit::CudaFailure(#expression, cubit_cuda_error, __FILE__, __LINE__); \
    }                                                                          \
  } while (false)

// After a kernel launch: was it accepted?
#define CUBIT_CUDA_CHECK_LAUNCH() CUBIT_CUDA_CHECK(cudaGetLastError())

inline cudaStream_t CudaStream(const Stream& stream) {
  return static_cast<cudaStream_t>(stream.native());
}

// Multiprocessors of the current device.
int NumMultiprocessors();

// Work space that every kernel on a device's compute stream may use until it
// ends: at least `bytes`, aligned to 256, contents undefined. Kept for the
// process and counted as MemoryCategory::kWorkspace; it grows (with a wait for
// the device) when more is asked for than ever before, so after the first step
// no call allocates.
void* CudaWorkspace(int64_t bytes, Stream& stream);
// The same of other memory that is kept for the process, in `buffer`.
void* GrowWorkspace(int64_t bytes, Buffer* buffer, Stream& stream);

}  // namespace cubit

#endif  // CUBIT_RUNTIME_CUDA_CHECK_H_
