// SPDX-License-Identifier: Apache-2.0
//
// The threads that share one loop of an op. Work is cut by shape alone, never
// by the number of threads, so results are the same bits for any thread count.

#ifndef CUBIT_RUNTIME_THREAD_POOL_H_
#define CUBIT_RUNTIME_THREAD_POOL_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/functional/function_ref.h"

namespace cubit {

class ThreadPool {
 public:
  // `num_threads` counts the caller: 1 means no extra thread.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // The pool of the ops: one thread per processor that this process may use.
  // Where ranks share a host, their launcher divides the processors and sets
  // CUBIT_NUM_THREADS.
  static ThreadPool& Global();

  int size() const;

  // Calls task(i) once for every i in [0, count), in any order, on the pool's
  // threads and the caller's; returns when all are done. One Run at a time: a
  // second caller waits, and a task that calls Run executes its loop itself.
  void Run(int64_t count, absl::FunctionRef<void(int64_t)> task);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Calls body(begin, end) over [0, count) in pieces of `grain` (the last may be
// shorter). Pieces depend on count and grain alone.
void ParallelFor(int64_t count, int64_t grain,
                 absl::FunctionRef<void(int64_t begin, int64_t end)> body);

}  // namespace cubit

#endif  // CUBIT_RUNTIME_THREAD_POOL_H_
