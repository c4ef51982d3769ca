// SPDX-License-Identifier: Apache-2.0

#include "runtime/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"

#include "runtime/check.h"
#include "runtime/rounding.h"

namespace cubit {
namespace {

// True on threads that are inside a Run, where a nested Run must not wait for
// the pool it occupies.
thread_local bool inside_run = false;

// CUBIT_NUM_THREADS is this rank's share of a host with several.
int AvailableProcessors() {
  const char* share = std::getenv("CUBIT_NUM_THREADS");
  int threads = 0;
  if (share != nullptr && absl::SimpleAtoi(share, &threads) && threads > 0) {
    return threads;
  }
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

}  // namespace

struct ThreadPool::State {
  using Task = absl::FunctionRef<void(int64_t)>;

  // One loop: threads take the next index until none is left.
  struct Loop {
    Task task;
    int64_t count;
    std::atomic<int64_t> next{0};
  };

  // std::mutex, not absl::Mutex: ThreadSanitizer follows pthread's locks, and
  // does not see into the Abseil that the distribution compiled.
  std::mutex run_mutex;  // one Run at a time
  std::mutex mutex;      // guards the fields down to `stopping`
  std::condition_variable wake;
  std::condition_variable idle;
  Loop* loop = nullptr;
  int64_t generation = 0;  // of `loop`, so that no thread takes one twice
  int active = 0;          // threads inside `loop`, the caller not counted
  bool stopping = false;
  std::vector<std::thread> threads;

  static void Work(Loop& loop) {
    for (int64_t i = loop.next.fetch_add(1); i < loop.count;
         i = loop.next.fetch_add(1)) {
      loop.task(i);
    }
  }

  void ThreadMain() {
    inside_run = true;
    int64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
      wake.wait(lock, [this, &seen] {
        return stopping || (loop != nullptr && generation != seen);
      });
      if (stopping) return;
      seen = generation;
      Loop* const current = loop;
      ++active;
      lock.unlock();
      Work(*current);
      lock.lock();
      if (--active == 0) idle.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int num_threads) : state_(std::make_unique<State>()) {
  CUBIT_CHECK_GE(num_threads, 1);
  for (int i = 1; i < num_threads; ++i) {
    state_->threads.emplace_back([this] { state_->ThreadMain(); });
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->stopping = true;
  }
  state_->wake.notify_all();
  for (std::thread& thread : state_->threads) thread.join();
}

ThreadPool& ThreadPool::Global() {
  // Never destroyed: ops may still run while static objects go.
  static ThreadPool* const pool = new ThreadPool(AvailableProcessors());
  return *pool;
}

int ThreadPool::size() const {
  return static_cast<int>(state_->threads.size()) + 1;
}

void ThreadPool::Run(int64_t count, absl::FunctionRef<void(int64_t)> task) {
  if (inside_run || state_->threads.empty() || count <= 1) {
    for (int64_t i = 0; i < count; ++i) task(i);
    return;
  }
  const std::lock_guard<std::mutex> run_lock(state_->run_mutex);
  State::Loop loop{task, count};
  {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->loop = &loop;
    ++state_->generation;
  }
  state_->wake.notify_all();
  inside_run = true;
  State::Work(loop);
  inside_run = false;
  std::unique_lock<std::mutex> lock(state_->mutex);
  state_->loop = nullptr;  // no thread may join this loop any more
  state_->idle.wait(lock, [this] { return state_->active == 0; });
}

void ParallelFor(int64_t count, int64_t grain,
                 absl::FunctionRef<void(int64_t begin, int64_t end)> body) {
  CUBIT_CHECK_GE(grain, 1);
  const int64_t pieces = CeilDivide(count, grain);
  ThreadPool::Global().Run(pieces, [&](int64_t piece) {
    const int64_t begin = piece * grain;
    body(begin, std::min(count, begin + grain));
  });
}

}  // namespace cubit
