// SPDX-License-Identifier: Apache-2.0
//
// The ranks of a job as a grid with the axes tp (fastest), cp, dp and pp
// (slowest):
//
//   rank = tp_rank + tp_size * (cp_rank + cp_size * (dp_rank + dp_size *
//          pp_rank))
//
// so that ranks that talk most are neighbours. Arithmetic alone: no rank
// communicates here.

#ifndef CUBIT_PARALLEL_DEVICE_MESH_H_
#define CUBIT_PARALLEL_DEVICE_MESH_H_

#include <array>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace cubit {

// Tensor, context (sequence), data and pipeline parallelism, fastest first.
enum class MeshAxis { kTp, kCp, kDp, kPp };
constexpr int kNumMeshAxes = 4;

// "tp", "cp", "dp", "pp".
absl::string_view Name(MeshAxis axis);

struct MeshCoordinate {
  int tp = 0;
  int cp = 0;
  int dp = 0;
  int pp = 0;

  friend bool operator==(const MeshCoordinate& a, const MeshCoordinate& b) {
    return a.tp == b.tp && a.cp == b.cp && a.dp == b.dp && a.pp == b.pp;
  }
};

class DeviceMesh {
 public:
  // dp_size = world_size / (tp_size * cp_size * pp_size). InvalidArgument: a
  // size below 1, or a product that does not divide the world.
  static absl::StatusOr<DeviceMesh> Create(int world_size, int tp_size,
                                           int cp_size, int pp_size);

  int world_size() const { return world_size_; }
  int size(MeshAxis axis) const { return sizes_[static_cast<size_t>(axis)]; }

  // CHECK: the rank, or each coordinate, is one of the mesh.
  MeshCoordinate CoordinateOf(int rank) const;
  int RankOf(const MeshCoordinate& coordinate) const;

  // The ranks that differ from `rank` in no other axis, in the order of this
  // one; `rank` is among them. CHECK: the rank is one of the mesh.
  std::vector<int> Group(MeshAxis axis, int rank) const;
  // The ranks over which gradients are summed: those that differ in dp and cp
  // alone, cp fastest.
  std::vector<int> DpCpGroup(int rank) const;

  // "16 ranks = pp 2 x dp 4 x cp 1 x tp 2".
  std::string ToString() const;

 private:
  DeviceMesh(int world_size, std::array<int, kNumMeshAxes> sizes)
      : world_size_(world_size), sizes_(sizes) {}

  int world_size_;
  std::array<int, kNumMeshAxes> sizes_;  // indexed by MeshAxis
};

}  // namespace cubit

#endif  // CUBIT_PARALLEL_DEVICE_MESH_H_
