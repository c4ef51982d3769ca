// SPDX-License-Identifier: Apache-2.0

#include "parallel/device_mesh.h"

#include <algorithm>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace cubit {
namespace {

constexpr MeshAxis kAxes[] = {MeshAxis::kTp, MeshAxis::kCp, MeshAxis::kDp,
                              MeshAxis::kPp};

DeviceMesh Mesh(int world, int tp, int cp, int pp) {
  auto mesh = DeviceMesh::Create(world, tp, cp, pp);
  EXPECT_TRUE(mesh.ok()) << mesh.status();
  return *mesh;
}

TEST(DeviceMesh, TpIsFastestAndPpSlowest) {
  const DeviceMesh mesh = Mesh(120, 2, 3, 4);
  EXPECT_EQ(mesh.world_size(), 120);
  EXPECT_EQ(mesh.size(MeshAxis::kDp), 5);
  EXPECT_EQ(mesh.ToString(), "120 ranks = pp 4 x dp 5 x cp 3 x tp 2");
  EXPECT_EQ(mesh.CoordinateOf(0), (MeshCoordinate{0, 0, 0, 0}));
  EXPECT_EQ(mesh.CoordinateOf(1), (MeshCoordinate{1, 0, 0, 0}));
  EXPECT_EQ(mesh.CoordinateOf(2), (MeshCoordinate{0, 1, 0, 0}));
  EXPECT_EQ(mesh.CoordinateOf(6), (MeshCoordinate{0, 0, 1, 0}));
  EXPECT_EQ(mesh.CoordinateOf(30), (MeshCoordinate{0, 0, 0, 1}));
  EXPECT_EQ(mesh.CoordinateOf(119), (MeshCoordinate{1, 2, 4, 3}));
}

TEST(DeviceMesh, GroupsAreSlices) {
  const DeviceMesh mesh = Mesh(16, 2, 2, 2);
  EXPECT_EQ(mesh.Group(MeshAxis::kTp, 7), (std::vector<int>{6, 7}));
  EXPECT_EQ(mesh.Group(MeshAxis::kCp, 7), (std::vector<int>{5, 7}));
  EXPECT_EQ(mesh.Group(MeshAxis::kDp, 7), (std::vector<int>{3, 7}));
  EXPECT_EQ(mesh.Group(MeshAxis::kPp, 7), (std::vector<int>{7, 15}));
  EXPECT_EQ(mesh.DpCpGroup(7), (std::vector<int>{1, 3, 5, 7}));
  EXPECT_EQ(mesh.DpCpGroup(8), (std::vector<int>{8, 10, 12, 14}));
}

void CheckGroups(const DeviceMesh& mesh, MeshAxis axis) {
  std::set<std::vector<int>> groups;
  for (int rank = 0; rank < mesh.world_size(); ++rank) {
    const std::vector<int> group = mesh.Group(axis, rank);
    ASSERT_EQ(static_cast<int>(group.size()), mesh.size(axis));
    ASSERT_TRUE(std::is_sorted(group.begin(), group.end()));
    ASSERT_EQ(std::count(group.begin(), group.end(), rank), 1);
    groups.insert(group);
  }
  ASSERT_EQ(static_cast<int>(groups.size()),
            mesh.world_size() / mesh.size(axis));
}

// Ranks and coordinates are one to one, and the groups along each axis divide
// the ranks into parts of equal size.
void CheckPartition(const DeviceMesh& mesh) {
  SCOPED_TRACE(mesh.ToString());
  std::set<std::tuple<int, int, int, int>> seen;
  for (int rank = 0; rank < mesh.world_size(); ++rank) {
    const MeshCoordinate c = mesh.CoordinateOf(rank);
    ASSERT_EQ(mesh.RankOf(c), rank);
    seen.insert({c.tp, c.cp, c.dp, c.pp});
  }
  ASSERT_EQ(static_cast<int>(seen.size()), mesh.world_size());
  for (const MeshAxis axis : kAxes) CheckGroups(mesh, axis);
}

// Checks every mesh of `world` ranks; how many there are.
int CheckMeshesOf(int world) {
  int meshes = 0;
  for (int tp = 1; tp <= world; ++tp) {
    for (int cp = 1; tp * cp <= world; ++cp) {
      for (int pp = 1; tp * cp * pp <= world; ++pp) {
        if (world % (tp * cp * pp) != 0) continue;
        CheckPartition(Mesh(world, tp, cp, pp));
        ++meshes;
      }
    }
  }
  return meshes;
}

TEST(DeviceMesh, EveryMeshUpTo24RanksIsAPartition) {
  int meshes = 0;
  for (int world = 1; world <= 24; ++world) meshes += CheckMeshesOf(world);
  EXPECT_EQ(meshes, 408);
}

void ExpectRefused(int world, int tp, int cp, int pp, const std::string& text) {
  const auto mesh = DeviceMesh::Create(world, tp, cp, pp);
  ASSERT_EQ(mesh.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(mesh.status().message(), text))
      << mesh.status();
}

TEST(DeviceMesh, RefusesWithTheNumbers) {
  ExpectRefused(8, 0, 1, 1,
                "world_size 8 with tp_size 0, cp_size 1, pp_size 1: every size "
                "must be at least 1");
  ExpectRefused(0, 1, 1, 1, "at least 1");
  ExpectRefused(8, 2, 4, 2, "needs at least 16 ranks, there are 8");
  ExpectRefused(14, 2, 2, 1,
                "dp_size = 14 / 4 is not a whole number; 12 or 16 ranks would "
                "work");
  // The product does not fit an int.
  ExpectRefused(2147483647, 2147483647, 2147483647, 2147483647,
                "needs at least 4611686014132420609 ranks");
}

}  // namespace
}  // namespace cubit
