// SPDX-License-Identifier: Apache-2.0

#include "launch/layout_costs.h"

#include <algorithm>
#include <cmath>

#include "launch/model_costs.h"
#include "runtime/dtype.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

// Reads and writes of [B Tl, D] activations by norms, rotations and what else
// is not fused with a product, in one layer; the loss and sums over tp are
// counted apart. Fitted to what these take in steps of Transformers of 125M,
// 350M and 1.3B on one H200, 2026-11, 5.3, 12.8 and 13.5 ms, less kernel_s of
// each kernel.
constexpr double kForwardPasses = 11;
constexpr double kBackwardPasses = 17;
// Kernels of a layer beside its mixer, counted: 4 products and 8 others; the
// backward has twice as many. One H200, 2026-11.
constexpr double kForwardKernels = 12;
constexpr double kBackwardKernels = 24;

constexpr double kWeightBytes = 4;  // fp32, as gradients are

class Counter {
 public:
  Counter(const ParallelPlan& plan, const RunConfig& config,
          const ModelConfig& model, const ModelCosts& costs,
          const SequenceCall& call)
      : plan_(plan),
        config_(config),
        model_(model),
        costs_(costs),
        call_(call),
        tp_(plan.mesh.size(MeshAxis::kTp)),
        cp_(plan.mesh.size(MeshAxis::kCp)),
        dp_(plan.mesh.size(MeshAxis::kDp)),
        pp_(plan.mesh.size(MeshAxis::kPp)),
        element_(static_cast<double>(SizeOf(model.activation_dtype))) {
    micro_batch_ = config.batch().micro_batch_size();
    const int64_t rows = micro_batch_ * model.seq_len / cp_;
    rows_ = static_cast<double>(rows);
  }

  LayoutCosts Count() const {
    LayoutCosts layout;
    layout.mixer = call_;
    layout.recomputes_mixers = RecomputesAll();
    layout.hidden_size = static_cast<double>(model_.hidden_size);
    for (size_t part = 0; part < plan_.parts.size(); ++part) {
      layout.parts.push_back(Part(part));
    }
    layout.pp_message_bytes = ActivationBytes() / tp_;
    for (int stage = 0; stage < pp_; ++stage) {
      layout.stages.push_back(Stage(stage, layout));
    }
    return layout;
  }

 private:
  bool has_head(size_t part) const { return part + 1 == plan_.parts.size(); }
  double num_micro_batches() const {
    return static_cast<double>(plan_.num_micro_batches);
  }
  bool RecomputesAll() const {
    return config_.memory().recompute() == RunConfig::Recompute::full;
  }
  // [B Tl, D].
  double ActivationBytes() const {
    return rows_ * static_cast<double>(model_.hidden_size) * element_;
  }
  // What a rank of tp reads and writes to sum a row's terms (rows_over_tp.h):
  // those of all ranks, a residual or what is there, and the sum.
  double SumBytes() const {
    return tp_ == 1 ? 0 : ActivationBytes() * (1 + 2.0 / tp_);
  }
  // All of a rank's, in chunks or not.
  double LogitsBytes() const {
    return rows_ * element_ * static_cast<double>(costs_.head_weights) /
           static_cast<double>(model_.hidden_size) / tp_;
  }
  double LogitsChunks() const {
    return std::ceil(LogitsBytes() /
                     static_cast<double>(model_.logits_chunk_bytes));
  }
  // The loss turns logits into their gradient; over tp it reads them first.
  double LossBytes() const { return (tp_ == 1 ? 2 : 3) * LogitsBytes(); }
  // What a rank sends of n bytes that a group of `size` gathers or scatters.
  static double Sent(double bytes, int size) {
    return bytes * (size - 1) / size;
  }

  PartCosts Part(size_t part) const {
    PartCosts result;
    result.num_layers = plan_.parts[part].count;
    result.forward = Forward(part);
    result.backward = Backward(part, result.forward);
    return result;
  }

  PassCosts Forward(size_t part) const {
    const double layers = static_cast<double>(plan_.parts[part].count);
    const bool head = has_head(part);
    const double share = static_cast<double>(micro_batch_) / (tp_ * cp_);
    PassCosts pass;
    pass.layer_flops =
        layers * share *
        (2.0 * static_cast<double>(costs_.layer_weights * costs_.seq_len));
    pass.head_flops = head ? costs_.HeadForwardFlops() * share : 0;
    pass.num_kernels = layers * kForwardKernels;
    pass.memory_bytes = layers * kForwardPasses * ActivationBytes() / tp_;
    if (head) pass.memory_bytes += LossBytes();
    pass.memory_bytes += (2 * layers + (part == 0 ? 1 : 0)) * SumBytes();
    const double gathers = 4 * layers + (part == 0 ? 1 : 0) + (head ? 1 : 0);
    pass.tp_bytes = gathers * Sent(ActivationBytes(), tp_);
    pass.tp_messages = gathers * (tp_ - 1);
    if (head) {
      pass.tp_bytes += (tp_ - 1) * rows_ * 3 * sizeof(float);
      pass.tp_messages += (tp_ - 1) * LogitsChunks();
    }
    return pass;
  }

  PassCosts Backward(size_t part, const PassCosts& forward) const {
    const double layers = static_cast<double>(plan_.parts[part].count);
    const bool head = has_head(part);
    PassCosts pass;
    pass.layer_flops = 2 * forward.layer_flops;
    pass.head_flops = 2 * forward.head_flops;
    pass.num_kernels = layers * kBackwardKernels;
    pass.memory_bytes = layers * kBackwardPasses * ActivationBytes() / tp_;
    pass.memory_bytes += (2 * layers + (head ? 1 : 0)) * SumBytes();
    const double back = 6 * layers + (part == 0 ? 1 : 0) + (head ? 1 : 0);
    pass.tp_bytes = back * Sent(ActivationBytes(), tp_);
    pass.tp_messages = back * (tp_ - 1);
    if (RecomputesAll()) AddForwardOfLayers(layers, forward, &pass);
    return pass;
  }

  void AddForwardOfLayers(double layers, const PassCosts& forward,
                          PassCosts* pass) const {
    pass->layer_flops += forward.layer_flops;
    pass->num_kernels += forward.num_kernels;
    pass->memory_bytes +=
        layers * (kForwardPasses * ActivationBytes() / tp_ + 2 * SumBytes());
    pass->tp_bytes += 4 * layers * Sent(ActivationBytes(), tp_);
    pass->tp_messages += 4 * layers * (tp_ - 1);
  }

  // Numbers a row of this rank has: a norm's, the fused projections', a mixer
  // result's, the MLP's before and after its non-linearity.
  double NormWidth() const {
    return static_cast<double>(model_.hidden_size) / tp_;
  }
  double ColumnsWidth() const {
    return static_cast<double>(call_.num_heads * call_.columns_per_head);
  }
  double ResultWidth() const {
    return static_cast<double>(call_.num_heads * call_.head_dim);
  }
  double ActivationWidth() const {
    return static_cast<double>(model_.ffn_hidden_size) / tp_;
  }
  double PreWidth() const {
    return ActivationWidth() * (model_.mlp == MlpKind::kSwiGlu ? 2 : 1);
  }

  // What one layer keeps for the backward of one micro-batch.
  double SavedBytesOfLayer() const {
    if (RecomputesAll()) return rows_ * NormWidth() * element_;
    // The mixer's result, the solution of a solve, and on shards P X.
    const bool shards = cp_ > 1 && plan_.cp_method == CpMethod::kSharded;
    const int results = call_.has_wavefront ? (shards ? 3 : 2) : 1;
    double kept =
        ColumnsWidth() + results * ResultWidth() + PreWidth() + 2 * NormWidth();
    if (config_.memory().recompute() == RunConfig::Recompute::none) {
      kept += 2 * NormWidth() + ActivationWidth();
    }
    return rows_ * kept * element_;
  }

  // Gradients of the residual stream, of a branch and of the final norm, of the
  // projections, the mixer's result and the MLP; logits of a chunk of rows.
  double WorkspaceBytes(bool head) const {
    const double layer =
        rows_ * element_ *
        (3 * NormWidth() + ColumnsWidth() + ResultWidth() + PreWidth());
    if (!head) return layer;
    return layer + LogitsBytes() / LogitsChunks();
  }

  StageCosts Stage(int stage, const LayoutCosts& layout) const {
    StageCosts result;
    double layers = 0;
    double flops = 0;
    for (int chunk = 0; chunk < plan_.num_chunks; ++chunk) {
      const size_t index = plan_.PartOf(stage, chunk);
      const PartCosts& part = layout.parts[index];
      layers += static_cast<double>(part.num_layers);
      result.num_layers += part.num_layers;
      flops +=
          static_cast<double>(part.num_layers) * costs_.LayerForwardFlops() +
          (has_head(index) ? costs_.HeadForwardFlops() : 0);
      result.tp_bytes += num_micro_batches() *
                         (part.forward.tp_bytes + part.backward.tp_bytes);
      // An activation to the part after it, a gradient to the part before it.
      const int borders = (has_head(index) ? 0 : 1) + (index == 0 ? 0 : 1);
      if (pp_ > 1) {
        result.pp_bytes +=
            num_micro_batches() * borders * layout.pp_message_bytes;
      }
    }
    result.num_parameters = costs_.NumParameters(result.num_layers, tp_,
                                                 stage == 0, stage == pp_ - 1);
    result.step_model_flops = 3 * flops * num_micro_batches() *
                              static_cast<double>(micro_batch_) / (tp_ * cp_);
    const SequenceBytes sequence = BytesOf(plan_.cp_method, call_);
    result.cp_bytes =
        num_micro_batches() * layers *
        (sequence.total() + (RecomputesAll() ? sequence.forward : 0));
    CountState(stage, layers, &result);
    return result;
  }

  void CountState(int stage, double layers, StageCosts* result) const {
    const double parameters = static_cast<double>(result->num_parameters);
    const int replicas = dp_ * cp_;
    const bool sharded = config_.parallel().zero_stage() == 1;
    const double whole = Sent(kWeightBytes * parameters, replicas);
    result->gradient_bytes = sharded ? whole : 2 * whole;
    result->weight_bytes = sharded ? whole : 0;
    result->num_updated = parameters / (sharded ? replicas : 1);
    const double copy = model_.activation_dtype == DType::kFloat32 ? 0 : 2;
    result->copy_bytes = sharded && replicas > 1 && copy > 0
                             ? parameters * (kWeightBytes + copy)
                             : 0;
    result->state_bytes =
        parameters * (kWeightBytes + copy + 4 + 8.0 / (sharded ? replicas : 1));
    const int64_t live =
        MaxLiveActivations(plan_.schedule, plan_.pipeline_shape(), stage);
    result->activation_bytes = static_cast<double>(live) / plan_.num_chunks *
                               layers * SavedBytesOfLayer();
    result->workspace_bytes = WorkspaceBytes(stage == pp_ - 1);
  }

  const ParallelPlan& plan_;
  const RunConfig& config_;
  const ModelConfig& model_;
  const ModelCosts& costs_;
  const SequenceCall& call_;
  const int tp_;
  const int cp_;
  const int dp_;
  const int pp_;
  const double element_;
  int64_t micro_batch_ = 1;
  double rows_ = 0;  // B Tl
};

}  // namespace

absl::StatusOr<LayoutCosts> MakeLayoutCosts(const ParallelPlan& plan,
                                            const RunConfig& config,
                                            const ModelConfig& model) {
  CUBIT_ASSIGN_OR_RETURN(const ModelCosts costs, MakeModelCosts(model));
  CUBIT_ASSIGN_OR_RETURN(
      const SequenceCall call,
      MakeSequenceCall(model, config.batch().micro_batch_size(),
                       plan.mesh.size(MeshAxis::kTp),
                       plan.mesh.size(MeshAxis::kCp)));
  return Counter(plan, config, model, costs, call).Count();
}

}  // namespace cubit
