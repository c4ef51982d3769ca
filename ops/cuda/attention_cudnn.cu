// SPDX-License-Identifier: Apache-2.0
//
// Attention as graphs that cuDNN compiles into one kernel: the operations and
// their order are those its pattern matching knows (NVIDIA's documentation of
// the fused attention graphs). Plans are made once for every shape and kept.

#include <cudnn.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"

#include "ops/cuda/attention_engines.h"
#include "ops/cuda/cudnn_graph.cuh"
#include "runtime/check.h"
#include "runtime/cuda_check.h"
#include "runtime/logging.h"

namespace cubit {
namespace cuda {
namespace {

constexpr cudnnDataType_t kFloat = CUDNN_DATA_FLOAT;
constexpr cudnnDataType_t kBFloat16 = CUDNN_DATA_BFLOAT16;

CudnnShape ShapeOf(const ConstHeadTensor& x) {
  return {{x.batch, x.num_heads, x.seq_len, x.head_dim},
          {x.batch_stride, x.head_stride, x.seq_stride, 1}};
}

// The shapes that occur in a graph, and the numbers it is given.
struct Frame {
  Frame(const ConstHeadTensor& q, const ConstHeadTensor& k, bool causal)
      : causal(causal),
        scores(
            CudnnShape::Contiguous(q.batch, q.num_heads, q.seq_len, k.seq_len)),
        rows(CudnnShape::Contiguous(q.batch, q.num_heads, q.seq_len, 1)) {}

  // Ids of the numbers.
  void AddNumbers(CudnnGraph* graph) {
    scale = graph->Number();
    minus_infinity = graph->Number();
    one = graph->Number();
  }
  // y = mode(x, b) on scores.
  int64_t Apply(CudnnGraph* graph, cudnnPointwiseMode_t mode, int64_t x,
                int64_t b) const {
    const int64_t y = graph->Virtual(scores, kFloat);
    graph->Pointwise(mode, kFloat, x, b, y);
    return y;
  }
  int64_t Apply(CudnnGraph* graph, cudnnPointwiseMode_t mode, int64_t x) const {
    const int64_t y = graph->Virtual(scores, kFloat);
    graph->Pointwise(mode, x, y);
    return y;
  }
  // Scores with -inf where a query does not see the key.
  int64_t Mask(CudnnGraph* graph, int64_t x) const {
    if (!causal) return x;
    const int64_t row = graph->Virtual(scores, CUDNN_DATA_INT32);
    const int64_t column = graph->Virtual(scores, CUDNN_DATA_INT32);
    const int64_t visible = graph->Virtual(scores, CUDNN_DATA_BOOLEAN);
    const int64_t y = graph->Virtual(scores, kFloat);
    graph->Index(2, x, row);
    graph->Index(3, x, column);
    graph->Pointwise(CUDNN_POINTWISE_CMP_GE, CUDNN_DATA_BOOLEAN, row, column,
                     visible);
    graph->Select(visible, x, minus_infinity, y);
    return y;
  }

  bool causal;
  CudnnShape scores;
  CudnnShape rows;
  int64_t scale = 0;
  int64_t minus_infinity = 0;
  int64_t one = 0;
};

// A compiled graph and the ids of its tensors, in the order of the call's.
struct AttentionPlan {
  bool supported = false;
  CudnnPlan plan;
  std::vector<int64_t> tensors;
  // Of scale, -inf and 1; 0: not in the graph.
  std::array<int64_t, 3> numbers = {};
};

// out = softmax(scale q k^T) v; lse is what cuDNN calls the statistics: natural
// logarithms, as ours.
void AddForward(const AttentionForwardCall& call, CudnnGraph* graph,
                AttentionPlan* plan) {
  Frame frame(call.q, call.k, call.mask.causal);
  const int64_t q = graph->Input(ShapeOf(call.q), kBFloat16);
  const int64_t k = graph->Input(ShapeOf(call.k).Transposed(), kBFloat16);
  const int64_t v = graph->Input(ShapeOf(call.v), kBFloat16);
  const int64_t out = graph->Input(ShapeOf(call.out), kBFloat16);
  const int64_t lse = graph->Input(frame.rows, kFloat);
  frame.AddNumbers(graph);

  int64_t scores = graph->Virtual(frame.scores, kFloat);
  graph->Multiply(q, k, scores);
  scores = frame.Apply(graph, CUDNN_POINTWISE_MUL, scores, frame.scale);
  scores = frame.Mask(graph, scores);

  const int64_t maximum = graph->Virtual(frame.rows, kFloat);
  graph->Reduce(CUDNN_REDUCE_TENSOR_MAX, scores, maximum);
  const int64_t shifted =
      frame.Apply(graph, CUDNN_POINTWISE_SUB, scores, maximum);
  const int64_t weights = frame.Apply(graph, CUDNN_POINTWISE_EXP, shifted);
  const int64_t sum = graph->Virtual(frame.rows, kFloat);
  graph->Reduce(CUDNN_REDUCE_TENSOR_ADD, weights, sum);
  const int64_t log_sum = graph->Virtual(frame.rows, kFloat);
  graph->Pointwise(CUDNN_POINTWISE_LOG, sum, log_sum);
  graph->Pointwise(CUDNN_POINTWISE_ADD, kFloat, maximum, log_sum, lse);
  const int64_t normalized = graph->Virtual(frame.scores, kBFloat16);
  graph->Pointwise(CUDNN_POINTWISE_DIV, kFloat, weights, sum, normalized);
  graph->Multiply(normalized, v, out);

  plan->tensors = {q, k, v, out, lse};
  plan->numbers = {frame.scale, frame.causal ? frame.minus_infinity : 0, 0};
}

// d_q is written by its product at once: accumulating it in fp32 memory is the
// other way, in which the order of the additions varies from run to run.
void AddBackward(const AttentionBackwardCall& call, CudnnGraph* graph,
                 AttentionPlan* plan) {
  Frame frame(call.q, call.k, call.mask.causal);
  const int64_t q = graph->Input(ShapeOf(call.q), kBFloat16);
  const int64_t k = graph->Input(ShapeOf(call.k).Transposed(), kBFloat16);
  const int64_t v = graph->Input(ShapeOf(call.v).Transposed(), kBFloat16);
  const int64_t out = graph->Input(ShapeOf(call.out), kBFloat16);
  const int64_t lse = graph->Input(frame.rows, kFloat);
  const int64_t d_out = graph->Input(ShapeOf(call.d_out), kBFloat16);
  const int64_t d_q = graph->Input(ShapeOf(call.d_q), kBFloat16);
  const int64_t d_k = graph->Input(ShapeOf(call.d_k), kBFloat16);
  const int64_t d_v = graph->Input(ShapeOf(call.d_v), kBFloat16);
  const int64_t delta = graph->Input(frame.rows, kFloat);
  frame.AddNumbers(graph);

  const ConstHeadTensor& x = call.q;
  const int64_t products = graph->Virtual(
      CudnnShape::Contiguous(x.batch, x.num_heads, x.seq_len, x.head_dim),
      kFloat);
  graph->Pointwise(CUDNN_POINTWISE_MUL, kFloat, d_out, out, products);
  const int64_t row_sums = graph->Virtual(frame.rows, kFloat);
  graph->Reduce(CUDNN_REDUCE_TENSOR_ADD, products, row_sums);
  graph->Pointwise(CUDNN_POINTWISE_MUL, kFloat, row_sums, frame.one, delta);

  int64_t scores = graph->Virtual(frame.scores, kFloat);
  graph->Multiply(q, k, scores);
  scores = frame.Apply(graph, CUDNN_POINTWISE_MUL, scores, frame.scale);
  scores = frame.Apply(graph, CUDNN_POINTWISE_SUB, scores, lse);
  scores = frame.Mask(graph, scores);
  const int64_t weights = frame.Apply(graph, CUDNN_POINTWISE_EXP, scores);
  const int64_t weights_t =
      graph->Virtual(frame.scores.Transposed(), kBFloat16);
  graph->Reshape(weights, weights_t);
  graph->Multiply(weights_t, d_out, d_v);

  int64_t d_scores = graph->Virtual(frame.scores, kFloat);
  graph->Multiply(d_out, v, d_scores);
  d_scores = frame.Apply(graph, CUDNN_POINTWISE_SUB, d_scores, delta);
  d_scores = frame.Apply(graph, CUDNN_POINTWISE_MUL, d_scores, weights);
  d_scores = frame.Apply(graph, CUDNN_POINTWISE_MUL, d_scores, frame.scale);
  const int64_t d_scores_t =
      graph->Virtual(frame.scores.Transposed(), kBFloat16);
  graph->Reshape(d_scores, d_scores_t);
  graph->Multiply(d_scores_t, q, d_k);
  const int64_t k_rows = graph->Virtual(ShapeOf(call.k), kBFloat16);
  graph->Reshape(k, k_rows);
  graph->Multiply(d_scores, k_rows, d_q);

  plan->tensors = {q, k, v, out, lse, d_out, d_q, d_k, d_v, delta};
  plan->numbers = {frame.scale, frame.causal ? frame.minus_infinity : 0,
                   frame.one};
}

// cuDNN's state on the current device.
class Library {
 public:
  // The process's; null where cuDNN cannot be started.
  static Library* Get() {
    static Library* const library = new Library;  // outlives every stream
    return library->handle_ == nullptr ? nullptr : library;
  }

  // The plan of `key`, made by `add` if it is the first.
  template <typename Call>
  const AttentionPlan& PlanOf(const std::vector<int64_t>& key, const Call& call,
                              void (*add)(const Call&, CudnnGraph*,
                                          AttentionPlan*)) {
    const auto found = plans_.find(key);
    if (found != plans_.end()) return found->second;
    AttentionPlan& plan = plans_[key];
    CudnnGraph graph;
    add(call, &graph, &plan);
    plan.plan = graph.Build(handle_);
    plan.supported = graph.status() == CUDNN_STATUS_SUCCESS;
    LogDebug(absl::StrFormat(
        "cuDNN attention %s [%d, %d over %d, %d, %d]: %s, work space %d "
        "bytes%s",
        key[0] == 0 ? "forward" : "backward", key[1], key[4], key[5], key[2],
        key[3], cudnnGetErrorString(graph.status()), plan.plan.workspace_bytes,
        plan.plan.deterministic ? "" : ", marked as nondeterministic"));
    return plan;
  }

  void Run(const AttentionPlan& plan, float scale,
           const std::vector<const void*>& tensors, Stream& stream) {
    // Only read while the kernel is being launched.
    float numbers[] = {scale, -std::numeric_limits<float>::infinity(), 1.0f};
    std::vector<CudnnBinding> bindings;
    for (size_t i = 0; i < tensors.size(); ++i) {
      bindings.push_back({plan.tensors[i], const_cast<void*>(tensors[i])});
    }
    for (size_t i = 0; i < plan.numbers.size(); ++i) {
      if (plan.numbers[i] == 0) continue;
      bindings.push_back({plan.numbers[i], &numbers[i]});
    }
    CUBIT_CHECK(cudnnSetStream(handle_, CudaStream(stream)) ==
                CUDNN_STATUS_SUCCESS);
    // cuDNN refuses a null pointer even where it needs no work space.
    constexpr int64_t kSomeBytes = 256;
    RunCudnnPlan(
        handle_, plan.plan, bindings,
        CudaWorkspace(std::max(plan.plan.workspace_bytes, kSomeBytes), stream));
  }

  std::mutex& mutex() { return mutex_; }

 private:
  Library() {
    if (cudnnCreate(&handle_) != CUDNN_STATUS_SUCCESS) handle_ = nullptr;
  }

  std::mutex mutex_;
  cudnnHandle_t handle_ = nullptr;
  std::map<std::vector<int64_t>, AttentionPlan> plans_;
};

// A causal mask is of as many queries as keys: where there are fewer, graphs
// would need another one.
template <typename Call>
bool ServesMask(const Call& call) {
  return call.mask.segment_ids.empty() &&
         (!call.mask.causal || call.q.seq_len == call.k.seq_len);
}

// Can cuDNN read and write this view?
bool IsServed(const ConstHeadTensor& x) {
  return x.dtype == DType::kBFloat16 && x.head_dim % 8 == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % 16 == 0 &&
         x.batch_stride % 8 == 0 && x.seq_stride % 8 == 0 &&
         x.head_stride % 8 == 0;
}

// `views` begin with q and k.
std::vector<int64_t> KeyOf(int64_t pass, bool causal,
                           const std::vector<ConstHeadTensor>& views) {
  const ConstHeadTensor& x = views[0];
  std::vector<int64_t> key = {pass,       x.batch,   x.num_heads,
                              x.head_dim, x.seq_len, views[1].seq_len,
                              causal};
  for (const ConstHeadTensor& view : views) {
    key.push_back(view.batch_stride);
    key.push_back(view.seq_stride);
    key.push_back(view.head_stride);
  }
  return key;
}

}  // namespace

bool CudnnAttentionForward(const AttentionForwardCall& call, Stream& stream) {
  if (!ServesMask(call)) return false;
  const std::vector<ConstHeadTensor> views = {call.q, call.k, call.v, call.out};
  for (const ConstHeadTensor& view : views) {
    if (!IsServed(view)) return false;
  }
  Library* const library = Library::Get();
  if (library == nullptr) return false;
  const std::lock_guard<std::mutex> lock(library->mutex());
  const AttentionPlan& plan =
      library->PlanOf(KeyOf(0, call.mask.causal, views), call, AddForward);
  if (!plan.supported) return false;
  library->Run(
      plan, call.scale,
      {call.q.data, call.k.data, call.v.data, call.out.data, call.lse.raw()},
      stream);
  return true;
}

bool CudnnAttentionBackward(const AttentionBackwardCall& call, Stream& stream) {
  if (CudnnAttentionBackwardBytes(call.q.batch, call.q.num_heads,
                                  call.q.seq_len, call.k.seq_len) == 0) {
    return false;
  }
  if (!ServesMask(call) || call.accumulate.d_q || call.accumulate.d_k ||
      call.accumulate.d_v) {
    return false;
  }
  const std::vector<ConstHeadTensor> views = {call.q,   call.k,     call.v,
                                              call.out, call.d_out, call.d_q,
                                              call.d_k, call.d_v};
  for (const ConstHeadTensor& view : views) {
    if (!IsServed(view)) return false;
  }
  Library* const library = Library::Get();
  if (library == nullptr) return false;
  const std::lock_guard<std::mutex> lock(library->mutex());
  const AttentionPlan& plan =
      library->PlanOf(KeyOf(1, call.mask.causal, views), call, AddBackward);
  if (!plan.supported) return false;
  library->Run(plan, call.scale,
               {call.q.data, call.k.data, call.v.data, call.out.data,
                call.lse.raw(), call.d_out.data, call.d_q.data, call.d_k.data,
                call.d_v.data, call.delta.raw()},
               stream);
  return true;
}

int64_t CudnnAttentionBackwardBytes(int64_t batch, int64_t num_heads,
                                    int64_t num_queries, int64_t num_keys) {
  const int64_t bytes =
      batch * num_heads * num_queries * num_keys * SizeOf(DType::kBFloat16);
  return bytes > kMostCudnnScoreBytes ? 0 : bytes;
}

}  // namespace cuda
}  // namespace cubit
