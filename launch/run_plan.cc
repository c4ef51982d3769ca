// SPDX-License-Identifier: Apache-2.0

#include "launch/run_plan.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "models/mixers/sequence_groups.h"
#include "ops/workspace.h"
#include "parallel/sequence_layout.h"
#include "parallel/sharded_adamw.h"
#include "runtime/check.h"

namespace cubit {
namespace {

std::string HumanBytes(int64_t bytes) {
  const double mib = static_cast<double>(bytes) / (1 << 20);
  return mib < 1024 ? absl::StrFormat("%.1f MiB", mib)
                    : absl::StrFormat("%.2f GiB", mib / 1024);
}

Recompute RecomputeFrom(const RunConfig::Memory& memory) {
  switch (memory.recompute()) {
    case RunConfig::Recompute::none:
      return Recompute::kNone;
    case RunConfig::Recompute::selective:
      return Recompute::kSelective;
    case RunConfig::Recompute::full:
      return Recompute::kFull;
  }
  return Recompute::kNone;
}

int DpCpSize(const ParallelPlan& layout) {
  return layout.mesh.size(MeshAxis::kDp) * layout.mesh.size(MeshAxis::kCp);
}

}  // namespace

ParallelPlan SinglePlan(const RunConfig& config, const ModelConfig& model) {
  const absl::StatusOr<DeviceMesh> mesh = DeviceMesh::Create(1, 1, 1, 1);
  CUBIT_CHECK(mesh.ok()) << mesh.status();
  ParallelPlan plan(*mesh);
  plan.num_micro_batches =
      config.batch().global_batch_size() / config.batch().micro_batch_size();
  plan.parts = {{0, model.num_layers}};
  return plan;
}

std::vector<PipelineAction> ActionsOf(const ParallelPlan& layout, int rank) {
  auto actions = MakePipeline(layout.schedule, layout.pipeline_shape());
  CUBIT_CHECK(actions.ok()) << actions.status();
  return actions->at(static_cast<size_t>(layout.mesh.CoordinateOf(rank).pp));
}

StageShape StageShapeOf(const RunConfig& config, const ModelConfig& model,
                        const ParallelPlan& layout) {
  StageShape shape;
  shape.batch = config.batch().micro_batch_size();
  shape.seq_len = model.seq_len;
  shape.pipeline = layout.pipeline_shape();
  shape.recompute = RecomputeFrom(config.memory());
  return shape;
}

GradientReducerOptions ReducerOptions(const RunConfig& config) {
  GradientReducerOptions options;
  options.shard = config.parallel().zero_stage() == 1;
  return options;
}

int64_t OpsBytes(const RunConfig& config, const ParallelPlan& layout,
                 const LanguageModel& model) {
  const ModelConfig& sizes = model.config();
  WorkspaceQuery query;
  query.batch = config.batch().micro_batch_size();
  query.seq_len = sizes.seq_len;
  // Ulysses: whole sequences of a part of the heads.
  query.num_heads =
      model.shard().Local(sizes.num_heads) / model.shard().cp_size;
  query.head_dim = sizes.head_dim();
  query.hidden_size = sizes.hidden_size;
  query.ffn_hidden_size = sizes.ffn_hidden_size;
  query.vocab_size = sizes.vocab_size;
  query.num_elements =
      model.parameters().buffer_bytes() / SizeOf(DType::kFloat32);
  query.dtype = sizes.activation_dtype;
  const bool on_shards =
      model.shard().cp_size > 1 && layout.cp_method != CpMethod::kUlysses;
  query.plain_attention = !sizes.document_mask && !on_shards;
  if (on_shards && !sizes.document_mask) {
    const SequenceGroups groups(
        SequenceLayout(sizes.seq_len, model.shard().cp_size), query.batch,
        model.shard().Local(sizes.num_heads));
    query.pair_sequences = groups.sequences();
    query.pair_heads = groups.heads();
    query.pair_rows = groups.layout().chunk_len();
  }
  return OpsWorkspaceBytes(query);
}

void AlignParameters(const RunConfig& config, const ParallelPlan& layout,
                     LanguageModel* model) {
  model->parameters().AlignTo(
      BucketLayout::Alignment(DpCpSize(layout), ReducerOptions(config)));
}

RunPlan MakePlan(const RunConfig& config, const ParallelPlan& layout, int rank,
                 const LanguageModel& model) {
  const RunConfig::Batch& batch = config.batch();
  const int64_t seq_len = model.config().seq_len;
  const ParameterStore& parameters = model.parameters();
  RunPlan plan;
  plan.num_parameters = parameters.num_elements();
  plan.num_micro_batches = layout.num_micro_batches;
  plan.step_tokens = batch.global_batch_size() * seq_len;
  plan.step_flops = model.TrainFlops(
      batch.micro_batch_size() * layout.num_micro_batches, seq_len);
  plan.memory[MemoryCategory::kParameters] =
      parameters.buffer_bytes() +
      parameters.compute_bytes(model.config().activation_dtype);
  plan.memory[MemoryCategory::kGradients] = parameters.buffer_bytes();
  const GradientReducerOptions options = ReducerOptions(config);
  const BucketLayout buckets(parameters, DpCpSize(layout), options);
  plan.memory[MemoryCategory::kOptimizer] =
      ShardedAdamW::StateBytes(parameters, buckets);
  ModelStage stage(&model, StageShapeOf(config, model.config(), layout),
                   ActionsOf(layout, rank));
  Arena activations = Arena::Measuring();
  stage.LayOutActivations(activations);
  plan.memory[MemoryCategory::kActivations] = activations.used_bytes();
  Arena workspace = Arena::Measuring();
  stage.LayOutWorkspace(workspace);
  plan.memory[MemoryCategory::kWorkspace] =
      workspace.used_bytes() + OpsBytes(config, layout, model) +
      GradientReducer::WorkspaceBytes(parameters, layout.mesh);
  plan.process_bytes = ProcessDeviceBytes();
  return plan;
}

RunPlan MakePlan(const RunConfig& config, const LanguageModel& model) {
  return MakePlan(config, SinglePlan(config, model.config()), 0, model);
}

int64_t LargestMicroBatch(const RunConfig& config, const ParallelPlan& layout,
                          int rank, const LanguageModel& model,
                          int64_t memory_bytes) {
  const int64_t local =
      config.batch().global_batch_size() / layout.mesh.size(MeshAxis::kDp);
  for (int64_t size = local; size >= 1; --size) {
    if (local % size != 0) continue;
    RunConfig candidate = config;
    candidate.mutable_batch()->set_micro_batch_size(size);
    ParallelPlan other = layout;
    other.num_micro_batches = local / size;
    if (!CheckPipeline(other.schedule, other.pipeline_shape()).ok()) continue;
    if (MakePlan(candidate, other, rank, model).total_bytes() <= memory_bytes) {
      return size;
    }
  }
  return 0;
}

absl::Status CheckFits(const RunConfig& config, const ParallelPlan& layout,
                       int rank, const LanguageModel& model,
                       const RunPlan& plan, int64_t memory_bytes) {
  if (memory_bytes == 0 || plan.total_bytes() <= memory_bytes) {
    return absl::OkStatus();
  }
  RunConfig thrifty = config;
  const std::string what =
      absl::StrFormat("the run needs %s of memory and the device has %s",
                      HumanBytes(plan.total_bytes()), HumanBytes(memory_bytes));
  for (const auto policy :
       {config.memory().recompute(), RunConfig::Recompute::selective,
        RunConfig::Recompute::full}) {
    if (policy < config.memory().recompute()) continue;
    thrifty.mutable_memory()->set_recompute(policy);
    const int64_t fitting =
        LargestMicroBatch(thrifty, layout, rank, model, memory_bytes);
    if (fitting == 0) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        what, "; this fits: --set batch.micro_batch_size=", fitting,
        policy == config.memory().recompute()
            ? ""
            : absl::StrCat(" --set memory.recompute=",
                           RunConfig::Recompute::Word_Name(policy))));
  }
  return absl::FailedPreconditionError(absl::StrCat(
      what,
      "; with micro-batches of 1 sequence and memory.recompute=full it "
      "does not fit either: use a smaller model or model.seq_len"));
}

std::string RunPlan::ToString() const {
  std::string text =
      absl::StrFormat("%-16s %d\n", "parameters", num_parameters);
  for (int i = 0; i < kNumMemoryCategories; ++i) {
    const auto category = static_cast<MemoryCategory>(i);
    if (memory[category] == 0) continue;
    absl::StrAppend(
        &text, absl::StrFormat("%-16s %d bytes (%s)\n",
                               absl::StrCat("memory ", Name(category)),
                               memory[category], HumanBytes(memory[category])));
  }
  if (process_bytes > 0) {
    absl::StrAppend(
        &text, absl::StrFormat("%-16s %d bytes (%s), about\n", "memory process",
                               process_bytes, HumanBytes(process_bytes)));
  }
  absl::StrAppend(&text,
                  absl::StrFormat("%-16s %d bytes (%s)\n", "memory total",
                                  total_bytes(), HumanBytes(total_bytes())));
  absl::StrAppend(
      &text,
      absl::StrFormat("%-16s %d tokens, %d micro-batches, %.6g "
                      "FLOPs\n",
                      "one step", step_tokens, num_micro_batches, step_flops));
  return text;
}

}  // namespace cubit
