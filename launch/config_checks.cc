// SPDX-License-Identifier: Apache-2.0

#include "launch/config_checks.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"

#include "launch/config.h"
#include "launch/evaluation_tasks.h"

namespace cubit {
namespace {

// The divisor of n that is nearest to `wanted`.
int64_t NearestDivisor(int64_t n, int64_t wanted) {
  for (int64_t distance = 0; distance <= n; ++distance) {
    for (int64_t divisor : {wanted - distance, wanted + distance}) {
      if (divisor >= 1 && divisor <= n && n % divisor == 0) return divisor;
    }
  }
  return 1;
}

// "768 or 776": the multiples of `step` around n.
std::string MultiplesAround(int64_t n, int64_t step) {
  const int64_t below = n / step * step;
  if (below == 0) return absl::StrCat(step);
  return absl::StrCat(below, " or ", below + step);
}

// Collects what is wrong.
class Checker {
 public:
  void Fail(std::string problem) { problems_.push_back(std::move(problem)); }

  template <typename Number>
  bool Range(absl::string_view key, Number value, Number least, Number most) {
    if (value >= least && value <= most) return true;  // false for NaN
    Fail(absl::StrCat(key, " is ", value, "; from ", least, " to ", most,
                      " is possible"));
    return false;
  }
  bool Positive(absl::string_view key, double value, double most) {
    if (value > 0 && value <= most) return true;
    Fail(absl::StrCat(key, " is ", value, "; above 0 and up to ", most,
                      " is possible"));
    return false;
  }

  absl::Status status() const {
    if (problems_.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrJoin(problems_, "\n"));
  }

 private:
  std::vector<std::string> problems_;
};

using Int = int64_t;

void CheckHeads(const RunConfig::Model& model, Checker* checker) {
  const Int hidden = model.hidden_size();
  const Int heads = model.num_heads();
  if (hidden % heads != 0) {
    checker->Fail(absl::StrCat(
        "model.hidden_size ", hidden, " is not divisible by model.num_heads ",
        heads, "; nearest: model.hidden_size=", MultiplesAround(hidden, heads),
        ", or model.num_heads=", NearestDivisor(hidden, heads)));
    return;
  }
  const Int head_dim = hidden / heads;
  if (model.positional_encoding() == RunConfig::PositionalEncoding::rope &&
      head_dim % 2 != 0) {
    checker->Fail(absl::StrCat(
        "rope turns pairs of elements, and a head of model.hidden_size ",
        hidden, " / model.num_heads ", heads, " has ", head_dim,
        "; nearest: model.hidden_size=", MultiplesAround(hidden, 2 * heads)));
  }
}

// Options of another mixer would have no effect: likely a slip.
void CheckMixerOptions(const RunConfig::Model& model, Checker* checker) {
  const std::string chosen = RunConfig::Mixer::Word_Name(model.mixer());
  const auto unused = [&](absl::string_view mixer, absl::string_view option,
                          bool changed, absl::string_view value) {
    if (!changed || chosen == mixer) return;
    checker->Fail(absl::StrCat(
        "model.", mixer, ".", option, " is set, and model.mixer is ", chosen,
        ", which has no such option; set model.", mixer, ".", option, "=",
        value, ", or model.mixer=", mixer));
  };
  const auto& cubit = model.cubit();
  unused("cubit", "share", cubit.share(), "false");
  unused("cubit", "lrr", !cubit.lrr(), "true");
  unused("cubit", "lambda_init", cubit.lambda_init() != 1e-10, "1e-10");
  unused("softmax", "qk_norm", model.softmax().qk_norm(), "false");
  const auto& delta = model.deltaformer();
  unused("deltaformer", "w", delta.w() != RunConfig::DeltaWeight::own, "own");
  unused("deltaformer", "beta", delta.beta() != RunConfig::DeltaBeta::sigmoid,
         "sigmoid");
}

void CheckModel(const RunConfig::Model& model, Checker* checker) {
  checker->Range<Int>("model.num_layers", model.num_layers(), 1, 1000);
  const bool sizes =
      checker->Range<Int>("model.hidden_size", model.hidden_size(), 1,
                          1 << 16) &
      checker->Range<Int>("model.num_heads", model.num_heads(), 1, 1 << 12);
  if (sizes) CheckHeads(model, checker);
  checker->Range<Int>("model.ffn_hidden_size", model.ffn_hidden_size(), 0,
                      1 << 20);
  checker->Range<Int>("model.vocab_size", model.vocab_size(), 0, 1 << 24);
  checker->Range<Int>("model.seq_len", model.seq_len(), 2, 1 << 20);
  checker->Positive("model.norm_epsilon", model.norm_epsilon(), 0.1);
  checker->Range<double>("model.rope_base", model.rope_base(), 2, 1e12);
  checker->Range<double>("model.z_loss", model.z_loss(), 0, 1);
  checker->Range<double>("model.init_std", model.init_std(), 0, 10);
  checker->Positive("model.cubit.lambda_init", model.cubit().lambda_init(),
                    100);
  CheckMixerOptions(model, checker);
}

void CheckData(const RunConfig::Data& data, Checker* checker) {
  for (const std::string& path : data.path()) {
    if (path.empty()) checker->Fail("data.path has an empty path");
  }
  if (data.weight_size() > 0 && data.weight_size() != data.path_size()) {
    checker->Fail(absl::StrCat("data.weight has ", data.weight_size(),
                               " values for ", data.path_size(),
                               " paths; give one for each path, or none"));
  }
  for (double weight : data.weight()) {
    checker->Positive("data.weight", weight, 1e9);
  }
}

void CheckOptimizer(const RunConfig::Optimizer& optimizer, Checker* checker) {
  checker->Positive("optimizer.learning_rate", optimizer.learning_rate(), 10);
  checker->Range<double>("optimizer.beta1", optimizer.beta1(), 0, 0.99999);
  checker->Range<double>("optimizer.beta2", optimizer.beta2(), 0, 0.99999);
  checker->Positive("optimizer.epsilon", optimizer.epsilon(), 0.1);
  checker->Range<double>("optimizer.weight_decay", optimizer.weight_decay(), 0,
                         10);
  checker->Range<double>("optimizer.grad_clip_norm", optimizer.grad_clip_norm(),
                         0, 1e9);
}

void CheckSchedule(const RunConfig::Schedule& schedule, Checker* checker) {
  const Int total = schedule.total_steps();
  const Int warmup = schedule.warmup_steps();
  const bool sizes =
      checker->Range<Int>("schedule.total_steps", total, 1, 1'000'000'000) &
      checker->Range<Int>("schedule.warmup_steps", warmup, 0, 1'000'000'000) &
      checker->Range<Int>("schedule.decay_steps", schedule.decay_steps(), 0,
                          1'000'000'000);
  checker->Range<double>("schedule.min_learning_rate_ratio",
                         schedule.min_learning_rate_ratio(), 0, 1);
  const bool wsd = schedule.kind() == RunConfig::ScheduleKind::wsd;
  if (!wsd && schedule.decay_steps() != 0) {
    checker->Fail(absl::StrCat(
        "schedule.decay_steps is of schedule.kind=wsd only, and the kind is ",
        RunConfig::ScheduleKind::Word_Name(schedule.kind()),
        "; set schedule.decay_steps=0"));
  } else if (sizes && warmup + schedule.decay_steps() > total) {
    checker->Fail(absl::StrCat(
        "schedule.warmup_steps ", warmup,
        wsd ? absl::StrCat(" and schedule.decay_steps ", schedule.decay_steps())
            : "",
        " do not fit into schedule.total_steps ", total, "; at least ",
        warmup + schedule.decay_steps(), " are needed"));
  }
}

void CheckBatch(const RunConfig::Batch& batch, Checker* checker) {
  const Int global = batch.global_batch_size();
  const Int micro = batch.micro_batch_size();
  const bool sizes =
      checker->Range<Int>("batch.global_batch_size", global, 1, 1 << 24) &
      checker->Range<Int>("batch.micro_batch_size", micro, 1, 1 << 24);
  if (!sizes || global % micro == 0) return;
  checker->Fail(absl::StrCat(
      "batch.global_batch_size ", global,
      " is not divisible by batch.micro_batch_size ", micro,
      "; nearest: batch.global_batch_size=", MultiplesAround(global, micro),
      ", or batch.micro_batch_size=", NearestDivisor(global, micro)));
}

// Ranges; whether the sizes fit the model, the batch and each other is a matter
// of the ranks that there are (parallel_plan.h).
void CheckParallel(const RunConfig::Parallel& parallel, Checker* checker) {
  constexpr Int kMost = 1 << 16;
  checker->Range<Int>("parallel.tp_size", parallel.tp_size(), 1, kMost);
  checker->Range<Int>("parallel.cp_size", parallel.cp_size(), 1, kMost);
  checker->Range<Int>("parallel.pp_size", parallel.pp_size(), 1, kMost);
  checker->Range<Int>("parallel.nodes", parallel.nodes(), 1, kMost);
  checker->Range<Int>("parallel.gpus_per_node", parallel.gpus_per_node(), 0,
                      kMost);
  checker->Range<Int>("parallel.zero_stage", parallel.zero_stage(), 0, 1);
}

void CheckTasks(const RunConfig::Evaluation& evaluation, Checker* checker) {
  for (const std::string& name : evaluation.tasks()) {
    if (name == kAllTasks && evaluation.tasks_size() == 1) continue;
    const auto task = FindEvaluationTask(name);
    if (!task.ok()) {
      checker->Fail(
          absl::StrCat("evaluation.tasks: ", task.status().message()));
    }
    if (std::count(evaluation.tasks().begin(), evaluation.tasks().end(), name) >
        1) {
      checker->Fail(absl::StrCat("evaluation.tasks names ", name, " twice"));
    }
  }
  if (evaluation.tasks_size() > 0 && evaluation.task_data().empty()) {
    checker->Fail(
        "evaluation.tasks needs evaluation.task_data, the folder with the "
        "tasks' files");
  }
  checker->Range<Int>("evaluation.max_items", evaluation.max_items(), 0,
                      1'000'000'000);
}

void CheckHabits(const RunConfig& config, Checker* checker) {
  constexpr Int kMany = 1'000'000'000;
  const auto& checkpoint = config.checkpoint();
  checker->Range<Int>("checkpoint.every_steps", checkpoint.every_steps(), 0,
                      kMany);
  checker->Range<Int>("checkpoint.keep_last", checkpoint.keep_last(), 1, kMany);
  checker->Range<Int>("checkpoint.keep_every", checkpoint.keep_every(), 0,
                      kMany);
  const auto& evaluation = config.evaluation();
  checker->Range<Int>("evaluation.every_steps", evaluation.every_steps(), 0,
                      kMany);
  checker->Range<Int>("evaluation.max_batches", evaluation.max_batches(), 0,
                      kMany);
  checker->Range<Int>("log.every_steps", config.log().every_steps(), 1, kMany);
  checker->Range<Int>("log.sample_every_steps",
                      config.log().sample_every_steps(), 0, kMany);
}

ChangeKind KindOf(absl::string_view key) {
  if (absl::StartsWith(key, "model.")) return ChangeKind::kRefused;
  if (key == "batch.micro_batch_size") return ChangeKind::kFree;
  // Of data that is still to come; whoever resumes checks that.
  if (absl::StartsWith(key, "data.skip_steps")) return ChangeKind::kFree;
  for (absl::string_view group :
       {"parallel.", "checkpoint.", "evaluation.", "log.", "memory."}) {
    if (absl::StartsWith(key, group)) return ChangeKind::kFree;
  }
  return ChangeKind::kNeedsFlag;
}

}  // namespace

absl::Status ValidateConfig(const RunConfig& config) {
  Checker checker;
  CheckModel(config.model(), &checker);
  CheckData(config.data(), &checker);
  CheckOptimizer(config.optimizer(), &checker);
  CheckSchedule(config.schedule(), &checker);
  CheckBatch(config.batch(), &checker);
  CheckHabits(config, &checker);
  CheckTasks(config.evaluation(), &checker);
  CheckParallel(config.parallel(), &checker);
  return checker.status();
}

absl::Status SettlePrecision(absl::string_view device_kind, RunConfig* config) {
  RunConfig::Precision* precision = config->mutable_precision();
  const bool gpu = device_kind == "cuda";
  if (precision->compute() == RunConfig::Compute::auto_) {
    precision->set_compute(gpu ? RunConfig::Compute::bf16
                               : RunConfig::Compute::fp32);
  }
  Checker checker;
  const std::string krr =
      RunConfig::KrrPrecision::Word_Name(precision->krr_precision());
  const bool bf16 = precision->compute() == RunConfig::Compute::bf16;
  if (!gpu && bf16) {
    checker.Fail(
        "precision.compute is bf16, and the CPU computes in fp32 only; set it "
        "to fp32 or auto, or train on a GPU");
  }
  if (!gpu && krr != "auto") {
    checker.Fail(absl::StrCat(
        "precision.krr_precision is ", krr,
        ", and the CPU solves in fp32; set it to auto, or train on a GPU"));
  } else if (gpu && !bf16 && krr == "bf16") {
    checker.Fail(
        "precision.krr_precision is bf16, and precision.compute fp32; set the "
        "first to tf32, bf16x3 or auto, or the second to bf16");
  }
  return checker.status();
}

std::vector<ConfigChange> CompareConfigs(const RunConfig& saved,
                                         const RunConfig& requested) {
  constexpr char kAbsent[] = "(none)";
  std::map<std::string, std::string> old_values;
  for (const ConfigValue& value : ListConfigValues(saved)) {
    old_values[value.key] = value.value;
  }
  std::vector<ConfigChange> changes;
  for (const ConfigValue& value : ListConfigValues(requested)) {
    const auto old_value = old_values.find(value.key);
    const std::string text =
        old_value == old_values.end() ? kAbsent : old_value->second;
    if (text != value.value) {
      changes.push_back({value.key, text, value.value, KindOf(value.key)});
    }
    if (old_value != old_values.end()) old_values.erase(old_value);
  }
  for (const auto& [key, value] : old_values) {
    changes.push_back({key, value, kAbsent, KindOf(key)});
  }
  return changes;
}

absl::Status CheckResume(const RunConfig& saved, const RunConfig& requested,
                         bool changes_allowed) {
  std::vector<std::string> refused;
  std::vector<std::string> flagged;
  for (const ConfigChange& change : CompareConfigs(saved, requested)) {
    const std::string line = absl::StrCat("  ", change.key, ": ", change.saved,
                                          " -> ", change.requested);
    if (change.kind == ChangeKind::kRefused) refused.push_back(line);
    if (change.kind == ChangeKind::kNeedsFlag) flagged.push_back(line);
  }
  if (!refused.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the checkpoint is of another model (saved -> requested):\n",
        absl::StrJoin(refused, "\n"),
        "\nAsk for the saved model, or start a new run with another "
        "--output_dir"));
  }
  if (!flagged.empty() && !changes_allowed) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the run was saved with another configuration (saved -> requested):\n",
        absl::StrJoin(flagged, "\n"),
        "\nAsk for the saved values, or pass --allow_changes to continue with "
        "the requested ones"));
  }
  return absl::OkStatus();
}

}  // namespace cubit
