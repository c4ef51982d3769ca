// SPDX-License-Identifier: Apache-2.0

#include "tests/benchmarks/measure.h"

#include <algorithm>
#include <chrono>

#include "ops/blas.h"
#include "runtime/thread_pool.h"
#include "tests/testing/numerics.h"

namespace cubit {

double BestSeconds(double seconds, absl::FunctionRef<void()> call) {
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  call();
  double best = 1e30;
  const auto begin = Clock::now();
  do {
    const auto start = Clock::now();
    call();
    best = std::min(best, seconds_since(start));
  } while (seconds_since(begin) < seconds);
  return best;
}

double SgemmRate(double seconds) {
  constexpr int64_t kSize = 768;
  const int64_t threads = ThreadPool::Global().size();
  const auto a = testing::RandomNormal(1, "a", {kSize, kSize});
  const auto b = testing::RandomNormal(1, "b", {kSize, kSize});
  testing::HostTensor<float> c({threads, kSize, kSize});
  const double best = BestSeconds(seconds, [&] {
    ParallelFor(threads, 1, [&](int64_t begin, int64_t) {
      Sgemm(false, false, kSize, kSize, kSize, 1.0f, a.values().data(), kSize,
            b.values().data(), kSize, 0.0f,
            c.values().data() + begin * kSize * kSize, kSize);
    });
  });
  return static_cast<double>(threads * 2 * kSize * kSize * kSize) / best;
}

}  // namespace cubit
