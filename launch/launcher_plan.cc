// SPDX-License-Identifier: Apache-2.0

#include "launch/launcher_plan.h"

#include <algorithm>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

#include "launch/config.h"
#include "launch/presets.h"
#include "launch/worker_choice.h"
#include "runtime/file_system.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

using Arguments = absl::Span<const std::string>;

// More ranks than this are a slip of the keyboard, and products would overflow.
constexpr int64_t kMaxRanks = 1 << 20;

bool IsOn(Arguments arguments, absl::string_view name) {
  const std::string value =
      FlagValue(arguments, name, /*takes_next=*/false, "false");
  return value == "true" || value == "1" || value == "yes" || value == "t" ||
         value == "y";
}

std::string Word(Arguments arguments, absl::string_view name) {
  return FlagValue(arguments, name, /*takes_next=*/true, "");
}

absl::StatusOr<RunConfig> BaseConfig(Arguments arguments) {
  const std::string file = Word(arguments, "config");
  const std::string preset = Word(arguments, "preset");
  if (!file.empty()) return LoadConfigFile(file);
  if (!preset.empty()) return LoadPreset(preset);
  if (IsOn(arguments, "resume")) {
    return LoadConfigFile(
        JoinPath(Word(arguments, "output_dir"), "config.textproto"));
  }
  return RunConfig();  // every preset runs on one node
}

// --NAME into `set`; false if it is no number.
template <typename Set>
bool ApplySize(Arguments arguments, absl::string_view name, Set set) {
  const std::string value = Word(arguments, name);
  int number = 0;
  if (value.empty()) return true;
  if (!absl::SimpleAtoi(value, &number)) return false;
  if (number != 0) set(number);
  return true;
}

absl::StatusOr<RunConfig::Parallel> ReadParallel(Arguments arguments) {
  CUBIT_ASSIGN_OR_RETURN(RunConfig config, BaseConfig(arguments));
  for (const std::string& assignment :
       FlagValues(arguments, "set", /*takes_next=*/true)) {
    CUBIT_RETURN_IF_ERROR(ApplyOverride(assignment, &config));
  }
  RunConfig::Parallel* sizes = config.mutable_parallel();
  const bool ok =
      ApplySize(arguments, "nodes", [&](int n) { sizes->set_nodes(n); }) &&
      ApplySize(arguments, "gpus_per_node",
                [&](int n) { sizes->set_gpus_per_node(n); }) &&
      ApplySize(arguments, "tp", [&](int n) { sizes->set_tp_size(n); }) &&
      ApplySize(arguments, "cp", [&](int n) { sizes->set_cp_size(n); }) &&
      ApplySize(arguments, "pp", [&](int n) { sizes->set_pp_size(n); });
  for (const int64_t size :
       {sizes->nodes(), sizes->gpus_per_node(), sizes->tp_size(),
        sizes->cp_size(), sizes->pp_size()}) {
    if (!ok || size < 0 || size > kMaxRanks) {
      return absl::InvalidArgumentError("a size that is none");
    }
  }
  return *sizes;
}

std::string RankWord(int64_t count) {
  return absl::StrCat(count, count == 1 ? " rank" : " ranks");
}

// "2 nodes x 4 GPUs".
std::string Shape(const LaunchPlan& plan, bool gpus) {
  const char* unit = gpus ? "GPU" : "CPU rank";
  return absl::StrCat(plan.nodes, plan.nodes == 1 ? " node x " : " nodes x ",
                      plan.ranks_per_node, " ", unit,
                      plan.ranks_per_node == 1 ? "" : "s");
}

// GPUs that Slurm gives every node of this job; 0 if it says nothing.
int SlurmGpus(const Environment& environment) {
  if (auto here = NumberOf(environment, "SLURM_GPUS_ON_NODE")) return *here;
  const auto found = environment.find("SLURM_GPUS_PER_NODE");
  if (found == environment.end()) return 0;
  // "8" or "h100:8".
  const std::vector<std::string> parts = absl::StrSplit(found->second, ':');
  int count = 0;
  return absl::SimpleAtoi(parts.back(), &count) ? count : 0;
}

int RanksOfNode(const LaunchRequest& request, int gpus) {
  if (request.gpus_per_node > 0) return request.gpus_per_node;
  return std::max(1, gpus);
}

void TellNodes(const LaunchRequest& request, LaunchPlan* plan) {
  if (request.nodes > 0) return;
  plan->arguments.push_back(absl::StrCat("--nodes=", plan->nodes));
}

// Variables that ranks on other hosts need as well.
bool IsForRanks(absl::string_view name) {
  for (absl::string_view prefix :
       {"CUBIT_", "NCCL_", "OMP_", "OPENBLAS_", "LD_LIBRARY_PATH"}) {
    if (absl::StartsWith(name, prefix)) return true;
  }
  return false;
}

void SetMpirun(const LaunchRequest& request, const LaunchSite& site,
               LaunchPlan* plan) {
  plan->kind = LaunchPlan::Kind::kMpirun;
  plan->command = {"mpirun", "--bind-to", "none", "--oversubscribe"};
  const auto add = [plan](std::initializer_list<std::string> words) {
    plan->command.insert(plan->command.end(), words);
  };
  if (!request.hostfile.empty()) {
    add({"--hostfile", request.hostfile, "--map-by",
         absl::StrCat("ppr:", plan->ranks_per_node, ":node")});
    for (const auto& [name, value] : site.environment) {
      if (IsForRanks(name)) add({"-x", name});
    }
  }
  add({"-np", absl::StrCat(plan->num_ranks())});
  if (site.is_root) {
    plan->environment["OMPI_ALLOW_RUN_AS_ROOT"] = "1";
    plan->environment["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1";
  }
}

absl::StatusOr<LaunchPlan> PlanSlurm(const LaunchRequest& request,
                                     const LaunchSite& site,
                                     const std::string& job) {
  if (!request.hostfile.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--hostfile inside Slurm job ", job,
                     ": the job has hosts of its own; leave --hostfile out"));
  }
  const std::optional<int> old_name =
      NumberOf(site.environment, "SLURM_NNODES");
  const int found = NumberOf(site.environment, "SLURM_JOB_NUM_NODES")
                        .value_or(old_name.value_or(1));
  if (request.nodes > found) {
    return absl::FailedPreconditionError(absl::StrCat(
        "--nodes=", request.nodes, ", but Slurm job ", job, " has ", found,
        " nodes; give --nodes=", found,
        " or ask Slurm for more (salloc --nodes=", request.nodes, ")"));
  }
  LaunchPlan plan;
  plan.nodes = request.nodes > 0 ? request.nodes : found;
  const int slurm_gpus = SlurmGpus(site.environment);
  const int gpus = slurm_gpus > 0 ? slurm_gpus : site.num_gpus;
  plan.ranks_per_node = RanksOfNode(request, gpus);
  if (gpus > 0 && plan.ranks_per_node > gpus) {
    return absl::FailedPreconditionError(absl::StrCat(
        "--gpus_per_node=", plan.ranks_per_node, ", but a node of Slurm job ",
        job, " has ", gpus, " GPUs"));
  }
  TellNodes(request, &plan);
  if (plan.num_ranks() == 1) return plan;
  plan.kind = LaunchPlan::Kind::kSrun;
  plan.command = {"srun",
                  "--mpi=pmix",
                  absl::StrCat("--nodes=", plan.nodes),
                  absl::StrCat("--ntasks=", plan.num_ranks()),
                  absl::StrCat("--ntasks-per-node=", plan.ranks_per_node),
                  "--kill-on-bad-exit=1",
                  "--disable-status",
                  "--unbuffered",
                  "--export=ALL"};
  plan.first_line =
      absl::StrCat(RankWord(plan.num_ranks()), ": ", Shape(plan, gpus > 0),
                   ", by srun in Slurm job ", job);
  return plan;
}

absl::StatusOr<LaunchPlan> PlanHosts(const LaunchRequest& request,
                                     const LaunchSite& site) {
  const int found = static_cast<int>(site.hosts.size());
  if (found == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(request.hostfile, " names no host; write one a line"));
  }
  if (request.nodes > found) {
    return absl::FailedPreconditionError(
        absl::StrCat("--nodes=", request.nodes, ", but ", request.hostfile,
                     " names ", found, " hosts"));
  }
  LaunchPlan plan;
  plan.nodes = request.nodes > 0 ? request.nodes : found;
  plan.ranks_per_node = RanksOfNode(request, site.num_gpus);
  TellNodes(request, &plan);
  SetMpirun(request, site, &plan);
  plan.first_line = absl::StrCat(
      RankWord(plan.num_ranks()), ": ", Shape(plan, site.num_gpus > 0),
      ", by mpirun over the hosts of ", request.hostfile);
  return plan;
}

absl::StatusOr<LaunchPlan> PlanHere(const LaunchRequest& request,
                                    const LaunchSite& site) {
  LaunchPlan plan;
  plan.nodes = std::max(1, request.nodes);
  plan.ranks_per_node = RanksOfNode(request, site.num_gpus);
  if (site.num_gpus > 0 && plan.nodes > 1) {
    return absl::FailedPreconditionError(absl::StrCat(
        "--nodes=", plan.nodes, ", but only this machine is known (",
        site.num_gpus, site.num_gpus == 1 ? " GPU" : " GPUs",
        "). Name the machines with --hostfile=FILE (one host a line) or start "
        "inside a Slurm job; --device=cpu emulates nodes with CPU ranks"));
  }
  if (site.num_gpus > 0 && plan.ranks_per_node > site.num_gpus) {
    return absl::FailedPreconditionError(absl::StrCat(
        "--gpus_per_node=", plan.ranks_per_node, ", but this machine has ",
        site.num_gpus, site.num_gpus == 1 ? " GPU" : " GPUs",
        " that the program can use; more machines are named with "
        "--hostfile=FILE"));
  }
  if (plan.num_ranks() == 1) return plan;
  SetMpirun(request, site, &plan);
  plan.first_line =
      site.num_gpus > 0
          ? absl::StrCat(RankWord(plan.num_ranks()), ": ", Shape(plan, true))
          : absl::StrCat(
                "emulating ", Shape(plan, false),
                " on this machine: ", RankWord(plan.num_ranks()), " share ",
                site.num_processors,
                site.num_processors == 1 ? " processor" : " processors");
  return plan;
}

absl::StatusOr<LaunchPlan> PlanPlace(const LaunchRequest& request,
                                     const LaunchSite& site) {
  const auto job = site.environment.find("SLURM_JOB_ID");
  if (job != site.environment.end()) {
    return PlanSlurm(request, site, job->second);
  }
  return request.hostfile.empty() ? PlanHere(request, site)
                                  : PlanHosts(request, site);
}

}  // namespace

LaunchRequest ReadLaunchRequest(absl::Span<const std::string> arguments) {
  LaunchRequest request;
  const absl::StatusOr<RunConfig::Parallel> sizes = ReadParallel(arguments);
  for (const char* name :
       {"help", "h", "helpfull", "list_presets", "dry_run"}) {
    request.alone = request.alone || IsOn(arguments, name);
  }
  if (!sizes.ok()) request.alone = true;
  if (request.alone) return request;
  request.nodes = sizes->has_nodes() ? sizes->nodes() : 0;
  request.gpus_per_node = sizes->gpus_per_node();
  const int64_t model_ranks = int64_t{std::max(1, sizes->tp_size())} *
                              std::max(1, sizes->cp_size()) *
                              std::max(1, sizes->pp_size());
  request.model_ranks = static_cast<int>(std::min(model_ranks, kMaxRanks));
  request.hostfile = Word(arguments, "hostfile");
  return request;
}

absl::StatusOr<LaunchPlan> PlanLaunch(const LaunchRequest& request,
                                      const LaunchSite& site) {
  if (request.alone) return LaunchPlan();
  CUBIT_ASSIGN_OR_RETURN(LaunchPlan plan, PlanPlace(request, site));
  const int64_t ranks = plan.num_ranks();
  if (ranks > kMaxRanks) {
    return absl::InvalidArgumentError(
        absl::StrCat("--nodes and --gpus_per_node make ", ranks, " ranks"));
  }
  if (request.model_ranks <= ranks) return plan;
  return absl::FailedPreconditionError(absl::StrCat(
      "tp x cp x pp is ", request.model_ranks, ", but there ",
      ranks == 1 ? "is " : "are ", RankWord(ranks), " (", plan.nodes,
      plan.nodes == 1 ? " node x " : " nodes x ", plan.ranks_per_node, "). ",
      site.num_gpus > 0
          ? "Use more GPUs (--nodes with --hostfile, --gpus_per_node)"
          : absl::StrCat("Give --nodes=",
                         (request.model_ranks + plan.ranks_per_node - 1) /
                             plan.ranks_per_node),
      " or smaller sizes"));
}

std::vector<std::string> HostsOf(absl::string_view hostfile) {
  std::vector<std::string> hosts;
  for (absl::string_view line : absl::StrSplit(hostfile, '\n')) {
    line = line.substr(0, line.find('#'));
    line = absl::StripAsciiWhitespace(line);
    const std::string host(line.substr(0, line.find_first_of(" \t")));
    if (host.empty() || std::count(hosts.begin(), hosts.end(), host) > 0) {
      continue;
    }
    hosts.push_back(host);
  }
  return hosts;
}

}  // namespace cubit
