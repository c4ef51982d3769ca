// SPDX-License-Identifier: Apache-2.0
//
// What a launcher starts: a pure function of the request, the environment and
// the machine. Running it is launcher.h.

#ifndef CUBIT_LAUNCH_LAUNCHER_PLAN_H_
#define CUBIT_LAUNCH_LAUNCHER_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

#include "launch/launcher_environment.h"

namespace cubit {

struct LaunchRequest {
  // Nothing to launch: --help, --list_presets and --dry_run, and a
  // configuration that cannot be read, which the worker refuses in words.
  bool alone = false;
  int nodes = 0;          // parallel.nodes; 0: not given
  int gpus_per_node = 0;  // parallel.gpus_per_node: ranks of a node; 0: all
  int model_ranks = 1;    // tp_size * cp_size * pp_size
  std::string hostfile;   // a path; "" is none
};

// What the arguments of a training run ask for, read as the worker reads them:
// --preset, --config or the configuration of the run that --resume goes on
// with, then --set, then the flags.
LaunchRequest ReadLaunchRequest(absl::Span<const std::string> arguments);

// Where the launcher stands.
struct LaunchSite {
  Environment environment;  // also what the launcher adds for the ranks
  int num_gpus = 0;  // of this node, that the run may use; 0: ranks on the CPU
  int num_processors = 1;
  bool is_root = false;
  std::vector<std::string> hosts;  // of request.hostfile
};

struct LaunchPlan {
  enum class Kind { kOneRank, kMpirun, kSrun };

  Kind kind = Kind::kOneRank;
  int nodes = 1;
  int ranks_per_node = 1;
  std::vector<std::string> command;  // goes before program and arguments
  // Goes before the user's arguments: what the surroundings have decided.
  std::vector<std::string> arguments;
  Environment environment;  // to be set for `command`
  std::string first_line;   // for the user

  int64_t num_ranks() const { return int64_t{nodes} * ranks_per_node; }
};

// Inside a Slurm job: srun. With host file: mpirun over its hosts. Else this
// machine: its GPUs, or on the CPU `nodes` emulated nodes. Errors
// (InvalidArgument, FailedPrecondition) say what was asked, what was found and
// what to do.
absl::StatusOr<LaunchPlan> PlanLaunch(const LaunchRequest& request,
                                      const LaunchSite& site);

// The hosts of Open MPI's host file format, one a line ("node1 slots=8",
// comments after #), each once.
std::vector<std::string> HostsOf(absl::string_view hostfile);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_LAUNCHER_PLAN_H_
