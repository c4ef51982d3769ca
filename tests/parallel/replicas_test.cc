// SPDX-License-Identifier: Apache-2.0

#include "parallel/replicas.h"

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "gtest/gtest.h"

#include "parallel/agreement.h"
#include "runtime/host_name.h"
#include "tests/parallel/optimizer_testing.h"

namespace cubit {
namespace {

// CheckReplicas of a mesh where `rank` flips one bit of a parameter.
std::vector<absl::Status> CheckWithFlip(const MeshSizes& sizes, int rank,
                                        const std::string& name) {
  return RunOnMesh(sizes, [&](MeshCommunicators& mesh) {
    RankModel model(&mesh, {});
    if (mesh.rank() == rank) {
      auto* bits = static_cast<unsigned char*>(model.Find(name).value.raw());
      bits[5] ^= 4;
    }
    return CheckReplicas(model.store(), mesh, model.stream());
  });
}

TEST(CheckReplicas, AcceptsEqualWeights) {
  for (const MeshSizes& sizes : std::vector<MeshSizes>{
           {1, 1, 1, 1}, {2, 2, 1, 1}, {2, 1, 2, 2}, {1, 1, 2, 2}}) {
    for (const absl::Status& status : CheckWithFlip(sizes, -1, "")) {
      EXPECT_TRUE(status.ok()) << status;
    }
  }
}

TEST(CheckReplicas, NamesTheOddRankAndTheParameter) {
  // Ranks 1, 3, 5, 7 have the second half of the heads.
  for (const absl::Status& status :
       CheckWithFlip({2, 2, 2, 1}, 5, "layers.1.o_proj")) {
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_TRUE(absl::StrContains(status.message(),
                                  "rank 5 of the group of ranks 1, 3, 5, 7, "
                                  "first in layers.1.o_proj (host "))
        << status;
    EXPECT_TRUE(absl::StrContains(status.message(), HostName()));
  }
}

TEST(CheckReplicas, NamesBothOfTwo) {
  for (const absl::Status& status :
       CheckWithFlip({2, 1, 1, 2}, 3, "final_norm")) {
    EXPECT_TRUE(absl::StrContains(status.message(),
                                  "ranks 2, 3 of the group of ranks 2, 3, "
                                  "first in final_norm"))
        << status;
  }
}

TEST(CheckReplicas, ComparesWhatTpDoesNotCut) {
  for (const absl::Status& status :
       CheckWithFlip({1, 1, 2, 1}, 1, "final_norm")) {
    EXPECT_TRUE(absl::StrContains(status.message(),
                                  "ranks 0, 1 of the group of ranks 0, 1, "
                                  "first in final_norm"))
        << status;
  }
}

TEST(CheckReplicas, ComparesTiedEmbeddings) {
  for (const absl::Status& status :
       CheckWithFlip({1, 1, 1, 2}, 1, "embedding")) {
    EXPECT_TRUE(absl::StrContains(status.message(),
                                  "ranks 0, 1 of the group of ranks 0, 1, "
                                  "first in embedding"))
        << status;
  }
}

TEST(Agreement, EveryRankGetsTheFirstError) {
  const auto statuses = RunOnMesh({3, 1, 1, 1}, [](MeshCommunicators& mesh) {
    Communicator& group = mesh.control();
    EXPECT_TRUE(Agree(&group, absl::OkStatus()).ok());
    absl::Status mine;
    if (mesh.rank() == 1) mine = absl::DataLossError("one");
    if (mesh.rank() == 2) mine = absl::NotFoundError("two");
    EXPECT_EQ(Agree(&group, mine), absl::DataLossError("rank 1: one"));
    return absl::OkStatus();
  });
  for (const absl::Status& status : statuses)
    EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(Agree(nullptr, absl::NotFoundError("x")), absl::NotFoundError("x"));
}

TEST(Agreement, TextsOfAnyLengthTravel) {
  const auto statuses = RunOnMesh({3, 1, 1, 1}, [](MeshCommunicators& mesh) {
    Communicator& group = mesh.control();
    const std::vector<std::string> texts = {"", "b", std::string(100000, 'c')};
    const std::string& mine = texts[static_cast<size_t>(mesh.rank())];
    for (int root = 0; root < 3; ++root) {
      const auto got = BroadcastText(&group, mine, root);
      EXPECT_TRUE(got.ok()) << got.status();
      EXPECT_EQ(*got, texts[static_cast<size_t>(root)]);
    }
    const auto all = GatherTexts(&group, mine);
    EXPECT_TRUE(all.ok()) << all.status();
    if (mesh.rank() == 0) {
      EXPECT_EQ(*all, texts);
    } else {
      EXPECT_TRUE(all->empty());
    }
    return absl::OkStatus();
  });
  for (const absl::Status& status : statuses)
    EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace cubit
