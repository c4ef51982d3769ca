// SPDX-License-Identifier: Apache-2.0
//
// The calls of CUDA that the main of CUDA tests needs, without CUDA's headers.

#ifndef CUBIT_TESTS_TESTING_CUDA_HOST_MEMORY_H_
#define CUBIT_TESTS_TESTING_CUDA_HOST_MEMORY_H_

#include <cstddef>

namespace cubit {
namespace testing {

bool HasGpu();

// Pins [memory, memory + bytes) so that the GPU reaches it at the same address.
// Returns null, or CUDA's words for what went wrong.
const char* PinHostMemory(void* memory, std::size_t bytes);

}  // namespace testing
}  // namespace cubit

#endif  // CUBIT_TESTS_TESTING_CUDA_HOST_MEMORY_H_
