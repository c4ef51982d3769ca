// SPDX-License-Identifier: Apache-2.0
//
// Whole training steps on a GPU: time, tokens by second, share of the measured
// ceiling, and where the time goes.

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "nlohmann/json.hpp"

#include "launch/model_setup.h"
#include "launch/train_state.h"
#include "ops/matmul.h"
#include "runtime/check.h"
#include "runtime/command_line.h"
#include "runtime/device.h"
#include "runtime/profile_range.h"
#include "runtime/status_macros.h"
#include "tests/benchmarks/measure_cuda.h"
#include "tests/benchmarks/train_runs.h"
#include "tests/benchmarks/write_json.h"

ABSL_FLAG(std::string, runs,
          "cubit_125m:1024:32768,transformer_125m:1024:32768,"
          "cubit_350m:1024:32768,transformer_350m:1024:32768,"
          "cubit_1p3b:1024:16384,transformer_1p3b:1024:16384,"
          "cubit_1p3b:8192:16384,transformer_1p3b:8192:16384",
          "PRESET:SEQ_LEN:TOKENS of a step, separated by commas");
ABSL_FLAG(int, steps, 20, "timed steps of each run");
ABSL_FLAG(int, warmup, 4, "steps before these");
ABSL_FLAG(int, profiled, 3, "steps after these, by kind of work");
ABSL_FLAG(bool, choose_under_load, true,
          "choose the products' algorithms as in a long run");
ABSL_FLAG(std::string, recompute, "none", "none, selective or full");
ABSL_FLAG(std::string, krr_precision, "auto", "auto, bf16, tf32 or bf16x3");
ABSL_FLAG(int, micro_batch, 0, "sequences; 0: the most that fit");
ABSL_FLAG(std::string, solve_engine, "auto",
          "products of the bf16 solves: auto, warp, or warpgroup (Hopper)");
ABSL_FLAG(std::string, json, "", "also write the results to this file");

namespace cubit {
namespace {

constexpr char kUsage[] = R"(Measures whole training steps on a GPU.

A step is what the trainer does: ids to the device, forward and backward of all
micro-batches, clipping, AdamW, and the wait for the loss. Tokens are random.
MFU counts model FLOPs, by the device's datasheet and by the rate of an
8192^3 bf16 product in the same run.

Example:
  bazel run //tests/benchmarks:train_step -- --runs=cubit_125m:1024:32768
)";

constexpr double kMemoryShare = 0.97;  // of what is free: fragments, libraries

// Steps of one run, as the trainer does them.
class Stepper {
 public:
  Stepper(TrainState* state, const RunPlan& plan, const Batch& batch)
      : state_(state),
        plan_(plan),
        batches_(static_cast<size_t>(plan.num_micro_batches), batch) {}

  double Step() {
    const absl::Time start = absl::Now();
    state_->BeginStep();
    const float grad_scale = 1.0f / static_cast<float>(plan_.step_tokens);
    CUBIT_CHECK(state_->ForwardBackward(batches_, grad_scale).ok());
    CUBIT_CHECK(state_->Update(++step_, 1e-4).ok());
    const absl::StatusOr<StepOutcome> outcome = state_->FinishStep();
    CUBIT_CHECK(outcome.ok()) << outcome.status();
    loss_ = outcome->loss / static_cast<double>(plan_.step_tokens);
    return absl::ToDoubleSeconds(absl::Now() - start);
  }
  double loss() const { return loss_; }

 private:
  TrainState* state_;
  RunPlan plan_;
  std::vector<Batch> batches_;
  int64_t step_ = 0;
  double loss_ = 0;
};

nlohmann::json Profile(TrainState* state, Stepper* stepper) {
  StepProfile profile(&state->stream());
  state->stream().set_profile(&profile);
  for (int i = 0; i < absl::GetFlag(FLAGS_profiled); ++i) {
    profile.Begin();
    stepper->Step();
    profile.End();
  }
  state->stream().set_profile(nullptr);
  std::fputs(profile.ToString().c_str(), stdout);
  nlohmann::json seconds;
  for (const auto& [category, total] : profile.seconds()) {
    seconds[category] = total / absl::GetFlag(FLAGS_profiled);
  }
  return seconds;
}

// The median of --steps steps, after --warmup, in the middle of which a long
// run chooses the products' algorithms.
double MedianSeconds(Stepper* stepper) {
  const int warmup = absl::GetFlag(FLAGS_warmup);
  for (int i = 0; i < warmup; ++i) {
    if (i == warmup / 2 && absl::GetFlag(FLAGS_choose_under_load)) {
      ChooseProductsUnderLoad();
    }
    stepper->Step();
    if (i == 0) std::printf("  first loss %.4f\n", stepper->loss());
  }
  std::vector<double> times;
  for (int i = 0; i < absl::GetFlag(FLAGS_steps); ++i) {
    times.push_back(stepper->Step());
  }
  const auto median =
      times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
  std::nth_element(times.begin(), median, times.end());
  return *median;
}

absl::StatusOr<nlohmann::json> Measure(const RunSpec& run, double ceiling) {
  CUBIT_ASSIGN_OR_RETURN(
      RunConfig config,
      ConfigOf(run, {absl::StrCat("memory.recompute=",
                                  absl::GetFlag(FLAGS_recompute)),
                     absl::StrCat("precision.krr_precision=",
                                  absl::GetFlag(FLAGS_krr_precision))}));
  CUBIT_ASSIGN_OR_RETURN(const ModelConfig model_config,
                         MakeModelConfig(config, kGpt2Vocabulary));
  CUBIT_ASSIGN_OR_RETURN(auto model, LanguageModel::Create(model_config));
  const DeviceInfo device = QueryDevice();
  const int64_t held_before = device.memory_bytes - device.free_bytes;
  int64_t micro_batch = absl::GetFlag(FLAGS_micro_batch);
  if (micro_batch == 0) {
    micro_batch = std::max<int64_t>(
        1, LargestMicroBatch(
               config, SinglePlan(config, model->config()), /*rank=*/0, *model,
               static_cast<int64_t>(kMemoryShare *
                                    static_cast<double>(device.memory_bytes))));
  }
  config.mutable_batch()->set_micro_batch_size(micro_batch);
  const RunPlan plan = MakePlan(config, *model);
  CUBIT_ASSIGN_OR_RETURN(auto state,
                         TrainState::Create(config, std::move(model)));
  CUBIT_RETURN_IF_ERROR(
      state->model().parameters().Initialize(config.seed(), state->stream()));
  Stepper stepper(state.get(), plan,
                  RandomBatch(model_config, /*first_sample=*/0, micro_batch));
  const double seconds = MedianSeconds(&stepper);
  const double rate = plan.step_flops / seconds;
  const double tokens = static_cast<double>(plan.step_tokens) / seconds;
  std::printf(
      "%-18s T=%-5d micro-batch %-3d %9.2f ms %9.0f tokens/s  MFU %.1f%% "
      "(%.1f%% of the ceiling)  loss %.4f  %.2f GiB, planned %.2f\n",
      run.preset.c_str(), static_cast<int>(run.seq_len),
      static_cast<int>(micro_batch), seconds * 1e3, tokens,
      100 * rate / device.peak_flops, 100 * rate / ceiling, stepper.loss(),
      static_cast<double>(PeakMemoryBytes()) / (1 << 30),
      static_cast<double>(plan.memory.total()) / (1 << 30));
  // What the device holds, by its own account; the rest is the driver's.
  const DeviceInfo after = QueryDevice();
  const int64_t held = after.memory_bytes - after.free_bytes - held_before;
  std::printf("  device memory: %.3f GiB more than before, planned %.3f\n",
              static_cast<double>(held) / (1 << 30),
              static_cast<double>(plan.memory.total()) / (1 << 30));
  const nlohmann::json categories = Profile(state.get(), &stepper);
  std::fflush(stdout);
  return nlohmann::json{{"preset", run.preset},
                        {"seq_len", run.seq_len},
                        {"step_tokens", plan.step_tokens},
                        {"micro_batch_size", micro_batch},
                        {"step_seconds", seconds},
                        {"tokens_per_second", tokens},
                        {"step_flops", plan.step_flops},
                        {"mfu", rate / device.peak_flops},
                        {"ceiling_share", rate / ceiling},
                        {"planned_bytes", plan.memory.total()},
                        {"held_bytes", held},
                        {"seconds_by_category", categories}};
}

absl::Status Run() {
  CUBIT_ASSIGN_OR_RETURN(const std::vector<RunSpec> runs,
                         ParseRuns(absl::GetFlag(FLAGS_runs)));
  CUBIT_RETURN_IF_ERROR(UseSolveEngine(absl::GetFlag(FLAGS_solve_engine)));
  double ceiling = 0;
  {
    Stream stream;
    ceiling = MeasureCeilings(0.3, stream).flops_per_second;
  }
  const DeviceInfo device = QueryDevice();
  std::printf("%s, ceiling %.1f TFLOP/s, datasheet %.1f\n", device.name.c_str(),
              ceiling * 1e-12, device.peak_flops * 1e-12);
  nlohmann::json results = {{"device", device.name},
                            {"matmul_ceiling", ceiling},
                            {"datasheet_flops", device.peak_flops}};
  for (const RunSpec& run : runs) {
    const absl::StatusOr<nlohmann::json> result = Measure(run, ceiling);
    if (!result.ok()) return result.status();
    results["runs"].push_back(*result);
  }
  return WriteJson(absl::GetFlag(FLAGS_json), results);
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  cubit::ParseCommandLine(argc, argv, cubit::kUsage);
  return cubit::ExitStatus(cubit::Run());
}
