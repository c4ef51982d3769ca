// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <tuple>
#include <vector>

#include <cublasLt.h>

#include "ops/cuda/lt_matmul.h"
#include "runtime/check.h"
#include "runtime/command_line.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace cuda {
namespace {

// What cuBLASLt may use beside the operands; NVIDIA's advice for Hopper.
constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;
constexpr int kMaxCandidates = 16;
// Products of less are not worth the choice.
constexpr double kTimedFlops = 2e9;
// Runs of a candidate follow each other for about so long, twice: under load a
// GPU lowers its clock, and then another algorithm is the fastest than in a
// single run. At first for long enough that clocks rise to what they are in
// work, and on request until the GPU's power decides.
constexpr float kFirstMilliseconds = 5;
constexpr float kLoadMilliseconds = 100;
constexpr float kShortestRun = 0.1f;  // in ms; shorter ones are not awaited
// What is slower than the fastest by more in the first round is out.
constexpr float kWorthASecondRound = 1.25f;
// So many of the first timing are timed under load, if they are no slower than
// the fastest by more.
constexpr size_t kMostUnderLoad = 5;
constexpr float kWorthLoad = 1.15f;

[[noreturn]] void CublasFailure(const char* expression, cublasStatus_t status,
                                int line) {
  std::fprintf(stderr, "%s:%d: %s failed: %s\n", __FILE__, line, expression,
               cublasLtGetStatusString(status));
  std::_Exit(kExitFailed);
}

#define CUBIT_CUBLAS_CHECK(expression)                           \
  do {                                                           \
    const cublasStatus_t cubit_cublas_status = (expression);     \
    if (cubit_cublas_status != CUBLAS_STATUS_SUCCESS) {          \
      CublasFailure(#expression, cubit_cublas_status, __LINE__); \
    }                                                            \
  } while (false)

cublasLtHandle_t Handle() {
  static const cublasLtHandle_t handle = [] {
    cublasLtHandle_t created = nullptr;
    CUBIT_CUBLAS_CHECK(cublasLtCreate(&created));
    return created;
  }();
  return handle;
}

cudaDataType_t CudaType(DType dtype) {
  CUBIT_CHECK(dtype == DType::kFloat32 || dtype == DType::kBFloat16)
      << Name(dtype);
  return dtype == DType::kFloat32 ? CUDA_R_32F : CUDA_R_16BF;
}

cublasLtEpilogue_t LtEpilogue(Epilogue epilogue) {
  switch (epilogue) {
    case Epilogue::kNone:
      return CUBLASLT_EPILOGUE_DEFAULT;
    case Epilogue::kBias:
      return CUBLASLT_EPILOGUE_BIAS;
    case Epilogue::kGelu:
      return CUBLASLT_EPILOGUE_GELU_AUX;
    case Epilogue::kGeluBias:
      return CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
    case Epilogue::kGeluGradient:
      return CUBLASLT_EPILOGUE_DGELU;
  }
  return CUBLASLT_EPILOGUE_DEFAULT;
}

bool HasAux(Epilogue epilogue) {
  return epilogue == Epilogue::kGelu || epilogue == Epilogue::kGeluBias ||
         epilogue == Epilogue::kGeluGradient;
}

// The largest power of two, at most a vector's 16 bytes, that divides an
// address: no kernel asks for more.
uint32_t Alignment(const void* pointer) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer) | 16;
  return static_cast<uint32_t>(address & (~address + 1));
}

// Everything that the choice of an algorithm may depend on.
using Key = std::tuple<bool, bool, int64_t, int64_t, int64_t, DType, DType,
                       bool, Epilogue, uint32_t, uint32_t, uint32_t, uint32_t,
                       uint32_t, uint32_t>;

Key KeyOf(const LtProduct& p) {
  return Key(p.transpose_a, p.transpose_b, p.m, p.n, p.k, p.input, p.output,
             p.c != nullptr, p.epilogue, Alignment(p.a), Alignment(p.b),
             Alignment(p.c == nullptr ? p.d : p.c), Alignment(p.d),
             Alignment(p.bias), Alignment(p.aux));
}

// A kind of product: cuBLASLt's descriptors, and how it is computed. Lives as
// long as the process.
class Plan {
 public:
  explicit Plan(const LtProduct& product);

  void Run(const LtProduct& product, Stream& stream);
  // The next run chooses again, once in a process; false where it will not.
  bool AskForChoiceUnderLoad() {
    if (choice_ != Choice::kFirst) return false;
    choice_ = Choice::kDue;
    return true;
  }

 private:
  using Candidate = cublasLtMatmulHeuristicResult_t;
  enum class Choice {
    kNone,   // nothing is chosen, or there is no choice
    kFirst,  // by the first timing
    kDue,    // under load in the next run
    kFinal,  // under load
  };

  template <typename T>
  void Set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    CUBIT_CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(operation_, attribute,
                                                      &value, sizeof(value)));
  }
  void Propose(const LtProduct& product);
  void SetPointers(const LtProduct& product);
  void Launch(const LtProduct& product, const cublasLtMatmulAlgo_t& algorithm,
              void* d, Stream& stream);
  void Choose(const LtProduct& product, Stream& stream);
  void ChooseUnderLoad(const LtProduct& product, Stream& stream);
  uint64_t HashOfResult(const LtProduct& product, const Candidate& candidate,
                        void* d, Stream& stream);
  float Milliseconds(const LtProduct& product, const Candidate& candidate,
                     int runs, void* d, Stream& stream);
  std::vector<const Candidate*> WithSameBits(const LtProduct& product, void* d,
                                             Stream& stream);
  std::vector<const Candidate*> WorthLoad() const;
  std::vector<float> Times(const LtProduct& product,
                           const std::vector<const Candidate*>& candidates,
                           float milliseconds, void* d, Stream& stream);

  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr;
  cublasLtMatrixLayout_t b_ = nullptr;
  cublasLtMatrixLayout_t d_ = nullptr;
  std::vector<Candidate> candidates_;  // the first is cuBLASLt's proposal
  // Those whose result is that of the first, if there is a choice.
  std::vector<const Candidate*> same_;
  std::vector<float> times_;  // of same_, first
  const Candidate* chosen_ = nullptr;
  Choice choice_ = Choice::kNone;
};

cublasLtMatrixLayout_t Layout(DType dtype, int64_t rows, int64_t columns) {
  cublasLtMatrixLayout_t layout = nullptr;
  CUBIT_CUBLAS_CHECK(cublasLtMatrixLayoutCreate(
      &layout, CudaType(dtype), static_cast<uint64_t>(rows),
      static_cast<uint64_t>(columns), rows));
  return layout;
}

Plan::Plan(const LtProduct& p) {
  CUBIT_CHECK(p.m >= 1 && p.n >= 1 && p.k >= 1)
      << p.m << ", " << p.n << ", " << p.k;
  CUBIT_CUBLAS_CHECK(
      cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  Set(CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  Set(CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  Set(CUBLASLT_MATMUL_DESC_EPILOGUE, LtEpilogue(p.epilogue));
  if (HasAux(p.epilogue)) Set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, p.m);
  a_ = p.transpose_a ? Layout(p.input, p.k, p.m) : Layout(p.input, p.m, p.k);
  b_ = p.transpose_b ? Layout(p.input, p.n, p.k) : Layout(p.input, p.k, p.n);
  d_ = Layout(p.output, p.m, p.n);
  SetPointers(p);  // what is proposed may depend on their alignment
  Propose(p);
}

void Plan::Propose(const LtProduct& p) {
  cublasLtMatmulPreference_t preference = nullptr;
  CUBIT_CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference));
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute,
                       const auto& value) {
    CUBIT_CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(
        preference, attribute, &value, sizeof(value)));
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
      static_cast<uint64_t>(kWorkspaceBytes));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, Alignment(p.a));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, Alignment(p.b));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
      Alignment(p.c == nullptr ? p.d : p.c));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, Alignment(p.d));
  // Partial sums of a split k are added in a fixed order, never by atomics in
  // the result.
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  candidates_.resize(kMaxCandidates);
  int found = 0;
  CUBIT_CUBLAS_CHECK(cublasLtMatmulAlgoGetHeuristic(
      Handle(), operation_, a_, b_, d_, d_, preference, kMaxCandidates,
      candidates_.data(), &found));
  CUBIT_CUBLAS_CHECK(cublasLtMatmulPreferenceDestroy(preference));
  CUBIT_CHECK_GE(found, 1) << "no algorithm of cuBLASLt for [" << p.m << ", "
                           << p.n << "], k " << p.k;
  candidates_.resize(static_cast<size_t>(found));
}

void Plan::SetPointers(const LtProduct& p) {
  if (p.bias != nullptr) Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
  if (p.aux != nullptr) Set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, p.aux);
}

void Plan::Launch(const LtProduct& p, const cublasLtMatmulAlgo_t& algorithm,
                  void* d, Stream& stream) {
  SetPointers(p);
  const float alpha = 1.0f;
  const float beta = p.c == nullptr ? 0.0f : 1.0f;
  void* workspace = CudaWorkspace(kWorkspaceBytes, stream);
  CUBIT_CUBLAS_CHECK(
      cublasLtMatmul(Handle(), operation_, &alpha, p.a, a_, p.b, b_, &beta,
                     p.c == nullptr ? d : p.c, d_, d, d_, &algorithm, workspace,
                     static_cast<size_t>(kWorkspaceBytes), CudaStream(stream)));
}

void Plan::Run(const LtProduct& p, Stream& stream) {
  if (chosen_ == nullptr) Choose(p, stream);
  if (choice_ == Choice::kDue) ChooseUnderLoad(p, stream);
  Launch(p, (chosen_ == nullptr ? &candidates_[0] : chosen_)->algo, p.d,
         stream);
}

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

uint64_t Plan::HashOfResult(const LtProduct& p, const Candidate& candidate,
                            void* d, Stream& stream) {
  Launch(p, candidate.algo, d, stream);
  // Behind what cuBLASLt may use; HashKernel runs when it has finished.
  auto* sum =
      static_cast<unsigned long long*>(CudaWorkspace(kWorkspaceBytes, stream));
  SetZero(sum, sizeof(*sum), stream);
  constexpr int kBlocks = 512;
  constexpr int kThreads = 256;
  HashKernel<<<kBlocks, kThreads, 0, CudaStream(stream)>>>(
      static_cast<const uint32_t*>(d), p.m * p.n * SizeOf(p.output) / 4, sum);
  CUBIT_CUDA_CHECK_LAUNCH();
  unsigned long long result = 0;
  CopyToHost(&result, sum, sizeof(result), stream);
  stream.Synchronize();
  return result;
}

// The mean of runs that follow each other, after one that is not counted.
float Plan::Milliseconds(const LtProduct& p, const Candidate& candidate,
                         int runs, void* d, Stream& stream) {
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  CUBIT_CUDA_CHECK(cudaEventCreate(&begin));
  CUBIT_CUDA_CHECK(cudaEventCreate(&end));
  Launch(p, candidate.algo, d, stream);
  CUBIT_CUDA_CHECK(cudaEventRecord(begin, CudaStream(stream)));
  for (int i = 0; i < runs; ++i) Launch(p, candidate.algo, d, stream);
  CUBIT_CUDA_CHECK(cudaEventRecord(end, CudaStream(stream)));
  CUBIT_CUDA_CHECK(cudaEventSynchronize(end));
  float time = 0;
  CUBIT_CUDA_CHECK(cudaEventElapsedTime(&time, begin, end));
  CUBIT_CUDA_CHECK(cudaEventDestroy(begin));
  CUBIT_CUDA_CHECK(cudaEventDestroy(end));
  return time / static_cast<float>(runs);
}

// Parts of k that are summed apart.
int32_t SplitsOf(const cublasLtMatmulHeuristicResult_t& candidate) {
  int32_t splits = 0;
  size_t written = 0;
  CUBIT_CUBLAS_CHECK(cublasLtMatmulAlgoConfigGetAttribute(
      &candidate.algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits, sizeof(splits),
      &written));
  return std::max(splits, 1);
}

// Runs of a product that adds to its result go into memory of their own, which
// may not be had: then the proposal stays, with the same bits.
class TrialResult {
 public:
  explicit TrialResult(const LtProduct& p) {
    if (p.c != p.d) {
      data_ = p.d;
      return;
    }
    owned_ = cudaMalloc(&data_, static_cast<size_t>(p.m * p.n) *
                                    static_cast<size_t>(SizeOf(p.output))) ==
             cudaSuccess;
    if (!owned_) {
      cudaGetLastError();  // the next check is to see its own error
      data_ = nullptr;
    }
  }
  ~TrialResult() {
    if (owned_) CUBIT_CUDA_CHECK(cudaFree(data_));
  }
  TrialResult(const TrialResult&) = delete;
  TrialResult& operator=(const TrialResult&) = delete;

  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
  bool owned_ = false;
};

size_t IndexOfLeast(const std::vector<float>& values) {
  return static_cast<size_t>(std::min_element(values.begin(), values.end()) -
                             values.begin());
}

void Plan::Choose(const LtProduct& p, Stream& stream) {
  if (IsCaptured(stream)) return;
  chosen_ = &candidates_[0];
  if (!IsWorthTiming(p) || candidates_.size() == 1) return;
  const TrialResult trial(p);
  if (trial.data() == nullptr) return;
  same_ = WithSameBits(p, trial.data(), stream);
  if (same_.size() == 1) return;
  times_ = Times(p, same_, kFirstMilliseconds, trial.data(), stream);
  chosen_ = same_[IndexOfLeast(times_)];
  choice_ = Choice::kFirst;
}

void Plan::ChooseUnderLoad(const LtProduct& p, Stream& stream) {
  if (IsCaptured(stream)) return;
  choice_ = Choice::kFinal;
  const std::vector<const Candidate*> finalists = WorthLoad();
  if (finalists.size() == 1) return;  // the chosen one
  const TrialResult trial(p);
  if (trial.data() == nullptr) return;
  chosen_ = finalists[IndexOfLeast(
      Times(p, finalists, kLoadMilliseconds, trial.data(), stream))];
}

// By the first timing.
std::vector<const Plan::Candidate*> Plan::WorthLoad() const {
  std::vector<size_t> order(same_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [this](size_t a, size_t b) {
    return times_[a] < times_[b];
  });
  std::vector<const Candidate*> finalists;
  for (const size_t i : order) {
    if (finalists.size() == kMostUnderLoad ||
        times_[i] > kWorthLoad * times_[order[0]]) {
      break;
    }
    finalists.push_back(same_[i]);
  }
  return finalists;
}

// The candidates whose result is that of the first, which is one of them.
std::vector<const Plan::Candidate*> Plan::WithSameBits(const LtProduct& p,
                                                       void* d,
                                                       Stream& stream) {
  std::vector<const Candidate*> same;
  uint64_t hash = 0;
  for (const Candidate& candidate : candidates_) {
    if (SplitsOf(candidate) != SplitsOf(candidates_[0])) continue;
    const uint64_t result = HashOfResult(p, candidate, d, stream);
    if (same.empty()) hash = result;
    if (result == hash) same.push_back(&candidate);
  }
  return same;
}

// Of runs of each one behind the other for about `milliseconds`, twice;
// infinity for what the first round has shown to be far slower.
std::vector<float> Plan::Times(const LtProduct& p,
                               const std::vector<const Candidate*>& candidates,
                               float milliseconds, void* d, Stream& stream) {
  const float once = Milliseconds(p, *candidates[0], 1, d, stream);
  const int runs = std::max(
      2, static_cast<int>(milliseconds / std::max(once, kShortestRun)));
  std::vector<float> times;
  for (const Candidate* candidate : candidates) {
    times.push_back(Milliseconds(p, *candidate, runs, d, stream));
  }
  // Backwards, so that a clock on its way down meets all alike.
  const float limit = kWorthASecondRound * times[IndexOfLeast(times)];
  for (size_t i = candidates.size(); i-- > 0;) {
    if (times[i] > limit) {
      times[i] = std::numeric_limits<float>::infinity();
    } else {
      times[i] += Milliseconds(p, *candidates[i], runs, d, stream);
    }
  }
  return times;
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
