// SPDX-License-Identifier: Apache-2.0

#include "tests/integration/parallel_gate.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

#include "launch/config.h"
#include "launch/model_setup.h"
#include "launch/parallel_plan.h"
#include "ops/cross_entropy.h"
#include "runtime/check.h"
#include "runtime/communicator_single.h"
#include "runtime/philox.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr int64_t kVocab = 90;  // padded to 128: some ranks hold padding alone

// Everything that a layout may split is there in a number that it can split;
// T is no multiple of a tile.
constexpr char kModel[] =
    "model.num_layers=4 model.hidden_size=32 model.num_heads=4 "
    "model.ffn_hidden_size=64 model.seq_len=32 model.z_loss=1e-4 "
    "batch.global_batch_size=8 batch.micro_batch_size=1 "
    "optimizer.epsilon=1e-5 optimizer.grad_clip_norm=0.5 "
    "precision.compute=fp32";
// As large as a change of weights must be for the losses to show it.
constexpr double kLearningRate = 1e-3;

void Apply(const std::string& overrides, RunConfig* config) {
  for (absl::string_view one :
       absl::StrSplit(overrides, ' ', absl::SkipEmpty())) {
    const absl::Status status = ApplyOverride(std::string(one), config);
    CUBIT_CHECK(status.ok()) << status;
  }
}

RunConfig ConfigOf(const GateCell& cell) {
  RunConfig config;
  Apply(kModel, &config);
  Apply(cell.model, &config);
  Apply(cell.layout, &config);
  RunConfig::Parallel* parallel = config.mutable_parallel();
  parallel->set_tp_size(cell.tp);
  parallel->set_pp_size(cell.pp);
  parallel->set_cp_size(cell.cp);
  parallel->set_nodes(cell.world_size());
  return config;
}

ModelConfig ModelOf(const RunConfig& config) {
  auto model = MakeModelConfig(config, kVocab);
  CUBIT_CHECK(model.ok()) << model.status();
  return *std::move(model);
}

// Samples of step `step`: documents of many lengths, some targets masked.
Batch MakeBatch(int64_t step, int64_t first_sample, int64_t count,
                int64_t seq_len) {
  Batch batch;
  for (int64_t s = first_sample; s < first_sample + count; ++s) {
    Philox random(/*seed=*/7, absl::StrCat("sample ", step, " ", s));
    int32_t segment = 0;
    for (int64_t t = 0; t < seq_len; ++t) {
      const auto draw = [&](int64_t i) {
        return random.Bits(static_cast<uint64_t>(3 * t + i));
      };
      if (t > 0 && draw(0) % 11 == 0) ++segment;
      batch.segment_ids.push_back(segment);
      batch.inputs.push_back(static_cast<int32_t>(draw(1) % kVocab));
      const bool masked = draw(2) % 9 == 0;
      batch.targets.push_back(
          masked ? kIgnoredTarget : static_cast<int32_t>(draw(2) / 9 % kVocab));
      batch.valid_tokens += masked ? 0 : 1;
    }
  }
  return batch;
}

// This dp rank's micro-batches, in the order of the loader.
std::vector<Batch> BatchesOf(int64_t step, const TrainState& state,
                             const ParallelPlan& layout,
                             const RunConfig& config) {
  const int64_t size = config.batch().micro_batch_size();
  const int64_t dp = layout.mesh.size(MeshAxis::kDp);
  const int64_t dp_rank = state.mesh().coordinate().dp;
  std::vector<Batch> batches;
  for (int64_t m = 0; m < layout.num_micro_batches; ++m) {
    batches.push_back(MakeBatch(step, (m * dp + dp_rank) * size, size,
                                config.model().seq_len()));
  }
  return batches;
}

// Calls visit(flat index, index in the global tensor) for the elements of
// `parameter` whose sums this rank holds.
template <typename Visit>
void ForEachSummed(const Parameter& parameter, const GradientReducer& reducer,
                   int group_rank, const Visit& visit) {
  const ShardSpec& shard = parameter.shard;
  const Shape local = shard.local_shape();
  int64_t inner = 1;
  for (int i = shard.dim + 1; i < local.rank(); ++i) inner *= local[i];
  const int64_t run = shard.count * inner;
  const int64_t global_run = shard.global_shape[shard.dim] * inner;
  const int64_t begin = parameter.offset;
  const int64_t end = begin + local.num_elements();
  for (size_t b = 0; b < reducer.layout().buckets().size(); ++b) {
    const FlatRange part = reducer.layout().Part(b, group_rank);
    for (int64_t i = std::max(begin, part.begin); i < std::min(end, part.end);
         ++i) {
      const int64_t at = i - begin;
      visit(i, at / run * global_run + shard.begin * inner + at % run);
    }
  }
}

int GroupRank(const MeshCommunicators& mesh) {
  return mesh.coordinate().dp * mesh.size(MeshAxis::kCp) + mesh.coordinate().cp;
}

// Of a tensor of fp32 on the device.
std::vector<float> Download(ConstTensor tensor, Stream& stream) {
  std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
  CopyToHost(values.data(), tensor.data<float>(),
             tensor.num_elements() * static_cast<int64_t>(sizeof(float)),
             stream);
  stream.Synchronize();
  return values;
}

void AddErrors(TrainState& state, const GateReference& reference,
               std::map<std::string, GateError>* errors) {
  const ParameterStore& store = state.model().parameters();
  const std::vector<float> sums =
      Download(store.flat_gradients(), state.stream());
  for (const Parameter& parameter : store.parameters()) {
    const std::vector<float>& right = reference.gradient(parameter.name);
    GateError& error = (*errors)[parameter.name];
    ForEachSummed(parameter, state.reducer(), GroupRank(state.mesh()),
                  [&](int64_t flat, int64_t global) {
                    const double r = right.at(static_cast<size_t>(global));
                    const double d = sums.at(static_cast<size_t>(flat)) - r;
                    error.difference += d * d;
                    error.reference += r * r;
                    ++error.elements;
                  });
  }
}

absl::StatusOr<std::unique_ptr<TrainState>> MakeState(
    const RunConfig& config, const ParallelPlan& layout,
    MeshCommunicators* mesh) {
  CUBIT_ASSIGN_OR_RETURN(
      auto model,
      LanguageModel::Create(ModelOf(config), layout.ShardOf(mesh->rank())));
  CUBIT_ASSIGN_OR_RETURN(
      auto state, TrainState::Create(config, layout, std::move(model), mesh));
  CUBIT_RETURN_IF_ERROR(
      state->model().parameters().Initialize(config.seed(), state->stream()));
  return state;
}

std::map<std::string, std::vector<float>> AllGradients(TrainState& state) {
  std::map<std::string, std::vector<float>> gradients;
  for (const Parameter& p : state.model().parameters().parameters()) {
    gradients[p.name] = Download(p.gradient, state.stream());
  }
  return gradients;
}

absl::Status Step(int64_t step, const RunConfig& config,
                  const ParallelPlan& layout, TrainState* state, GateRun* run,
                  absl::FunctionRef<void()> after_backward) {
  const std::vector<Batch> batches = BatchesOf(step, *state, layout, config);
  int64_t local = 0;
  for (const Batch& batch : batches) local += batch.valid_tokens;
  CUBIT_ASSIGN_OR_RETURN(const int64_t tokens, state->SumOverDp(local));
  state->BeginStep();
  CUBIT_RETURN_IF_ERROR(
      state->ForwardBackward(batches, 1.0f / static_cast<float>(tokens)));
  after_backward();
  CUBIT_RETURN_IF_ERROR(state->Update(step + 1, kLearningRate));
  CUBIT_ASSIGN_OR_RETURN(const StepOutcome outcome, state->FinishStep());
  run->losses.push_back(outcome.loss / static_cast<double>(tokens));
  run->grad_norms.push_back(outcome.grad_norm);
  return absl::OkStatus();
}

// Makes `state`, which must outlive the mesh's use of it.
absl::Status RunSteps(const RunConfig& config, const ParallelPlan& layout,
                      MeshCommunicators* mesh, GateRun* run,
                      std::unique_ptr<TrainState>* state,
                      absl::FunctionRef<void()> after_first_backward) {
  CUBIT_ASSIGN_OR_RETURN(*state, MakeState(config, layout, mesh));
  for (int64_t step = 0; step < kGateSteps; ++step) {
    const auto after_backward = [&] {
      if (step == 0) after_first_backward();
    };
    CUBIT_RETURN_IF_ERROR(
        Step(step, config, layout, state->get(), run, after_backward));
  }
  return absl::OkStatus();
}

double RelativeError(double value, double reference) {
  return std::abs(value - reference) / std::abs(reference);
}

double Relative(const GateError& error) {
  return std::sqrt(error.difference / error.reference);
}

struct GateModel {
  const char* name;
  const char* overrides;
  const char* sharded;  // the method of cp that is the mixer's own
};

constexpr GateModel kModels[] = {
    {"cubit", "model.mixer=cubit", "wavefront"},
    {"cubit_share_docs",
     "model.mixer=cubit model.cubit.share=true data.document_mask=true "
     "model.mlp=swiglu model.norm=rms_norm model.bias=false",
     "wavefront"},
    {"cubit_nolrr_tied",
     "model.mixer=cubit model.cubit.lrr=false model.tied_embeddings=true",
     "wavefront"},
    {"transformer", "model.mixer=softmax model.softmax.qk_norm=true", "ring"},
    {"deltaformer_docs", "model.mixer=deltaformer data.document_mask=true",
     "wavefront"},
};

struct GateLayout {
  int dp, tp, pp, cp;
  const char* overrides;  // SHARDED stands for the mixer's own method
};

constexpr GateLayout kLayouts[] = {
    {2, 1, 1, 1, "parallel.zero_stage=0"},
    {2, 1, 1, 1, "parallel.zero_stage=1"},
    {4, 1, 1, 1, "batch.micro_batch_size=2"},
    {1, 2, 1, 1, ""},
    {1, 4, 1, 1, ""},
    {1, 1, 1, 2, "parallel.cp_method=SHARDED"},
    // Groups of two sequences.
    {1, 1, 1, 2, "parallel.cp_method=SHARDED batch.micro_batch_size=8"},
    {1, 1, 1, 2, "parallel.cp_method=ulysses"},
    {1, 1, 1, 4, "parallel.cp_method=SHARDED"},
    {1, 1, 1, 4, "parallel.cp_method=ulysses"},
    {1, 1, 2, 1, "parallel.pipeline_schedule=gpipe"},
    {1, 1, 2, 1, "parallel.pipeline_schedule=one_f_one_b"},
    {1, 1, 2, 1, "parallel.pipeline_schedule=interleaved"},
    {1, 1, 4, 1, "parallel.pipeline_schedule=one_f_one_b"},
    {2, 2, 1, 1, ""},
    {2, 1, 2, 1, "memory.recompute=full"},
    {1, 2, 2, 1, "memory.recompute=selective"},
    {1, 2, 1, 2, "parallel.cp_method=SHARDED"},
    {1, 2, 1, 2, "parallel.cp_method=ulysses"},
    {2, 1, 1, 2, "parallel.cp_method=SHARDED"},
    {1, 1, 2, 2, "parallel.cp_method=SHARDED"},
    {2, 2, 2, 1, "parallel.pipeline_schedule=interleaved"},
    {1, 2, 2, 2, "parallel.cp_method=SHARDED"},
    {2, 1, 2, 2, "parallel.cp_method=ulysses"},
    {2, 2, 1, 2, "parallel.cp_method=SHARDED parallel.zero_stage=0"},
    {2, 2, 2, 2, "parallel.cp_method=SHARDED"},
    {2, 2, 2, 2, "parallel.cp_method=ulysses parallel.zero_stage=0"},
};

// The values of `overrides`, for a name.
std::string Words(const std::string& overrides) {
  std::string words;
  for (absl::string_view one :
       absl::StrSplit(overrides, ' ', absl::SkipEmpty())) {
    const std::vector<std::string> parts = absl::StrSplit(one, '=');
    const std::string key = parts[0].substr(parts[0].rfind('.') + 1);
    const bool is_number =
        parts[1].find_first_not_of("0123456789") == std::string::npos;
    absl::StrAppend(&words, "_",
                    is_number ? absl::StrCat(key, parts[1]) : parts[1]);
  }
  return words;
}

GateCell MakeCell(const GateModel& model, const GateLayout& layout) {
  GateCell cell;
  cell.model = model.overrides;
  cell.dp = layout.dp;
  cell.tp = layout.tp;
  cell.pp = layout.pp;
  cell.cp = layout.cp;
  cell.layout =
      absl::StrReplaceAll(layout.overrides, {{"SHARDED", model.sharded}});
  cell.name = model.name;
  for (const auto& [axis, size] :
       {std::pair("dp", cell.dp), std::pair("tp", cell.tp),
        std::pair("pp", cell.pp), std::pair("cp", cell.cp)}) {
    if (size > 1) absl::StrAppend(&cell.name, "_", axis, size);
  }
  cell.name += Words(cell.layout);
  return cell;
}

}  // namespace

std::vector<GateCell> GateCells() {
  std::vector<GateCell> cells;
  for (const GateModel& model : kModels) {
    for (const GateLayout& layout : kLayouts) {
      cells.push_back(MakeCell(model, layout));
    }
  }
  return cells;
}

const GateReference& GateReference::Of(const GateCell& cell) {
  static std::mutex mutex;
  static auto& made = *new std::map<std::string, GateReference>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = made.find(cell.model);
  if (found != made.end()) return found->second;
  GateReference& reference = made[cell.model];
  GateCell alone = cell;
  alone.dp = alone.tp = alone.pp = alone.cp = 1;
  alone.layout = "";
  const RunConfig config = ConfigOf(alone);
  const ParallelPlan layout = SinglePlan(config, ModelOf(config));
  const auto mesh = MeshCommunicators::Single();
  auto state = MakeState(config, layout, mesh.get());
  CUBIT_CHECK(state.ok()) << state.status();
  for (int64_t step = 0; step < kGateSteps; ++step) {
    const absl::Status status =
        Step(step, config, layout, state->get(), &reference.run_, [&] {
          if (step == 0) reference.gradients_ = AllGradients(**state);
        });
    CUBIT_CHECK(status.ok()) << status;
  }
  return reference;
}

std::vector<std::string> GateReference::ParameterNames() const {
  std::vector<std::string> names;
  for (const auto& [name, gradient] : gradients_) names.push_back(name);
  return names;
}

absl::Status RunGateCell(const GateCell& cell,
                         std::unique_ptr<Communicator> world,
                         std::unique_ptr<Communicator> control,
                         const GateReference& reference, GateRun* run,
                         std::map<std::string, GateError>* errors) {
  const RunConfig config = ConfigOf(cell);
  CUBIT_ASSIGN_OR_RETURN(
      const ParallelPlan layout,
      MakeParallelPlan(config, ModelOf(config), world->size(), cell.device));
  CUBIT_ASSIGN_OR_RETURN(
      auto mesh, MeshCommunicators::Create(layout.mesh, std::move(world),
                                           std::move(control)));
  std::unique_ptr<TrainState> state;
  absl::Status status = RunSteps(config, layout, mesh.get(), run, &state,
                                 [&] { AddErrors(*state, reference, errors); });
  // Nobody waits for a rank that gave up.
  if (!status.ok()) mesh->Abort(status);
  return status;
}

std::map<std::string, GateError> SumGateErrors(
    const GateReference& reference, const std::map<std::string, GateError>& own,
    Communicator& control) {
  std::vector<double> sums;
  for (const std::string& name : reference.ParameterNames()) {
    const auto found = own.find(name);
    const GateError error = found == own.end() ? GateError() : found->second;
    sums.insert(sums.end(), {error.difference, error.reference,
                             static_cast<double>(error.elements)});
  }
  const Tensor all(sums.data(), DType::kFloat64,
                   {static_cast<int64_t>(sums.size())});
  Stream host;
  CUBIT_CHECK_OK(control.AllReduce(all, all, ReduceOp::kSum, host));
  std::map<std::string, GateError> errors;
  size_t i = 0;
  for (const std::string& name : reference.ParameterNames()) {
    errors[name] = {sums[i], sums[i + 1], static_cast<int64_t>(sums[i + 2])};
    i += 3;
  }
  return errors;
}

GateBudget FlatBudget(const GateReference& reference, double tolerance) {
  GateBudget budget;
  budget.loss = tolerance;
  for (const std::string& name : reference.ParameterNames()) {
    budget.gradients[name] = tolerance;
  }
  return budget;
}

namespace {

// "layers.3.mixer.scale" becomes "layers.mixer.scale".
std::string WithoutLayer(absl::string_view name) {
  std::vector<absl::string_view> parts = absl::StrSplit(name, '.');
  parts.erase(std::remove_if(parts.begin(), parts.end(),
                             [](absl::string_view part) {
                               int64_t number = 0;
                               return absl::SimpleAtoi(part, &number);
                             }),
              parts.end());
  return absl::StrJoin(parts, ".");
}

}  // namespace

GateBudget BudgetFrom(const GateReference& reference, const GateRun& run,
                      const std::map<std::string, GateError>& errors,
                      double factor, double unit) {
  GateBudget budget = FlatBudget(reference, factor * unit);
  for (size_t step = 0; step < run.losses.size(); ++step) {
    const double error =
        RelativeError(run.losses[step], reference.run().losses.at(step));
    budget.loss = std::max(budget.loss, factor * error);
  }
  // The error of a gradient of few elements is one draw of chance: layers share
  // what the worst of them needs.
  std::map<std::string, double> of_kind;
  for (const auto& [name, error] : errors) {
    double& worst = of_kind[WithoutLayer(name)];
    worst = std::max(worst, factor * Relative(error));
  }
  for (auto& [name, allowed] : budget.gradients) {
    const auto found = of_kind.find(WithoutLayer(name));
    if (found != of_kind.end()) allowed = std::max(allowed, found->second);
  }
  return budget;
}

std::vector<std::string> CompareWithReference(
    const GateReference& reference, const GateRun& run,
    const std::map<std::string, GateError>& errors, const GateBudget& budget) {
  std::vector<std::string> differences;
  const GateRun& right = reference.run();
  for (size_t step = 0; step < right.losses.size(); ++step) {
    const double error = RelativeError(run.losses.at(step), right.losses[step]);
    if (error <= budget.loss) continue;
    differences.push_back(absl::StrFormat(
        "loss of step %d: %.9g, alone %.9g (%.2g, allowed %.2g)", step + 1,
        run.losses[step], right.losses[step], error, budget.loss));
  }
  for (const std::string& name : reference.ParameterNames()) {
    if (errors.count(name) == 0) differences.push_back("no " + name);
  }
  for (const auto& [name, error] : errors) {
    const double allowed = budget.gradients.at(name);
    if (Relative(error) <= allowed &&
        error.elements >=
            static_cast<int64_t>(reference.gradient(name).size())) {
      continue;
    }
    differences.push_back(absl::StrFormat(
        "gradient of %s: relative error %.2g (allowed %.2g) over %d elements "
        "of %d",
        name, Relative(error), allowed, error.elements,
        reference.gradient(name).size()));
  }
  return differences;
}

}  // namespace cubit
