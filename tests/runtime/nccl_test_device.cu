// SPDX-License-Identifier: Apache-2.0

#include <cstdlib>
#include <string>

#include "runtime/cuda_check.h"
#include "tests/runtime/nccl_test_device.h"

namespace cubit {

bool UseTestGpu(int rank, int num_ranks) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return false;
  CUBIT_CUDA_CHECK(cudaSetDevice(rank % count));
  if (num_ranks > count) {
    const std::string host = "cubit-test-rank-" + std::to_string(rank);
    setenv("NCCL_HOSTID", host.c_str(), /*overwrite=*/1);
    setenv("NCCL_SOCKET_IFNAME", "lo", /*overwrite=*/1);
  }
  return true;
}

}  // namespace cubit
