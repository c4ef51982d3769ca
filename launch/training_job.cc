// SPDX-License-Identifier: Apache-2.0

#include "launch/training_job.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"

#include "launch/data_setup.h"
#include "launch/interrupt.h"
#include "launch/layout_report.h"
#include "launch/machine_model.h"
#include "launch/model_setup.h"
#include "launch/parallel_plan.h"
#include "launch/run_directory.h"
#include "launch/run_plan.h"
#include "parallel/agreement.h"
#include "parallel/mesh_communicators.h"
#include "runtime/command_line.h"
#include "runtime/device.h"
#include "runtime/file_system.h"
#include "runtime/logging.h"
#include "runtime/status_macros.h"
#include "runtime/watchdog.h"

namespace cubit {
namespace {

// A layout and what it is for.
struct PlannedJob {
  ModelConfig model;
  ParallelPlan layout;
};

absl::StatusOr<PlannedJob> PlanJob(const RunConfig& config, int64_t vocab_size,
                                   int world_size) {
  CUBIT_ASSIGN_OR_RETURN(const ModelConfig model,
                         MakeModelConfig(config, vocab_size));
  CUBIT_ASSIGN_OR_RETURN(
      ParallelPlan layout,
      MakeParallelPlan(config, model, world_size, DeviceKind()));
  return PlannedJob{model, std::move(layout)};
}

// The shard of `rank`, declared and aligned, without memory.
absl::StatusOr<std::unique_ptr<LanguageModel>> DeclareShard(
    const RunConfig& config, const PlannedJob& job, int rank) {
  CUBIT_ASSIGN_OR_RETURN(
      auto model, LanguageModel::Create(job.model, job.layout.ShardOf(rank)));
  AlignParameters(config, job.layout, model.get());
  return model;
}

// Memory that this rank may use. Ranks on the CPU share the host's.
int64_t MemoryOfRank(const Bootstrap& bootstrap) {
  const DeviceInfo device = QueryDevice();
  return device.kind == "cpu" ? device.memory_bytes / bootstrap.local_size
                              : device.memory_bytes;
}

absl::Status CheckMemory(const RunConfig& config, const PlannedJob& job,
                         const Bootstrap& bootstrap) {
  CUBIT_ASSIGN_OR_RETURN(const auto model,
                         DeclareShard(config, job, bootstrap.rank));
  return CheckFits(config, job.layout, bootstrap.rank, *model,
                   MakePlan(config, job.layout, bootstrap.rank, *model),
                   MemoryOfRank(bootstrap));
}

// Rank 0 takes the folder; the others write below it and hold nothing.
absl::StatusOr<RunDirectory> OpenDirectory(const TrainingRequest& request,
                                           const Bootstrap& bootstrap) {
  if (bootstrap.rank != 0) return RunDirectory::OfAnother(request.output_dir);
  return RunDirectory::Open(FileSystem::Posix(), request.output_dir,
                            request.options.resume);
}

// Runs `work` on every rank; all go on, or all stop with the first error. That
// is said once, by rank 0 and before any rank ends, and `said` is set.
template <typename T, typename Work>
absl::StatusOr<T> Together(Communicator* control, bool* said,
                           const Work& work) {
  absl::StatusOr<T> result = work();
  const absl::Status all = Agree(control, result.status());
  if (all.ok()) return result;
  *said = true;
  if (control->rank() == 0) LogError(all.message());
  const absl::Status told = Agree(control, absl::OkStatus());
  return told.ok() ? all : told;
}

// A micro-batch may be smaller than asked for where dp ranks share the global
// batch; it changes no result. Numbers that fit in no way are left to the plan.
RunConfig WithFittingMicroBatch(RunConfig config, int world_size) {
  const RunConfig::Parallel& parallel = config.parallel();
  const int64_t model_ranks =
      int64_t{parallel.tp_size()} * parallel.cp_size() * parallel.pp_size();
  const int64_t global = config.batch().global_batch_size();
  if (model_ranks < 1 || world_size % model_ranks != 0) return config;
  const int64_t dp_size = world_size / model_ranks;
  if (global % dp_size != 0) return config;
  const int64_t asked = config.batch().micro_batch_size();
  int64_t fitting = std::min(asked, global / dp_size);
  while (global / dp_size % fitting != 0) --fitting;
  if (fitting == asked) return config;
  LogInfo(absl::StrCat("batch.micro_batch_size is ", fitting, " and not ",
                       asked, ": each of ", dp_size, " dp ranks has ",
                       global / dp_size, " of ", global, " sequences"));
  config.mutable_batch()->set_micro_batch_size(fitting);
  return config;
}

// Null for one rank, which waits for nobody. A collective.
absl::StatusOr<std::unique_ptr<Watchdog>> StartWatchdog(
    const TrainingRequest& request, const MeshCommunicators& mesh,
    Communicator& control) {
  std::unique_ptr<Watchdog> watchdog;
  if (control.size() == 1) return watchdog;
  WatchdogOptions options;
  options.operation_limit = absl::Seconds(request.operation_limit_seconds);
  options.silence_limit = absl::Seconds(request.silence_limit_seconds);
  CUBIT_ASSIGN_OR_RETURN(watchdog, Watchdog::Start(control, options));
  for (const auto& recorder : mesh.FlightRecorders()) {
    watchdog->Watch(recorder);
  }
  return watchdog;
}

void LogLayout(const PlannedJob& job, const Bootstrap& bootstrap) {
  for (const std::string& warning : job.layout.warnings) LogWarning(warning);
  if (bootstrap.world_size == 1) return;
  LogInfo(absl::StrCat(job.layout.ToString(),
                       job.layout.cp_reason.empty() ? "" : "\n",
                       job.layout.cp_reason));
}

// The job; `said` tells that the user has seen its error.
absl::StatusOr<int> RunJob(const TrainingRequest& request, Bootstrap* ranks,
                           bool* said) {
  Bootstrap& bootstrap = *ranks;
  const RunConfig config =
      WithFittingMicroBatch(request.config, bootstrap.world_size);
  Communicator* control = bootstrap.control.get();
  // What can be refused without work is refused before data are prepared.
  CUBIT_ASSIGN_OR_RETURN(
      const PlannedJob planned,
      Together<PlannedJob>(control, said, [&]() -> absl::StatusOr<PlannedJob> {
        CUBIT_ASSIGN_OR_RETURN(const auto tokenizer, LoadRunTokenizer(config));
        CUBIT_ASSIGN_OR_RETURN(
            PlannedJob job,
            PlanJob(config, tokenizer->vocab_size(), bootstrap.world_size));
        CUBIT_RETURN_IF_ERROR(CheckMemory(config, job, bootstrap));
        return job;
      }));
  CUBIT_ASSIGN_OR_RETURN(RunData data, Together<RunData>(control, said, [&] {
                           return PrepareRunData(config);
                         }));
  CUBIT_ASSIGN_OR_RETURN(RunDirectory directory,
                         Together<RunDirectory>(control, said, [&] {
                           return OpenDirectory(request, bootstrap);
                         }));
  CUBIT_RETURN_IF_ERROR(Agree(control, LogToFile(directory.log_path())));
  InstallInterruptHandlers();
  LogInfo(absl::StrCat("device: ", QueryDevice().name,
                       "\noutput: ", directory.path()));
  LogLayout(planned, bootstrap);
  CUBIT_ASSIGN_OR_RETURN(
      const auto mesh,
      MeshCommunicators::Create(planned.layout.mesh, std::move(bootstrap.world),
                                std::move(bootstrap.control)));
  CUBIT_ASSIGN_OR_RETURN(const auto watchdog,
                         StartWatchdog(request, *mesh, mesh->control()));
  TrainerOptions options = request.options;
  if (watchdog != nullptr) {
    options.watch = [&watchdog](int64_t step, const std::string& activity) {
      watchdog->SetStep(step);
      watchdog->SetActivity(activity);
    };
  }
  const absl::StatusOr<std::unique_ptr<Trainer>> trainer =
      Together<std::unique_ptr<Trainer>>(&mesh->control(), said, [&] {
        return Trainer::Create(config, options, std::move(data),
                               std::move(directory), planned.layout,
                               mesh.get());
      });
  if (!trainer.ok()) return trainer.status();
  absl::StatusOr<int> status = (*trainer)->Run();
  if (!status.ok()) {
    // Peers that wait for this rank learn why it does not come.
    if (watchdog != nullptr) {
      watchdog->ReportFailure(status.status().message());
    }
    mesh->Abort(status.status());
  }
  return status;
}

}  // namespace

absl::StatusOr<int> RunTrainingJob(const TrainingRequest& request,
                                   Bootstrap bootstrap) {
  bool said = false;
  absl::StatusOr<int> status = RunJob(request, &bootstrap, &said);
  if (!status.ok() && said) return ExitStatusOf(status.status());
  return status;
}

absl::Status PrintDryRun(const RunConfig& asked, int world_size,
                         const PlannedDevice& device) {
  const RunConfig config = WithFittingMicroBatch(asked, world_size);
  CUBIT_ASSIGN_OR_RETURN(const auto tokenizer, LoadRunTokenizer(config));
  CUBIT_ASSIGN_OR_RETURN(const PlannedJob job,
                         PlanJob(config, tokenizer->vocab_size(), world_size));
  std::vector<RankMemory> memory;
  std::vector<RunPlan> plans;
  for (const int rank : DistinctRanks(job.layout)) {
    CUBIT_ASSIGN_OR_RETURN(const auto model, DeclareShard(config, job, rank));
    plans.push_back(MakePlan(config, job.layout, rank, *model));
    memory.push_back({rank, plans.back().memory, plans.back().process_bytes});
  }
  const int rank = LargestRank(memory).rank;
  const auto largest = static_cast<size_t>(
      std::find_if(memory.begin(), memory.end(),
                   [rank](const RankMemory& m) { return m.rank == rank; }) -
      memory.begin());
  if (world_size > 1) {
    CUBIT_ASSIGN_OR_RETURN(const std::string page,
                           LayoutReport(job.layout, config, job.model, memory,
                                        MachineModelOf(device.machine)));
    std::fputs(
        absl::StrCat(page, "\nrank ", rank, ", which needs most:\n").c_str(),
        stdout);
  }
  std::fputs(plans[largest].ToString().c_str(), stdout);
  if (device.memory_bytes == 0) return absl::OkStatus();
  CUBIT_ASSIGN_OR_RETURN(const auto model, DeclareShard(config, job, rank));
  const int64_t fitting =
      LargestMicroBatch(config, job.layout, rank, *model, device.memory_bytes);
  std::fputs(absl::StrFormat("%-16s %d bytes; largest "
                             "batch.micro_batch_size that fits: %s\n",
                             "device memory", device.memory_bytes,
                             fitting == 0 ? "none" : absl::StrCat(fitting))
                 .c_str(),
             stdout);
  return CheckFits(config, job.layout, rank, *model, plans[largest],
                   device.memory_bytes);
}

}  // namespace cubit
