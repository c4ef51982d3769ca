// SPDX-License-Identifier: Apache-2.0
//
// The GPU of a rank in tests of NCCL, without CUDA's headers.

#ifndef CUBIT_TESTS_RUNTIME_NCCL_TEST_DEVICE_H_
#define CUBIT_TESTS_RUNTIME_NCCL_TEST_DEVICE_H_

namespace cubit {

// Gives the process GPU `rank` modulo their number. NCCL takes two ranks on one
// GPU for a mistake; where `num_ranks` is more than the GPUs, it is made to
// take each rank for a host of its own, which it reaches over loopback sockets.
// Before NCCL is used. False, and nothing is done, if there is no GPU.
bool UseTestGpu(int rank, int num_ranks);

}  // namespace cubit

#endif  // CUBIT_TESTS_RUNTIME_NCCL_TEST_DEVICE_H_
