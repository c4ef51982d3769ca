// SPDX-License-Identifier: Apache-2.0

#include "launch/launcher_environment.h"

#include <unistd.h>

#include <algorithm>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

#include "runtime/host_name.h"

namespace cubit {
namespace {

using Starter = RankEnvironment::Starter;

// Tasks of node `node` by Slurm's list, "2(x3),1": 0 if it does not say.
int TasksOfNode(absl::string_view list, int node) {
  int first = 0;
  for (absl::string_view entry : absl::StrSplit(list, ',')) {
    const std::vector<absl::string_view> parts = absl::StrSplit(entry, "(x");
    int tasks = 0;
    int nodes = 1;
    if (!absl::SimpleAtoi(parts[0], &tasks)) return 0;
    if (parts.size() == 2 &&
        !absl::SimpleAtoi(absl::StripSuffix(parts[1], ")"), &nodes)) {
      return 0;
    }
    first += nodes;
    if (node < first) return tasks;
  }
  return 0;
}

std::optional<RankEnvironment> Numbered(Starter starter,
                                        const Environment& environment,
                                        const char* rank, const char* size,
                                        const char* local_rank) {
  const std::optional<int> own = NumberOf(environment, rank);
  const std::optional<int> world = NumberOf(environment, size);
  if (!own || !world) return std::nullopt;
  RankEnvironment result;
  result.starter = starter;
  result.rank = *own;
  result.world_size = *world;
  result.local_rank = NumberOf(environment, local_rank).value_or(0);
  return result;
}

}  // namespace

Environment ReadEnvironment() {
  Environment result;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::pair<std::string, std::string> variable =
        absl::StrSplit(*entry, absl::MaxSplits('=', 1));
    result.insert(variable);
  }
  return result;
}

std::optional<int> NumberOf(const Environment& environment,
                            const std::string& name) {
  const auto found = environment.find(name);
  int number = 0;
  if (found == environment.end() || !absl::SimpleAtoi(found->second, &number)) {
    return std::nullopt;
  }
  return number;
}

std::optional<RankEnvironment> RankOf(const Environment& environment) {
  if (auto rank =
          Numbered(Starter::kMpirun, environment, "OMPI_COMM_WORLD_RANK",
                   "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")) {
    rank->local_size =
        NumberOf(environment, "OMPI_COMM_WORLD_LOCAL_SIZE").value_or(1);
    return rank;
  }
  // The number of tasks of the step, not of the job: a batch script, which is
  // no task, sees the latter.
  auto task = Numbered(Starter::kSrun, environment, "SLURM_PROCID",
                       "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID");
  if (task && task->world_size > 1) {
    const auto list = environment.find("SLURM_STEP_TASKS_PER_NODE");
    const int tasks =
        list == environment.end()
            ? 0
            : TasksOfNode(list->second,
                          NumberOf(environment, "SLURM_NODEID").value_or(0));
    task->local_size = std::max(tasks, task->local_rank + 1);
    return task;
  }
  if (auto rank = Numbered(Starter::kPmi, environment, "PMI_RANK", "PMI_SIZE",
                           "MPI_LOCALRANKID")) {
    rank->local_size =
        std::max(NumberOf(environment, "MPI_LOCALNRANKS").value_or(1), 1);
    return rank;
  }
  return std::nullopt;
}

const char* Name(RankEnvironment::Starter starter) {
  switch (starter) {
    case Starter::kMpirun:
      return "mpirun";
    case Starter::kSrun:
      return "srun";
    case Starter::kPmi:
      return "PMI";
  }
  return "?";
}

int ThreadsOfRank(const RankEnvironment& rank, int usable, int online) {
  const int local_size = std::max(1, rank.local_size);
  const int threads = rank.starter == Starter::kSrun
                          ? std::min(usable, online / local_size)
                          : usable / local_size;
  return std::max(1, threads);
}

absl::StatusOr<std::string> VisibleGpuOfRank(const RankEnvironment& rank,
                                             const Environment& environment,
                                             int num_gpus) {
  std::vector<std::string> gpus;
  const auto visible = environment.find("CUDA_VISIBLE_DEVICES");
  if (visible != environment.end()) {
    gpus = absl::StrSplit(visible->second, ',', absl::SkipWhitespace());
  } else {
    for (int i = 0; i < num_gpus; ++i) gpus.push_back(absl::StrCat(i));
  }
  const int count = std::min(num_gpus, static_cast<int>(gpus.size()));
  if (rank.local_rank < count) {
    return gpus[static_cast<size_t>(rank.local_rank)];
  }
  if (rank.starter == Starter::kSrun && count == 1) return gpus[0];
  return absl::FailedPreconditionError(absl::StrCat(
      "rank ", rank.rank, " is number ", rank.local_rank, " of ",
      rank.local_size, " ranks on this host, which shows it ", count,
      " GPUs; start one rank per GPU (--gpus_per_node=", count,
      "), or give --device=cpu"));
}

}  // namespace cubit
