// SPDX-License-Identifier: Apache-2.0
//
// The communicators of one rank: one for each axis of the mesh, and those that
// span axes. device_mesh.h has the arithmetic.

#ifndef CUBIT_PARALLEL_MESH_COMMUNICATORS_H_
#define CUBIT_PARALLEL_MESH_COMMUNICATORS_H_

#include <array>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "parallel/device_mesh.h"
#include "runtime/communication_lane.h"
#include "runtime/communicator.h"

namespace cubit {

class MeshCommunicators {
 public:
  // Splits `world`, whose size is the mesh's; a collective of all ranks.
  // `control` [same ranks] moves host memory at any time and never waits for a
  // device; where ranks compute on the host it may be a split of `world`.
  static absl::StatusOr<std::unique_ptr<MeshCommunicators>> Create(
      const DeviceMesh& mesh, std::unique_ptr<Communicator> world,
      std::unique_ptr<Communicator> control);
  // A mesh of one rank.
  static std::unique_ptr<MeshCommunicators> Single();

  const DeviceMesh& mesh() const { return mesh_; }
  const MeshCoordinate& coordinate() const { return coordinate_; }
  int rank() const { return world_->rank(); }
  int size(MeshAxis axis) const { return mesh_.size(axis); }

  Communicator& world() { return *world_; }
  Communicator& control() { return *control_; }
  Communicator& axis(MeshAxis axis) {
    return *axes_[static_cast<size_t>(axis)];
  }
  // The ranks over which gradients are summed (DeviceMesh::DpCpGroup).
  Communicator& dp_cp() { return *dp_cp_; }
  // First and last pipeline stage of this rank's pipeline, which share tied
  // embeddings; null on other stages, and where there is one stage.
  Communicator* embedding() { return embedding_.get(); }
  // Lanes beside computation: of dp_cp() for gradients and parameters, of cp
  // for the sequence-parallel solve. Each has communicators of its own.
  CommunicationLane& gradient_lane() { return *gradient_lane_; }
  CommunicationLane& sequence_lane() { return *sequence_lane_; }

  // The records of every group, for a watchdog.
  std::vector<std::shared_ptr<const FlightRecorder>> FlightRecorders() const;

  // The first error of any group that this process knows of.
  absl::Status Health();
  // Fails every group, on every rank.
  void Abort(const absl::Status& reason);

 private:
  MeshCommunicators(const DeviceMesh& mesh, std::unique_ptr<Communicator> world,
                    std::unique_ptr<Communicator> control);

  DeviceMesh mesh_;
  MeshCoordinate coordinate_;
  std::unique_ptr<Communicator> world_;
  std::unique_ptr<Communicator> control_;
  std::array<std::unique_ptr<Communicator>, kNumMeshAxes> axes_;
  std::unique_ptr<Communicator> dp_cp_;
  std::unique_ptr<Communicator> embedding_;
  std::unique_ptr<CommunicationLane> gradient_lane_;
  std::unique_ptr<CommunicationLane> sequence_lane_;
};

}  // namespace cubit

#endif  // CUBIT_PARALLEL_MESH_COMMUNICATORS_H_
