// SPDX-License-Identifier: Apache-2.0

#include "parallel/device_mesh.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "runtime/check.h"

namespace cubit {
namespace {

int& AxisOf(MeshCoordinate& coordinate, MeshAxis axis) {
  switch (axis) {
    case MeshAxis::kTp:
      return coordinate.tp;
    case MeshAxis::kCp:
      return coordinate.cp;
    case MeshAxis::kDp:
      return coordinate.dp;
    case MeshAxis::kPp:
      break;
  }
  return coordinate.pp;
}

}  // namespace

absl::string_view Name(MeshAxis axis) {
  switch (axis) {
    case MeshAxis::kTp:
      return "tp";
    case MeshAxis::kCp:
      return "cp";
    case MeshAxis::kDp:
      return "dp";
    case MeshAxis::kPp:
      return "pp";
  }
  return "?";
}

absl::StatusOr<DeviceMesh> DeviceMesh::Create(int world_size, int tp_size,
                                              int cp_size, int pp_size) {
  const std::string sizes =
      absl::StrFormat("world_size %d with tp_size %d, cp_size %d, pp_size %d",
                      world_size, tp_size, cp_size, pp_size);
  if (world_size < 1 || tp_size < 1 || cp_size < 1 || pp_size < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(sizes, ": every size must be at least 1"));
  }
  // In steps, so that the product stays below world_size * size.
  int64_t product = 1;
  for (const int size : {tp_size, cp_size, pp_size}) {
    product *= size;
    if (product > world_size) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "%s: tp * cp * pp needs at least %d ranks, there are %d; use smaller "
          "sizes or more ranks",
          sizes, product, world_size));
    }
  }
  if (world_size % product != 0) {
    const int64_t below = world_size / product * product;
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: dp_size = %d / %d is not a whole number; %d or %d ranks would "
        "work",
        sizes, world_size, product, below, below + product));
  }
  return DeviceMesh(
      world_size,
      {tp_size, cp_size, static_cast<int>(world_size / product), pp_size});
}

MeshCoordinate DeviceMesh::CoordinateOf(int rank) const {
  CUBIT_CHECK(rank >= 0 && rank < world_size_)
      << "rank " << rank << " of " << world_size_;
  MeshCoordinate coordinate;
  for (int i = 0; i < kNumMeshAxes; ++i) {
    const auto axis = static_cast<MeshAxis>(i);
    AxisOf(coordinate, axis) = rank % size(axis);
    rank /= size(axis);
  }
  return coordinate;
}

int DeviceMesh::RankOf(const MeshCoordinate& coordinate) const {
  MeshCoordinate c = coordinate;
  int rank = 0;
  for (int i = kNumMeshAxes - 1; i >= 0; --i) {
    const auto axis = static_cast<MeshAxis>(i);
    const int index = AxisOf(c, axis);
    CUBIT_CHECK(index >= 0 && index < size(axis))
        << Name(axis) << " " << index << " of " << size(axis);
    rank = rank * size(axis) + index;
  }
  return rank;
}

std::vector<int> DeviceMesh::Group(MeshAxis axis, int rank) const {
  MeshCoordinate coordinate = CoordinateOf(rank);
  std::vector<int> ranks;
  for (int i = 0; i < size(axis); ++i) {
    AxisOf(coordinate, axis) = i;
    ranks.push_back(RankOf(coordinate));
  }
  return ranks;
}

std::vector<int> DeviceMesh::DpCpGroup(int rank) const {
  std::vector<int> ranks;
  for (const int along_dp : Group(MeshAxis::kDp, rank)) {
    MeshCoordinate coordinate = CoordinateOf(along_dp);
    for (int cp = 0; cp < size(MeshAxis::kCp); ++cp) {
      coordinate.cp = cp;
      ranks.push_back(RankOf(coordinate));
    }
  }
  return ranks;
}

std::string DeviceMesh::ToString() const {
  return absl::StrFormat("%d ranks = pp %d x dp %d x cp %d x tp %d",
                         world_size_, size(MeshAxis::kPp), size(MeshAxis::kDp),
                         size(MeshAxis::kCp), size(MeshAxis::kTp));
}

}  // namespace cubit
