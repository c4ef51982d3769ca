// SPDX-License-Identifier: Apache-2.0

#include "runtime/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace cubit {
namespace {

// Plain ints, not atomics: ThreadSanitizer then sees an index that two threads
// were given, and a Run that returned too early.
std::vector<int> CallsPerIndex(ThreadPool& pool, int64_t count) {
  std::vector<int> calls(static_cast<size_t>(count));
  pool.Run(count, [&calls](int64_t i) { ++calls[static_cast<size_t>(i)]; });
  return calls;
}

TEST(ThreadPool, RunsEveryIndexOnce) {
  for (const int size : {1, 2, 3, 8}) {
    ThreadPool pool(size);
    EXPECT_EQ(pool.size(), size);
    for (const int64_t count : {0, 1, 2, 3, 7, 64, 1000}) {
      EXPECT_EQ(CallsPerIndex(pool, count),
                std::vector<int>(static_cast<size_t>(count), 1))
          << size << " threads, " << count << " calls";
    }
  }
}

TEST(ThreadPool, ManyShortRunsLoseNothing) {
  ThreadPool pool(4);
  int64_t sum = 0;
  for (int64_t run = 0; run < 3000; ++run) {
    const int64_t count = 2 + run % 5;
    const std::vector<int> calls = CallsPerIndex(pool, count);
    for (const int n : calls) sum += n;
    sum -= count;
  }
  EXPECT_EQ(sum, 0);
}

// Each task waits for the other, so one thread alone would never return.
TEST(ThreadPool, TasksRunAtTheSameTime) {
  ThreadPool pool(2);
  std::atomic<int> arrived{0};
  pool.Run(2, [&arrived](int64_t) {
    ++arrived;
    while (arrived.load() < 2) std::this_thread::yield();
  });
  EXPECT_EQ(arrived.load(), 2);
}

TEST(ThreadPool, NestedRunIsDoneByTheThreadThatAsks) {
  ThreadPool pool(3);
  std::vector<std::set<std::thread::id>> threads(20);
  std::vector<int> sums(20);
  pool.Run(20, [&](int64_t i) {
    const auto row = static_cast<size_t>(i);
    pool.Run(50, [&](int64_t j) {
      threads[row].insert(std::this_thread::get_id());
      sums[row] += static_cast<int>(j);
    });
  });
  for (size_t i = 0; i < 20; ++i) {
    EXPECT_EQ(threads[i].size(), 1u);
    EXPECT_EQ(sums[i], 49 * 50 / 2);
  }
  // The caller's thread is free for the pool again.
  EXPECT_EQ(CallsPerIndex(pool, 100), std::vector<int>(100, 1));
}

TEST(ThreadPool, CallersOnSeveralThreadsTakeTurns) {
  ThreadPool pool(3);
  std::vector<int> wrong(4, -1);
  std::vector<std::thread> callers;
  callers.reserve(wrong.size());
  for (int& result : wrong) {
    callers.emplace_back([&pool, &result] {
      result = 0;
      for (int64_t run = 0; run < 200; ++run) {
        for (const int n : CallsPerIndex(pool, 1 + run % 9)) result += n != 1;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

TEST(ThreadPool, EndsWithoutHavingRun) {
  for (int i = 0; i < 50; ++i) ThreadPool pool(4);
}

TEST(ThreadPool, GlobalHasAThreadPerProcessor) {
  EXPECT_GE(ThreadPool::Global().size(), 1);
  EXPECT_LE(ThreadPool::Global().size(),
            static_cast<int>(std::thread::hardware_concurrency()));
  EXPECT_EQ(&ThreadPool::Global(), &ThreadPool::Global());
}

TEST(ThreadPoolDeathTest, RefusesNoThreads) {
  EXPECT_DEATH(ThreadPool(0), "0 vs. 1");
}

using Piece = std::pair<int64_t, int64_t>;

std::vector<Piece> Pieces(int64_t count, int64_t grain) {
  std::mutex mutex;
  std::vector<Piece> pieces;
  ParallelFor(count, grain, [&](int64_t begin, int64_t end) {
    const std::lock_guard<std::mutex> lock(mutex);
    pieces.emplace_back(begin, end);
  });
  std::sort(pieces.begin(), pieces.end());
  return pieces;
}

TEST(ParallelFor, CutsByCountAndGrainAlone) {
  EXPECT_EQ(Pieces(0, 4), std::vector<Piece>());
  EXPECT_EQ(Pieces(3, 4), (std::vector<Piece>{{0, 3}}));
  EXPECT_EQ(Pieces(4, 4), (std::vector<Piece>{{0, 4}}));
  EXPECT_EQ(Pieces(10, 4), (std::vector<Piece>{{0, 4}, {4, 8}, {8, 10}}));
  EXPECT_EQ(Pieces(3, 1), (std::vector<Piece>{{0, 1}, {1, 2}, {2, 3}}));
}

}  // namespace
}  // namespace cubit
