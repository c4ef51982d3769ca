// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <limits>

#include "ops/cuda/lt_trial.h"
#include "runtime/cuda_check.h"
#include "runtime/device.h"

namespace cubit {
namespace cuda {
namespace {

constexpr float kShortestRun = 0.1f;  // in ms; shorter ones are not awaited
// What is slower than the fastest by more in the first round is out.
constexpr float kWorthASecondRound = 1.25f;

// A number that (all but) no two results share, whatever the order in which
// threads add to it.
__global__ void HashKernel(const uint32_t* words, int64_t count,
                           unsigned long long* sum) {
  unsigned long long total = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < count; i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    unsigned long long x = words[i] + 0x9e3779b97f4a7c15ull * (i + 1);
    x = (x ^ (x >> 31)) * 0xbf58476d1ce4e5b9ull;
    total += x ^ (x >> 29);
  }
  atomicAdd(sum, total);
}

// Parts of k that are summed apart.
int32_t SplitsOf(const LtAlgorithm& algorithm) {
  int32_t splits = 0;
  size_t written = 0;
  CUBIT_CUBLAS_CHECK(cublasLtMatmulAlgoConfigGetAttribute(
      &algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits, sizeof(splits),
      &written));
  return std::max(splits, 1);
}

}  // namespace

LtTrial::LtTrial(const LtProblem& problem, const LtProduct& product,
                 const LtAlgorithm& proposal, Stream& stream)
    : problem_(problem),
      product_(product),
      proposal_(proposal),
      stream_(stream) {
  if (product.c != product.d) {
    result_ = product.d;
    return;
  }
  owns_result_ =
      cudaMalloc(&result_, static_cast<size_t>(product.m * product.n) *
                               static_cast<size_t>(SizeOf(product.output))) ==
      cudaSuccess;
  if (!owns_result_) {
    cudaGetLastError();  // the next check is to see its own error
    result_ = nullptr;
  }
}

LtTrial::~LtTrial() {
  if (owns_result_) CUBIT_CUDA_CHECK(cudaFree(result_));
}

bool LtTrial::HasSameBits(const LtAlgorithm& algorithm) {
  if (SplitsOf(algorithm) != SplitsOf(proposal_)) return false;
  if (!hash_.has_value()) hash_ = HashOfResult(proposal_);
  return hash_.has_value() && HashOfResult(algorithm) == hash_;
}

// Nothing where the product is refused.
std::optional<uint64_t> LtTrial::HashOfResult(const LtAlgorithm& algorithm) {
  if (problem_.Launch(product_, algorithm, result_, stream_) !=
      CUBLAS_STATUS_SUCCESS) {
    cudaGetLastError();  // as above
    return std::nullopt;
  }
  // Behind what cuBLASLt may use; HashKernel runs when it has finished.
  auto* sum = static_cast<unsigned long long*>(
      CudaWorkspace(kLtWorkspaceBytes, stream_));
  SetZero(sum, sizeof(*sum), stream_);
  constexpr int kBlocks = 512;
  constexpr int kThreads = 256;
  HashKernel<<<kBlocks, kThreads, 0, CudaStream(stream_)>>>(
      static_cast<const uint32_t*>(result_),
      product_.m * product_.n * SizeOf(product_.output) / 4, sum);
  CUBIT_CUDA_CHECK_LAUNCH();
  unsigned long long hash = 0;
  CopyToHost(&hash, sum, sizeof(hash), stream_);
  stream_.Synchronize();
  return hash;
}

void LtTrial::Run(const LtAlgorithm& algorithm) {
  CUBIT_CUBLAS_CHECK(problem_.Launch(product_, algorithm, result_, stream_));
}

float LtTrial::Milliseconds(const LtAlgorithm& algorithm, int runs) {
  Event begin;
  Event end;
  Run(algorithm);
  begin.Record(stream_);
  for (int i = 0; i < runs; ++i) Run(algorithm);
  end.Record(stream_);
  end.Synchronize();
  return static_cast<float>(1e3 * Event::SecondsBetween(begin, end)) /
         static_cast<float>(runs);
}

std::vector<float> LtTrial::Times(const std::vector<LtAlgorithm>& algorithms,
                                  float milliseconds) {
  const float once = std::max(Milliseconds(proposal_, 1), kShortestRun);
  const int runs = std::max(2, static_cast<int>(milliseconds / once));
  std::vector<float> times;
  for (const LtAlgorithm& algorithm : algorithms) {
    times.push_back(Milliseconds(algorithm, runs));
  }
  // Backwards, so that a clock on its way down meets all alike.
  const float limit =
      kWorthASecondRound * *std::min_element(times.begin(), times.end());
  for (size_t i = algorithms.size(); i-- > 0;) {
    if (times[i] > limit) {
      times[i] = std::numeric_limits<float>::infinity();
    } else {
      times[i] += Milliseconds(algorithms[i], runs);
    }
  }
  return times;
}

}  // namespace cuda
}  // namespace cubit
