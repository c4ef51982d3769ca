// SPDX-License-Identifier: Apache-2.0

#include <cuda_runtime.h>

#include "tests/testing/cuda_host_memory.h"

namespace cubit {
namespace testing {

bool HasGpu() {
  int num_devices = 0;
  return cudaGetDeviceCount(&num_devices) == cudaSuccess && num_devices > 0;
}

const char* PinHostMemory(void* memory, std::size_t bytes) {
  const cudaError_t error = cudaHostRegister(
      memory, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace testing
}  // namespace cubit
