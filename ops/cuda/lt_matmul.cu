// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "ops/cuda/lt_matmul.h"
#include "ops/cuda/lt_problem.h"
#include "ops/cuda/lt_trial.h"
#include "runtime/check.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace cuda {
namespace {

constexpr int kMostProposals = 16;
// Where cuBLASLt proposes fewer, its heuristic knows no good kernel for just
// these sizes, and what it proposes for others is tried too.
constexpr size_t kFewProposals = 4;
// Products of less are not worth the choice.
constexpr double kTimedFlops = 2e9;
// Runs of a candidate follow each other for about so long, twice: under load a
// GPU lowers its clock, and then another algorithm is the fastest than in a
// single run. At first for long enough that clocks rise to what they are in
// work, and on request until the GPU's power decides.
constexpr float kFirstMilliseconds = 5;
constexpr float kLoadMilliseconds = 100;
// So many of the first timing are timed under load, if they are no slower than
// the fastest by more.
constexpr size_t kMostUnderLoad = 5;
constexpr float kWorthLoad = 1.15f;

// Everything that the choice of an algorithm may depend on.
using Key = std::tuple<bool, bool, int64_t, int64_t, int64_t, DType, DType,
                       bool, Epilogue, uint32_t, uint32_t, uint32_t, uint32_t,
                       uint32_t, uint32_t>;

Key KeyOf(const LtProduct& p) {
  return Key(p.transpose_a, p.transpose_b, p.m, p.n, p.k, p.input, p.output,
             p.c != nullptr, p.epilogue, LtAlignment(p.a), LtAlignment(p.b),
             LtAlignment(p.c == nullptr ? p.d : p.c), LtAlignment(p.d),
             LtAlignment(p.bias), LtAlignment(p.aux));
}

// A kind of product and how it is computed. Lives as long as the process.
class Plan {
 public:
  explicit Plan(const LtProduct& product);

  void Run(const LtProduct& product, Stream& stream);
  // The next run chooses again, once in a process; false where it will not.
  bool AskForChoiceUnderLoad() {
    if (finalists_.size() < 2 || is_due_) return false;
    is_due_ = true;
    return true;
  }

 private:
  void Choose(const LtProduct& product, Stream& stream);
  void ChooseUnderLoad(const LtProduct& product, Stream& stream);

  const LtProblem problem_;
  const std::vector<LtAlgorithm> proposals_;
  std::optional<LtAlgorithm> chosen_;
  // Of the first choice, the fastest first; none once they were timed again.
  std::vector<LtAlgorithm> finalists_;
  bool is_due_ = false;  // to time them
};

Plan::Plan(const LtProduct& p)
    : problem_(p), proposals_(problem_.Proposals(kMostProposals)) {
  CUBIT_CHECK(!proposals_.empty()) << "no algorithm of cuBLASLt for [" << p.m
                                   << ", " << p.n << "], k " << p.k;
}

void Plan::Run(const LtProduct& p, Stream& stream) {
  if ((!chosen_.has_value() || is_due_) && !IsCaptured(stream)) {
    if (is_due_) {
      ChooseUnderLoad(p, stream);
    } else {
      Choose(p, stream);
    }
  }
  CUBIT_CUBLAS_CHECK(
      problem_.Launch(p, chosen_.value_or(proposals_[0]), p.d, stream));
}

// Those worth a choice under load by their times, the fastest first.
std::vector<LtAlgorithm> Finalists(const std::vector<LtAlgorithm>& algorithms,
                                   const std::vector<float>& times) {
  std::vector<size_t> order(algorithms.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return times[a] < times[b]; });
  std::vector<LtAlgorithm> finalists;
  for (const size_t i : order) {
    if (finalists.size() == kMostUnderLoad ||
        times[i] > kWorthLoad * times[order[0]]) {
      break;
    }
    finalists.push_back(algorithms[i]);
  }
  return finalists;
}

void Plan::Choose(const LtProduct& p, Stream& stream) {
  chosen_ = proposals_[0];
  if (!IsWorthTiming(p)) return;
  LtTrial trial(problem_, p, proposals_[0], stream);
  if (!trial.IsPossible()) return;
  std::vector<LtAlgorithm> candidates = proposals_;
  if (candidates.size() < kFewProposals) {
    const auto more = ProposalsOfNeighbours(p, problem_);
    candidates.insert(candidates.end(), more.begin(), more.end());
  }
  std::vector<LtAlgorithm> same;
  for (const LtAlgorithm& candidate : candidates) {
    if (trial.HasSameBits(candidate)) same.push_back(candidate);
  }
  if (same.size() < 2) return;
  finalists_ = Finalists(same, trial.Times(same, kFirstMilliseconds));
  chosen_ = finalists_[0];
}

void Plan::ChooseUnderLoad(const LtProduct& p, Stream& stream) {
  is_due_ = false;
  const std::vector<LtAlgorithm> finalists = std::exchange(finalists_, {});
  LtTrial trial(problem_, p, proposals_[0], stream);
  if (!trial.IsPossible()) return;
  const std::vector<float> times = trial.Times(finalists, kLoadMilliseconds);
  chosen_ = finalists[static_cast<size_t>(
      std::min_element(times.begin(), times.end()) - times.begin())];
}

// All kinds of products of the process.
struct Plans {
  std::mutex mutex;
  std::map<Key, std::unique_ptr<Plan>> of_kinds;

  static Plans& Get() {
    static auto* const plans = new Plans;  // outlives every stream
    return *plans;
  }
};

}  // namespace

void LtMatmul(const LtProduct& product, Stream& stream) {
  Plans& plans = Plans::Get();
  const std::lock_guard<std::mutex> lock(plans.mutex);
  std::unique_ptr<Plan>& plan = plans.of_kinds[KeyOf(product)];
  if (plan == nullptr) plan = std::make_unique<Plan>(product);
  plan->Run(product, stream);
}

int ChooseUnderLoad() {
  Plans& plans = Plans::Get();
  const std::lock_guard<std::mutex> lock(plans.mutex);
  int count = 0;
  for (auto& [key, plan] : plans.of_kinds) {
    if (plan->AskForChoiceUnderLoad()) ++count;
  }
  return count;
}

bool IsWorthTiming(const LtProduct& product) {
  return 2.0 * static_cast<double>(product.m) * static_cast<double>(product.n) *
             static_cast<double>(product.k) >=
         kTimedFlops;
}

bool IsCaptured(const Stream& stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  CUBIT_CUDA_CHECK(cudaStreamIsCapturing(CudaStream(stream), &status));
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace cuda
}  // namespace cubit
