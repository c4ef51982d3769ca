// SPDX-License-Identifier: Apache-2.0
//
// The order of work of a triangular solve inside one GPU: thread blocks take
// (row block, head) items from a counter, row blocks ascending, so whatever an
// item waits for was taken before it and is being computed. A finished item is
// published by a flag that holds the number of the launch, which makes
// resetting flags unnecessary; counter and number are moved on by the last
// thread block to leave, so a launch can be replayed in a CUDA graph.

#ifndef CUBIT_OPS_CUDA_SOLVE_QUEUE_CUH_
#define CUBIT_OPS_CUDA_SOLVE_QUEUE_CUH_

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "runtime/cuda_check.h"
#include "runtime/memory.h"

namespace cubit {
namespace cuda {

// In device memory, all zero at first. Launches that share one must follow each
// other on one stream.
struct SolveQueue {
  uint32_t next_item;
  uint32_t num_left;  // thread blocks that have ended
  uint32_t launch;
  uint32_t unused[29];
  uint32_t ready[1];  // one for each item
};

// The process's queue with room for `num_items`. It grows with a wait for the
// device, so after the first step no call allocates.
inline SolveQueue* GetSolveQueue(int64_t num_items, Stream& stream) {
  static Buffer* const buffer = new Buffer;  // outlives every stream
  const int64_t bytes = static_cast<int64_t>(sizeof(SolveQueue)) +
                        num_items * static_cast<int64_t>(sizeof(uint32_t));
  if (bytes > buffer->size_bytes()) {
    stream.Synchronize();
    *buffer = Buffer();
    absl::StatusOr<Buffer> grown =
        Buffer::Allocate(bytes + bytes / 2, MemoryCategory::kWorkspace);
    if (!grown.ok()) {
      std::fprintf(stderr, "%s\n",
                   std::string(grown.status().message()).c_str());
      std::_Exit(2);
    }
    *buffer = *std::move(grown);
  }
  return static_cast<SolveQueue*>(buffer->data());
}

__device__ __forceinline__ uint32_t LoadAcquire(const uint32_t* p) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];\n"
               : "=r"(value)
               : "l"(p)
               : "memory");
  return value;
}
__device__ __forceinline__ void StoreRelease(uint32_t* p, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;\n" ::"l"(p), "r"(value)
               : "memory");
}

// Looks at a flag before whoever waits for it traps: the error is then seen,
// instead of a process that hangs. Two minutes, as a chain of blocks takes more
// than seconds under a tool that follows every access to shared memory.
constexpr int kMostPolls = 1 << 27;

// A block no further away is looked for without a pause, and by its own flag
// alone.
constexpr int kNearBlocks = 2;

// Called by all lanes of a warp: waits until `flag` holds `launch`. All blocks
// of a head that are under way wait for the same flag, the next one to come,
// and flags of heads are neighbours. So whoever has others to wait for behind
// this one, `distance` - 1 of them, looks less often: by the number of those
// who ask it would be late for all.
__device__ __forceinline__ void AwaitReady(const uint32_t* flag,
                                           uint32_t launch, int distance) {
  if (threadIdx.x % 32 == 0) {
    for (int i = 0; LoadAcquire(flag) != launch; ++i) {
      if (i == kMostPolls) __trap();
      if (distance > kNearBlocks) {
        __nanosleep(min(200 * (distance - kNearBlocks), 2000));
      }
    }
  }
  __syncwarp();
}

// Called by all threads of a thread block when their writes are issued. The
// release is of what all of them wrote before the barrier.
__device__ __forceinline__ void PublishReady(uint32_t* flag, uint32_t launch) {
  __syncthreads();
  if (threadIdx.x == 0) StoreRelease(flag, launch);
}

// Called by one thread of every thread block when it has no more work.
__device__ __forceinline__ void LeaveQueue(SolveQueue* queue) {
  __threadfence();
  if (atomicAdd(&queue->num_left, 1) != gridDim.x - 1) return;
  queue->next_item = 0;
  queue->num_left = 0;
  ++queue->launch;
  __threadfence();
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_SOLVE_QUEUE_CUH_
