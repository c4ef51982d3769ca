// SPDX-License-Identifier: Apache-2.0
//
// How training scales over ranks: layouts in turn, each compared with one rank.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "nlohmann/json.hpp"

#include "launch/bootstrap.h"
#include "launch/gpu_probe.h"
#include "launch/layout_costs.h"
#include "launch/machine_model.h"
#include "launch/step_simulator.h"
#include "parallel/agreement.h"
#include "parallel/mesh_communicators.h"
#include "parallel/pipeline_schedule.h"
#include "runtime/command_line.h"
#include "runtime/communicator_mpi.h"
#include "runtime/device.h"
#include "runtime/status_macros.h"
#include "tests/benchmarks/scaling_layout.h"
#include "tests/benchmarks/scaling_run.h"
#include "tests/benchmarks/train_runs.h"
#include "tests/benchmarks/write_json.h"
#include "tests/runtime/mpirun.h"

ABSL_FLAG(std::string, runs,
          "cubit_125m:1024:16384,transformer_125m:1024:16384,"
          "cubit_1p3b:1024:16384,transformer_1p3b:1024:16384,"
          "cubit_1p3b:8192:16384,transformer_1p3b:8192:16384",
          "PRESET:SEQ_LEN:TOKENS of a step and rank, separated by commas");
ABSL_FLAG(std::string, layouts, "",
          "separated by commas, such as dp2,tp2,cp2-ulysses,pp2-interleaved-m8"
          "; none: what the ranks allow");
ABSL_FLAG(int, ranks, 0, "0: one for each GPU; two without GPUs");
ABSL_FLAG(std::string, set, "",
          "KEY=VALUE of the configuration, separated by spaces");
ABSL_FLAG(int, warmup, 4, "steps whose losses are compared with one rank's");
ABSL_FLAG(int, steps, 10, "timed steps");
ABSL_FLAG(int, profiled, 3, "steps after these, by kind of work");
ABSL_FLAG(double, loss_tolerance, 0,
          "nats that a loss may be off one rank's; 0: 0.01 with bf16, 1e-4 "
          "with fp32");
ABSL_FLAG(std::string, json, "", "also write the results to this file");

namespace cubit {
namespace {

constexpr char kUsage[] = R"(Measures how training scales over ranks.

Every layout trains the same random text as one rank does on the same global
batch; losses must agree. "linear" is the share of N times what one rank does on
its own part of the batch; "messages" what ranks wait for collectives, "pipeline"
for neighbours (bubble and messages), each a mean over ranks, of the profiled
steps; "sim." the step of launch/step_simulator.h over the measured one; "setup"
the seconds before steps of usual length, for the layout and, once for each
number of ranks, for one rank's losses. Weights are made by all processors:
about 15 ns of one for each parameter and layout. The default runs are long;
with --steps=5 --profiled=2 the steps take two thirds.

Example:
  bazel run //tests/benchmarks:scaling -- --runs=cubit_1p3b:1024:16384 --layouts=dp2,tp2
)";

// GPUs that the ranks share; set for them by the process that starts them.
constexpr char kGpusVariable[] = "CUBIT_SCALING_GPUS";
constexpr double kMemoryShare = 0.9;  // of a rank's: NCCL's buffers, libraries

int NumGpus() {
  const char* const text = std::getenv(kGpusVariable);
  int gpus = 0;
  if (text == nullptr || !absl::SimpleAtoi(text, &gpus)) {
    gpus = DeviceKind() == "cuda" ? ProbeGpus().num_gpus : 0;
  }
  return gpus;
}

// Before anything of CUDA: the rank's GPU is its only one. NCCL takes two ranks
// on one GPU for a mistake; where they share, it is made to take each for a
// host.
void ChooseGpu(int num_ranks) {
  const int gpus = NumGpus();
  const char* const text = std::getenv("OMPI_COMM_WORLD_LOCAL_RANK");
  int rank = 0;
  if (gpus == 0 || text == nullptr || !absl::SimpleAtoi(text, &rank)) return;
  setenv("CUDA_VISIBLE_DEVICES", absl::StrCat(rank % gpus).c_str(), 1);
  if (num_ranks <= gpus) return;
  setenv("NCCL_HOSTID", absl::StrCat("cubit-rank-", rank).c_str(), 1);
  setenv("NCCL_SOCKET_IFNAME", "lo", 1);
}

// Becomes mpirun of itself; returns if there is none.
absl::Status StartRanksOf(int num_ranks, char** argv) {
  const int gpus = DeviceKind() == "cuda" ? ProbeGpus().num_gpus : 0;
  setenv(kGpusVariable, absl::StrCat(gpus).c_str(), 1);
  std::vector<std::string> arguments;
  for (char** word = argv + 1; *word != nullptr; ++word) {
    arguments.emplace_back(*word);
  }
  arguments.push_back(absl::StrCat("--ranks=", num_ranks));
  BecomeMpirun(num_ranks, arguments);
  return absl::NotFoundError("no mpirun on the PATH (package openmpi-bin)");
}

bool SameSizes(const DeviceMesh& a, const DeviceMesh& b) {
  for (int i = 0; i < kNumMeshAxes; ++i) {
    const auto axis = static_cast<MeshAxis>(i);
    if (a.size(axis) != b.size(axis)) return false;
  }
  return true;
}

double Sum(const std::map<std::string, double>& profile,
           const std::vector<const char*>& categories) {
  double sum = 0;
  for (const char* const category : categories) {
    const auto found = profile.find(category);
    if (found != profile.end()) sum += found->second;
  }
  return sum;
}

// Share of the profiled steps, all ranks together.
double Share(const Measurement& measured,
             const std::vector<const char*>& categories) {
  double part = 0;
  double total = 0;
  for (const auto& profile : measured.profiles) {
    part += Sum(profile, categories);
    for (const auto& [category, seconds] : profile) total += seconds;
  }
  return total > 0 ? part / total : 0;
}

struct Row {
  PlannedRun run;
  Measurement measured;
  double linear = 0;           // share of linear scaling
  double loss_difference = 0;  // the largest; NaN: one rank has no room
  double simulated = 0;        // seconds of a step
  double planning = 0;         // seconds, as those of measured.setup
  double reference = 0;        // of one rank's run for its losses
};

double SecondsSince(absl::Time start) {
  return absl::ToDoubleSeconds(absl::Now() - start);
}

class Scaling {
 public:
  explicit Scaling(Bootstrap ranks) : ranks_(std::move(ranks)) {}

  absl::Status Run();

 private:
  bool is_main() const { return ranks_.rank == 0; }
  int64_t MemoryOfRank() const;
  absl::StatusOr<PlannedRun> Plan(const RunSpec& run,
                                  const std::string& layout) const;
  // Of the first ranks; the others wait and get an empty one. A collective.
  absl::StatusOr<Measurement> Measure(const PlannedRun& run,
                                      const StepCounts& counts);
  // Null on ranks that are not of the mesh. A collective.
  absl::StatusOr<MeshCommunicators*> GroupsOf(const DeviceMesh& mesh);
  absl::Status MakeGroups(const DeviceMesh& mesh);
  absl::Status MeasureAll(const RunSpec& run,
                          const std::vector<std::string>& layouts);
  absl::StatusOr<double> LossDifference(const RunSpec& run, const Row& row);
  double Tolerance(const RunConfig& config) const;
  void Print(const RunSpec& run, const std::string& layout, const Row& row);

  Bootstrap ranks_;
  // Of the last layout: NCCL's groups take seconds to make, and memory. The
  // ranks beyond the mesh have none.
  std::unique_ptr<DeviceMesh> mesh_;
  std::unique_ptr<MeshCommunicators> groups_;
  std::unique_ptr<MeshCommunicators> single_ = MeshCommunicators::Single();
  // Losses of one rank, by preset, length and tokens of a step; empty where it
  // has no room.
  std::map<std::string, std::vector<double>> alone_;
  nlohmann::json rows_ = nlohmann::json::array();
  int different_ = 0;
};

int64_t Scaling::MemoryOfRank() const {
  const int gpus = NumGpus();
  const int sharing =
      gpus == 0 ? ranks_.world_size : (ranks_.world_size + gpus - 1) / gpus;
  return static_cast<int64_t>(
      kMemoryShare * static_cast<double>(QueryDevice().memory_bytes) / sharing);
}

absl::StatusOr<PlannedRun> Scaling::Plan(const RunSpec& run,
                                         const std::string& layout) const {
  CUBIT_ASSIGN_OR_RETURN(const ScalingLayout parsed, ParseLayout(layout));
  if (parsed.world_size() > ranks_.world_size) {
    return absl::InvalidArgumentError(
        absl::StrCat(layout, " wants ", parsed.world_size(),
                     " ranks, and there are ", ranks_.world_size));
  }
  const std::vector<std::string> overrides =
      absl::StrSplit(absl::GetFlag(FLAGS_set), ' ', absl::SkipEmpty());
  return PlanRun(run, parsed, overrides, MemoryOfRank());
}

absl::Status Scaling::MakeGroups(const DeviceMesh& mesh) {
  groups_ = nullptr;
  mesh_ = nullptr;
  const int color = ranks_.rank < mesh.world_size() ? 0 : -1;
  CUBIT_ASSIGN_OR_RETURN(auto world, ranks_.world->Split(color, 0, "world"));
  CUBIT_ASSIGN_OR_RETURN(auto control,
                         ranks_.control->Split(color, 0, "control"));
  if (color == 0) {
    CUBIT_ASSIGN_OR_RETURN(
        groups_,
        MeshCommunicators::Create(mesh, std::move(world), std::move(control)));
  }
  mesh_ = std::make_unique<DeviceMesh>(mesh);
  return absl::OkStatus();
}

absl::StatusOr<MeshCommunicators*> Scaling::GroupsOf(const DeviceMesh& mesh) {
  if (mesh.world_size() == 1) return is_main() ? single_.get() : nullptr;
  if (mesh_ == nullptr || !SameSizes(*mesh_, mesh)) {
    CUBIT_RETURN_IF_ERROR(MakeGroups(mesh));
  }
  return groups_.get();
}

absl::StatusOr<Measurement> Scaling::Measure(const PlannedRun& run,
                                             const StepCounts& counts) {
  const absl::Time start = absl::Now();
  CUBIT_ASSIGN_OR_RETURN(MeshCommunicators* const mesh,
                         GroupsOf(run.plan.mesh));
  const double seconds = SecondsSince(start);
  absl::StatusOr<Measurement> result = Measurement();
  if (mesh != nullptr) result = MeasureRun(run, counts, mesh);
  CUBIT_RETURN_IF_ERROR(Agree(ranks_.control.get(), result.status()));
  result->setup.groups = seconds;
  return result;
}

// Of the row's losses from those of one rank on the same batch.
absl::StatusOr<double> Scaling::LossDifference(const RunSpec& run,
                                               const Row& row) {
  RunSpec whole = run;
  whole.tokens *= row.run.plan.mesh.world_size();
  const std::string key =
      absl::StrCat(run.preset, " ", run.seq_len, " ", whole.tokens);
  // One rank's own row is its reference.
  if (row.run.plan.mesh.world_size() == 1) alone_[key] = row.measured.losses;
  if (alone_.count(key) == 0) {
    std::vector<double>& losses = alone_[key];
    const auto planned = Plan(whole, "1");
    if (planned.ok()) {
      CUBIT_ASSIGN_OR_RETURN(
          const Measurement measured,
          Measure(*planned, {absl::GetFlag(FLAGS_warmup), 0, 0}));
      losses = measured.losses;
    }
  }
  const std::vector<double>& losses = alone_[key];
  if (losses.empty()) return std::nan("");
  double largest = 0;
  for (size_t i = 0; i < row.measured.losses.size(); ++i) {
    largest =
        std::max(largest, std::abs(row.measured.losses[i] - losses.at(i)));
  }
  return largest;
}

double Scaling::Tolerance(const RunConfig& config) const {
  const double wanted = absl::GetFlag(FLAGS_loss_tolerance);
  if (wanted > 0) return wanted;
  const bool bf16 = config.precision().compute() == RunConfig::Compute::bf16;
  return bf16 ? 0.01 : 1e-4;
}

// The categories are those of ProfileRange around collectives.
const std::vector<const char*>& MessageCategories() {
  static const auto& categories = *new std::vector<const char*>{
      "tp", "ulysses", "messages", "weights", "sum of gradients"};
  return categories;
}

// By part: the next run of the benchmark is to be shorter.
nlohmann::json SetupOf(const Row& row) {
  const SetupSeconds& setup = row.measured.setup;
  return {{"planning", row.planning},       {"groups", setup.groups},
          {"memory", setup.memory},         {"weights", setup.weights},
          {"first_step", setup.first_step}, {"one_rank", row.reference}};
}

std::string SetupText(const Row& row) {
  const SetupSeconds& setup = row.measured.setup;
  return absl::StrFormat(
      "  setup %.1f s: planning %.1f, groups %.1f, memory %.1f, weights %.1f, "
      "first step %.1f; one rank's losses %.1f",
      row.planning + setup.total() + row.reference, row.planning, setup.groups,
      setup.memory, setup.weights, setup.first_step, row.reference);
}

void Scaling::Print(const RunSpec& run, const std::string& layout,
                    const Row& row) {
  const ParallelPlan& plan = row.run.plan;
  const double tokens =
      static_cast<double>(run.tokens * plan.mesh.world_size()) /
      row.measured.step_seconds;
  const double messages = Share(row.measured, MessageCategories());
  const double pipeline = Share(row.measured, {"pipeline"});
  const double ideal = IdealBubbleFraction(plan.pipeline_shape());
  const double ratio = row.simulated / row.measured.step_seconds;
  const bool same = row.loss_difference <= Tolerance(row.run.config);
  if (!same && !std::isnan(row.loss_difference)) ++different_;
  std::printf(
      "%-28s %9.2f %10.0f %6.1f%% %5d %8.1f%% %8.1f%% %5.1f%% %7.2f %5.2f  "
      "%.1e%s\n%s\n",
      layout.c_str(), 1e3 * row.measured.step_seconds, tokens, 100 * row.linear,
      static_cast<int>(plan.num_micro_batches), 100 * messages, 100 * pipeline,
      100 * ideal, static_cast<double>(row.run.memory_bytes) / (1 << 30), ratio,
      row.loss_difference, same ? "" : "  LOSSES DIFFER",
      SetupText(row).c_str());
  std::fflush(stdout);
  rows_.push_back(
      {{"preset", run.preset},
       {"seq_len", run.seq_len},
       {"tokens_per_rank", run.tokens},
       {"layout", layout},
       {"ranks", plan.mesh.world_size()},
       {"num_micro_batches", plan.num_micro_batches},
       {"micro_batch_size", row.run.config.batch().micro_batch_size()},
       {"step_seconds", row.measured.step_seconds},
       {"tokens_per_second", tokens},
       {"linear_share", row.linear},
       {"message_share", messages},
       {"pipeline_share", pipeline},
       {"ideal_bubble", ideal},
       {"setup_seconds", SetupOf(row)},
       {"planned_bytes", row.run.memory_bytes},
       {"simulated_seconds", row.simulated},
       {"loss_difference", row.loss_difference},
       {"losses", row.measured.losses},
       {"seconds_by_category_of_ranks", row.measured.profiles}});
}

absl::Status Scaling::MeasureAll(const RunSpec& run,
                                 const std::vector<std::string>& layouts) {
  const StepCounts counts = {absl::GetFlag(FLAGS_warmup),
                             absl::GetFlag(FLAGS_steps),
                             absl::GetFlag(FLAGS_profiled)};
  if (is_main()) {
    std::printf(
        "\n%s, T = %d, %d tokens a rank and step\n%-28s %9s %10s %7s %5s %9s "
        "%9s %6s %7s %5s  %s\n",
        run.preset.c_str(), static_cast<int>(run.seq_len),
        static_cast<int>(run.tokens), "layout", "ms", "tokens/s", "linear", "m",
        "messages", "pipeline", "ideal", "GiB", "sim.", "loss off by");
  }
  double one_rank = 0;  // tokens/s
  for (const std::string& layout : layouts) {
    absl::Time start = absl::Now();
    const absl::StatusOr<PlannedRun> planned = Plan(run, layout);
    const double planning = SecondsSince(start);
    if (!planned.ok()) {
      if (layout == "1") return planned.status();
      if (is_main()) {
        std::printf("%-28s not run: %s\n", layout.c_str(),
                    std::string(planned.status().message()).c_str());
      }
      continue;
    }
    CUBIT_ASSIGN_OR_RETURN(const Measurement measured,
                           Measure(*planned, counts));
    Row row = {*planned, measured};
    row.planning = planning;
    start = absl::Now();
    CUBIT_ASSIGN_OR_RETURN(row.loss_difference, LossDifference(run, row));
    row.reference = SecondsSince(start);
    if (!is_main()) continue;
    const double rate = static_cast<double>(run.tokens) / measured.step_seconds;
    if (layout == "1") one_rank = rate;
    row.linear = one_rank > 0 ? rate / one_rank : std::nan("");
    CUBIT_ASSIGN_OR_RETURN(
        const LayoutCosts costs,
        MakeLayoutCosts(planned->plan, planned->config, planned->model));
    MachineModel machine = MachineModelOf(MachineNameOf(QueryDevice()));
    machine.ranks_per_node = planned->plan.ranks_per_node;
    CUBIT_ASSIGN_OR_RETURN(
        const StepEstimate estimate,
        SimulateStep(planned->plan, costs, machine, MessageMode::kBlocking));
    row.simulated = estimate.step;
    Print(run, layout, row);
  }
  return absl::OkStatus();
}

absl::Status Scaling::Run() {
  CUBIT_ASSIGN_OR_RETURN(const std::vector<RunSpec> runs,
                         ParseRuns(absl::GetFlag(FLAGS_runs)));
  std::vector<std::string> layouts =
      absl::StrSplit(absl::GetFlag(FLAGS_layouts), ',', absl::SkipEmpty());
  if (layouts.empty()) layouts = DefaultLayouts(ranks_.world_size);
  layouts.insert(layouts.begin(), "1");
  for (const std::string& layout : layouts) {
    CUBIT_RETURN_IF_ERROR(ParseLayout(layout).status());
  }
  const DeviceInfo device = QueryDevice();
  if (is_main()) {
    std::printf("%d ranks on %s%s\n", ranks_.world_size, device.name.c_str(),
                NumGpus() > 0 && NumGpus() < ranks_.world_size
                    ? "; ranks share GPUs: losses count, times do not"
                    : "");
  }
  for (const RunSpec& run : runs) {
    CUBIT_RETURN_IF_ERROR(MeasureAll(run, layouts));
  }
  if (!is_main()) return absl::OkStatus();
  CUBIT_RETURN_IF_ERROR(
      WriteJson(absl::GetFlag(FLAGS_json), {{"device", device.name},
                                            {"ranks", ranks_.world_size},
                                            {"rows", rows_}}));
  if (different_ == 0) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat(different_, " layouts have other losses than one rank"));
}

absl::Status Main(char** argv) {
  int num_ranks = absl::GetFlag(FLAGS_ranks);
  if (!MpiSession::StartedByMpi()) {
    if (num_ranks == 0) num_ranks = DeviceKind() == "cuda" ? NumGpus() : 2;
    if (num_ranks == 0) {
      return absl::FailedPreconditionError("no GPU; scaling_cpu needs none");
    }
    return StartRanksOf(num_ranks, argv);
  }
  ChooseGpu(num_ranks);
  CUBIT_ASSIGN_OR_RETURN(Bootstrap ranks, StartRanks());
  return Scaling(std::move(ranks)).Run();
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  cubit::ParseCommandLine(argc, argv, cubit::kUsage);
  return cubit::ExitStatus(cubit::Main(argv));
}
