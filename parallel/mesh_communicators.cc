// SPDX-License-Identifier: Apache-2.0

#include "parallel/mesh_communicators.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

#include "runtime/check.h"
#include "runtime/communicator_single.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

// The smallest rank of a group names it: the same number on all its ranks.
// Groups of one have nobody to talk to, and each that NCCL makes takes time and
// memory; if one rank's group is one, those of all ranks are.
absl::StatusOr<std::unique_ptr<Communicator>> SplitGroup(
    Communicator& world, const std::vector<int>& group,
    absl::string_view name) {
  const std::string full_name = absl::StrCat(name, " of rank ", group.front());
  if (group.size() == 1) return MakeSingleCommunicator(full_name);
  return world.Split(group.front(), world.rank(), full_name);
}

}  // namespace

MeshCommunicators::MeshCommunicators(const DeviceMesh& mesh,
                                     std::unique_ptr<Communicator> world,
                                     std::unique_ptr<Communicator> control)
    : mesh_(mesh),
      coordinate_(mesh.CoordinateOf(world->rank())),
      world_(std::move(world)),
      control_(std::move(control)) {}

absl::StatusOr<std::unique_ptr<MeshCommunicators>> MeshCommunicators::Create(
    const DeviceMesh& mesh, std::unique_ptr<Communicator> world,
    std::unique_ptr<Communicator> control) {
  CUBIT_CHECK_EQ(mesh.world_size(), world->size());
  CUBIT_CHECK_EQ(control->rank(), world->rank());
  auto result = std::unique_ptr<MeshCommunicators>(
      new MeshCommunicators(mesh, std::move(world), std::move(control)));
  Communicator& all = *result->world_;
  for (int i = 0; i < kNumMeshAxes; ++i) {
    const auto axis = static_cast<MeshAxis>(i);
    CUBIT_ASSIGN_OR_RETURN(
        result->axes_[static_cast<size_t>(i)],
        SplitGroup(all, mesh.Group(axis, all.rank()), Name(axis)));
  }
  const std::vector<int> dp_cp = mesh.DpCpGroup(all.rank());
  CUBIT_ASSIGN_OR_RETURN(result->dp_cp_, SplitGroup(all, dp_cp, "dp x cp"));
  const std::vector<int> pp = mesh.Group(MeshAxis::kPp, all.rank());
  if (pp.size() > 1) {
    const bool at_an_end = all.rank() == pp.front() || all.rank() == pp.back();
    CUBIT_ASSIGN_OR_RETURN(
        result->embedding_,
        all.Split(at_an_end ? pp.front() : -1, all.rank(),
                  at_an_end ? absl::StrCat("ends of rank ", pp.front())
                            : "between ends"));
  }
  CUBIT_ASSIGN_OR_RETURN(auto gradients, SplitGroup(all, dp_cp, "gradients"));
  result->gradient_lane_ =
      std::make_unique<CommunicationLane>(std::move(gradients));
  CUBIT_ASSIGN_OR_RETURN(
      auto sequence,
      SplitGroup(all, mesh.Group(MeshAxis::kCp, all.rank()), "sequence"));
  result->sequence_lane_ =
      std::make_unique<CommunicationLane>(std::move(sequence));
  return result;
}

std::unique_ptr<MeshCommunicators> MeshCommunicators::Single() {
  const absl::StatusOr<DeviceMesh> mesh = DeviceMesh::Create(1, 1, 1, 1);
  CUBIT_CHECK(mesh.ok()) << mesh.status();
  auto result = Create(*mesh, MakeSingleCommunicator("world"),
                       MakeSingleCommunicator("control"));
  CUBIT_CHECK(result.ok()) << result.status();
  return *std::move(result);
}

std::vector<std::shared_ptr<const FlightRecorder>>
MeshCommunicators::FlightRecorders() const {
  std::vector<std::shared_ptr<const FlightRecorder>> recorders = {
      control_->flight_recorder(), world_->flight_recorder(),
      dp_cp_->flight_recorder(), gradient_lane_->flight_recorder(),
      sequence_lane_->flight_recorder()};
  for (const auto& axis : axes_) recorders.push_back(axis->flight_recorder());
  if (embedding_ != nullptr) recorders.push_back(embedding_->flight_recorder());
  return recorders;
}

absl::Status MeshCommunicators::Health() {
  CUBIT_RETURN_IF_ERROR(control_->Health());
  CUBIT_RETURN_IF_ERROR(world_->Health());
  for (const auto& axis : axes_) CUBIT_RETURN_IF_ERROR(axis->Health());
  CUBIT_RETURN_IF_ERROR(dp_cp_->Health());
  if (embedding_ != nullptr) CUBIT_RETURN_IF_ERROR(embedding_->Health());
  CUBIT_RETURN_IF_ERROR(gradient_lane_->status());
  return sequence_lane_->status();
}

void MeshCommunicators::Abort(const absl::Status& reason) {
  control_->Abort(reason);
  world_->Abort(reason);  // and all that were split from it
}

}  // namespace cubit
