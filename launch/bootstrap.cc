// SPDX-License-Identifier: Apache-2.0

#include "launch/bootstrap.h"

#include <unistd.h>

#include <cstdlib>
#include <optional>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"

#include "launch/bootstrap_agreement.h"
#include "launch/launcher_report.h"
#include "runtime/communicator_nccl.h"
#include "runtime/communicator_single.h"
#include "runtime/device.h"
#include "runtime/host_name.h"
#include "runtime/logging.h"
#include "runtime/status_macros.h"

// Read by the program that starts the ranks (launcher_plan.h).
ABSL_FLAG(std::string, hostfile, "",
          "the hosts of several nodes, one a line (\"node1\", Open MPI's "
          "format), with this program at the same path; ranks are started on "
          "them by mpirun");

namespace cubit {
namespace {

// The group that moves tensors of this program's device: MPI's, or NCCL's on
// top of it.
absl::StatusOr<std::unique_ptr<Communicator>> MakeWorld(MpiSession& session) {
  CUBIT_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> host,
                         session.MakeCommunicator("world", MpiOptions()));
  if (DeviceKind() == "cpu") return host;
  return MakeNcclCommunicator(std::move(host), NcclOptions());
}

}  // namespace

absl::StatusOr<Bootstrap> StartRanks() {
  Bootstrap ranks;
  ranks.host = HostName();
  if (!MpiSession::StartedByMpi()) {
    ranks.world = MakeSingleCommunicator("world");
    ranks.control = MakeSingleCommunicator("control");
    return ranks;
  }
  const std::optional<RankEnvironment> started = RankOf(ReadEnvironment());
  CUBIT_ASSIGN_OR_RETURN(ranks.session, MpiSession::Start());
  ranks.rank = ranks.session->rank();
  ranks.world_size = ranks.session->size();
  LogAsRank(ranks.rank, ranks.world_size);
  if (started) {
    ranks.local_rank = started->local_rank;
    ranks.local_size = started->local_size;
    if (started->world_size != ranks.world_size) {
      return absl::FailedPreconditionError(absl::StrCat(
          Name(started->starter), " started ", started->world_size,
          " ranks, but MPI knows of ", ranks.world_size,
          "; with Slurm use srun --mpi=pmix, and the mpirun of the MPI that "
          "this program is linked with"));
    }
  }
  CUBIT_ASSIGN_OR_RETURN(
      ranks.control, ranks.session->MakeCommunicator("control", MpiOptions()));
  CUBIT_ASSIGN_OR_RETURN(ranks.world, MakeWorld(*ranks.session));
  return ranks;
}

absl::Status CheckAgreement(const Bootstrap& ranks, absl::string_view config,
                            int nodes, int gpus_per_node) {
  RankFacts own;
  const std::optional<RankEnvironment> started = RankOf(ReadEnvironment());
  own.rank = started ? started->rank : ranks.rank;
  own.world_size = started ? started->world_size : ranks.world_size;
  own.host = ranks.host;
  own.pid = getpid();
  own.config = std::string(config);
  CUBIT_ASSIGN_OR_RETURN(own.program, OwnProgramDigest());
  CUBIT_RETURN_IF_ERROR(CheckFacts(*ranks.control, own));
  return CheckRankCount(nodes, gpus_per_node, DeviceKind(), ranks.world_size);
}

void AnnounceResumeCommand(const Bootstrap& ranks, const std::string& command) {
  if (ranks.rank != 0 || std::getenv(kLauncherVariable) == nullptr) return;
  RankReport report;
  report.kind = RankReport::Kind::kResume;
  report.host = ranks.host;
  report.pid = getpid();
  report.text = command;
  const std::string text = EncodeReport(report);
  const ssize_t ignored = write(STDERR_FILENO, text.data(), text.size());
  (void)ignored;  // the launcher is gone
}

}  // namespace cubit
