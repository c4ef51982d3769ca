// SPDX-License-Identifier: Apache-2.0
//
// The results of the ops are the same bits for any number of threads: a child
// process that may use one processor alone computes what this one computes with
// all of them. The only test of its program, because the number of threads is
// settled at the first use of the pool.

#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

#include "gtest/gtest.h"

#include "ops/activations.h"
#include "ops/adamw.h"
#include "ops/cross_entropy.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/head_norm.h"
#include "ops/layer_norm.h"
#include "ops/matmul.h"
#include "ops/rms_norm.h"
#include "runtime/thread_pool.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::HostTensor;
using ::cubit::testing::RandomNormal;

constexpr int64_t kRows = 517;
constexpr int64_t kDim = 200;
constexpr int64_t kOut = 330;

class Results {
 public:
  void Append(const HostTensor<float>& tensor) {
    values_.insert(values_.end(), tensor.values().begin(),
                   tensor.values().end());
  }
  void Append(double value) { values_.push_back(value); }
  const std::vector<double>& values() const { return values_; }

 private:
  std::vector<double> values_;
};

void RunProducts(Results& results) {
  const HostTensor<float> x = RandomNormal(1, "x", {kRows, kDim});
  const HostTensor<float> weight = RandomNormal(1, "weight", {kOut, kDim});
  const HostTensor<float> bias = RandomNormal(1, "bias", {kOut});
  const HostTensor<float> d_y = RandomNormal(1, "d_y", {kRows, kOut});
  HostTensor<float> y({kRows, kOut});
  HostTensor<float> d_x({kRows, kDim});
  HostTensor<float> d_weight({kOut, kDim});
  HostTensor<float> d_bias({kOut});
  Stream stream;
  LinearForward(x.view(), weight.view(), bias.view(), {}, y.view(), stream);
  LinearBackwardInput(d_y.view(), weight.view(), true, d_x.view(), stream);
  LinearBackwardWeight(d_y.view(), x.view(), /*accumulate=*/true,
                       d_weight.view(), d_bias.view(), stream);
  for (const auto* tensor : {&y, &d_x, &d_weight, &d_bias}) {
    results.Append(*tensor);
  }
}

void RunNorms(Results& results) {
  const HostTensor<float> x = RandomNormal(2, "x", {kRows, kDim});
  const HostTensor<float> weight = RandomNormal(2, "weight", {kDim});
  const HostTensor<float> d_y = RandomNormal(2, "d_y", {kRows, kDim});
  HostTensor<float> y({kRows, kDim});
  HostTensor<float> mean({kRows});
  HostTensor<float> rstd({kRows});
  HostTensor<float> d_x({kRows, kDim});
  HostTensor<float> d_weight({kDim});
  HostTensor<float> d_bias({kDim});
  HostTensor<float> d_x_sums({kDim});
  Stream stream;
  LayerNormForward(x.view(), weight.view(), weight.view(), 1e-5f, y.view(),
                   mean.view(), rstd.view(), stream);
  LayerNormBackward(d_y.view(), x.view(), weight.view(), mean.view(),
                    rstd.view(), d_x.view(), d_weight.view(), d_bias.view(),
                    d_x_sums.view(), stream);
  results.Append(y);
  RmsNormForward(x.view(), weight.view(), 1e-5f, y.view(), rstd.view(), stream);
  RmsNormBackward(d_y.view(), x.view(), weight.view(), rstd.view(), d_x.view(),
                  d_weight.view(), d_x_sums.view(), stream);
  for (const auto* tensor : {&y, &d_x, &d_weight, &d_bias, &d_x_sums}) {
    results.Append(*tensor);
  }
}

void RunHeadNorm(Results& results) {
  HostTensor<float> heads = RandomNormal(3, "x", {1, kRows, kDim});
  HostTensor<float> d_heads = RandomNormal(3, "d_y", {1, kRows, kDim});
  const HostTensor<float> gain = RandomNormal(3, "gain", {5});
  HostTensor<float> inv_norm({1, 5, kRows});
  HostTensor<float> d_gain({5});
  Stream stream;
  HeadNormForward(gain.view(), HeadsOf(heads.view(), 0, 5, kDim / 5),
                  inv_norm.view(), stream);
  HeadNormBackward(HeadsOf(heads.view(), 0, 5, kDim / 5), gain.view(),
                   inv_norm.view(), HeadsOf(d_heads.view(), 0, 5, kDim / 5),
                   d_gain.view(), stream);
  for (const auto* tensor : {&heads, &d_heads, &inv_norm, &d_gain}) {
    results.Append(*tensor);
  }
}

void RunMlpAndLoss(Results& results) {
  HostTensor<float> x = RandomNormal(4, "x", {kRows, 2 * kDim});
  HostTensor<float> y({kRows, kDim});
  HostTensor<int32_t> ids({kRows});
  for (int64_t n = 0; n < kRows; ++n) ids[n] = static_cast<int32_t>(n * n % 97);
  HostTensor<float> d_table({97, kDim});
  HostTensor<float> losses({kRows});
  Stream stream;
  SwiGluForward(x.view(), y.view(), stream);
  results.Append(y);
  SwiGluBackward(y.view(), x.view(), x.view(), stream);
  GeluForward(x.view(), x.view(), stream);
  EmbeddingBackward(ids.view(), y.view(), d_table.view(), stream);
  CrossEntropy(y.view(), ids.view(), 150, 1e-4f, 0.5f, losses.view(), y.view(),
               stream);
  for (const auto* tensor : {&x, &y, &d_table, &losses}) {
    results.Append(*tensor);
  }
}

void RunOptimizer(Results& results) {
  const HostTensor<float> grad = RandomNormal(5, "grad", {100003});
  HostTensor<float> m({100003});
  HostTensor<float> v({100003});
  HostTensor<float> weight = RandomNormal(5, "weight", {100003});
  HostTensor<double> squares({1});
  AdamWStep step;
  step.learning_rate = 0.1f;
  Stream stream;
  AdamWUpdate(step, {}, {}, grad.view(), m.view(), v.view(), weight.view(), {},
              stream);
  SumOfSquares(grad.view(), squares.view(), stream);
  results.Append(weight);
  results.Append(squares[0]);
}

std::vector<double> RunEverything() {
  Results results;
  RunProducts(results);
  RunNorms(results);
  RunHeadNorm(results);
  RunMlpAndLoss(results);
  RunOptimizer(results);
  return results.values();
}

// In the child: computes on one thread and writes the bytes to `fd`.
[[noreturn]] void RunOnOneProcessor(int fd) {
  const int processor = sched_getcpu();
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(processor, &set);
  if (processor < 0 || sched_setaffinity(0, sizeof(set), &set) != 0) _exit(1);
  if (ThreadPool::Global().size() != 1) _exit(2);
  const std::vector<double> values = RunEverything();
  const char* data = reinterpret_cast<const char*>(values.data());
  size_t left = values.size() * sizeof(double);
  while (left > 0) {
    const ssize_t written = write(fd, data, left);
    if (written <= 0) _exit(3);
    data += written;
    left -= static_cast<size_t>(written);
  }
  _exit(0);
}

std::vector<double> ReadAll(int fd) {
  std::vector<char> bytes;
  char block[65536];
  for (ssize_t count = 0; (count = read(fd, block, sizeof(block))) > 0;) {
    bytes.insert(bytes.end(), block, block + count);
  }
  std::vector<double> values(bytes.size() / sizeof(double));
  std::copy_n(bytes.data(), values.size() * sizeof(double),
              reinterpret_cast<char*>(values.data()));
  return values;
}

TEST(Ops, GiveTheSameBitsForAnyNumberOfThreads) {
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    close(pipe_ends[0]);
    RunOnOneProcessor(pipe_ends[1]);
  }
  close(pipe_ends[1]);
  const std::vector<double> alone = ReadAll(pipe_ends[0]);
  close(pipe_ends[0]);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  if (ThreadPool::Global().size() == 1) {
    GTEST_SKIP() << "skipped: needs more than one processor";
  }
  const std::vector<double> together = RunEverything();
  ASSERT_EQ(alone.size(), together.size());
  for (size_t i = 0; i < alone.size(); ++i) {
    ASSERT_EQ(alone[i], together[i]) << "value " << i;
  }
}

}  // namespace
}  // namespace cubit
