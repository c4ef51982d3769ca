// SPDX-License-Identifier: Apache-2.0

#include "parallel/gradient_reducer.h"

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "ops/adamw.h"
#include "tests/parallel/optimizer_testing.h"

namespace cubit {
namespace {

Parameter* Add(ParameterStore* store, const std::string& name, int64_t size,
               bool ends = false, bool follow = false) {
  Parameter* parameter =
      store->Add(name, ShardSpec::Whole({size}), Initializer::Constant(1),
                 /*decay=*/false, follow);
  parameter->sum_over_ends = ends;
  return parameter;
}

TEST(ParameterStore, AlignToMovesOnlyWhatMustMove) {
  ParameterStore store;
  const Parameter* a = Add(&store, "a", 70);
  const Parameter* b = Add(&store, "b", 5, false, /*follow=*/true);
  store.Pad(3);
  const Parameter* tied = Add(&store, "tied", 10, /*ends=*/true);
  const Parameter* c = Add(&store, "c", 1);
  const Parameter* d = Add(&store, "d", 1);
  store.AlignTo(256);
  EXPECT_EQ(a->offset, 0);
  EXPECT_EQ(b->offset, 70);
  EXPECT_EQ(tied->offset, 256);
  EXPECT_EQ(c->offset, 512);
  EXPECT_EQ(d->offset, 576);
  EXPECT_EQ(store.size(), 768);
}

TEST(ParameterStore, AlignToLeavesOneRankAsItWas) {
  ParameterStore store;
  Add(&store, "a", 70);
  const Parameter* b = Add(&store, "b", 5, /*ends=*/true);
  store.AlignTo(kAdamWGroup);
  EXPECT_EQ(b->offset, 128);
  EXPECT_EQ(store.size(), 192);
}

TEST(BucketLayout, PartsOfAllRanksAreTheFlatBuffers) {
  for (int group : {1, 2, 3, 5}) {
    for (bool shard : {true, false}) {
      SCOPED_TRACE(absl::StrCat(group, " ranks, shard ", shard));
      GradientReducerOptions options;
      options.shard = shard;
      options.bucket_bytes = 5000;  // no multiple of anything
      ParameterStore store;
      Add(&store, "a", 1000);
      Add(&store, "tied", 3000, /*ends=*/true);
      for (int i = 0; i < 9; ++i) Add(&store, absl::StrCat(i), 333);
      store.AlignTo(BucketLayout::Alignment(group, options));
      const BucketLayout layout(store, group, options);
      EXPECT_EQ(layout.sharded(), shard && group > 1);
      EXPECT_GT(layout.buckets().size(), 5u);
      int64_t end = 0;
      for (const FlatRange& bucket : layout.buckets()) {
        EXPECT_EQ(bucket.begin, end);
        EXPECT_GT(bucket.size(), 0);
        end = bucket.end;
      }
      EXPECT_EQ(end, store.size());
      std::vector<int> owners(static_cast<size_t>(store.size()));
      for (int rank = 0; rank < group; ++rank) {
        int64_t local = 0;
        for (const FlatRange& range : layout.LocalRanges(rank)) {
          EXPECT_EQ(range.begin % kAdamWGroup, 0);
          local += range.size();
          for (int64_t i = range.begin; i < range.end; ++i) {
            ++owners[static_cast<size_t>(i)];
          }
        }
        EXPECT_EQ(local, layout.num_local());
      }
      const int wanted = layout.sharded() ? 1 : group;
      for (int owner : owners) ASSERT_EQ(owner, wanted);
    }
  }
}

// Both ends of a pipeline must cut it alike, wherever it lies.
TEST(BucketLayout, ATiedParameterHasBucketsOfItsOwn) {
  const GradientReducerOptions options = {true, 2048};
  std::vector<std::vector<int64_t>> ends;
  for (bool first : {true, false}) {
    ParameterStore store;
    if (!first) Add(&store, "layer", 777);
    const Parameter* tied = Add(&store, "tied", 1500, /*ends=*/true);
    if (first) Add(&store, "layer", 555);
    store.AlignTo(BucketLayout::Alignment(4, options));
    const BucketLayout layout(store, 4, options);
    ends.emplace_back();
    const FlatRange buckets = layout.BucketsOf(RangeOf(*tied));
    for (int64_t i = buckets.begin; i < buckets.end; ++i) {
      for (int rank = 0; rank < 4; ++rank) {
        ends.back().push_back(layout.Part(static_cast<size_t>(i), rank).end -
                              tied->offset);
      }
    }
  }
  EXPECT_EQ(ends[0], ends[1]);
  EXPECT_GT(ends[0].size(), 8u);
}

TEST(BucketLayout, BucketsOfFindsAllThatARangeTouches) {
  ParameterStore store;
  Add(&store, "a", 640);
  const BucketLayout layout(store, 1, {true, 256});  // 64 elements each
  const auto expect = [&](FlatRange range, int64_t begin, int64_t end) {
    const FlatRange found = layout.BucketsOf(range);
    EXPECT_EQ(found.begin, begin);
    EXPECT_EQ(found.end, end);
  };
  expect({0, 640}, 0, 10);
  expect({63, 64}, 0, 1);
  expect({64, 65}, 1, 2);
  expect({63, 65}, 0, 2);
  expect({5, 5}, 0, 0);
}

TEST(BucketLayoutDeathTest, AsksForAnAlignedStore) {
  ParameterStore store;
  Add(&store, "a", 640);
  EXPECT_DEATH(BucketLayout(store, 4, {true, 256}), "not aligned");
}

TEST(GradientReducerDeathTest, AParameterIsReadyOnce) {
  const auto mesh = MeshCommunicators::Single();
  RankModel model(mesh.get(), {});
  EXPECT_DEATH(
      {
        model.reducer().Ready(0, 2, model.stream());
        model.reducer().Ready(1, 2, model.stream());
      },
      "ready twice");
  EXPECT_DEATH(model.reducer().Finish(model.stream()).IgnoreError(),
               "num_ready_");
}

TEST(GradientReducer, OneRankChangesNothing) {
  const auto mesh = MeshCommunicators::Single();
  RankModel model(mesh.get(), {});
  model.FillGradients(1);
  const Tensor gradients = model.store().flat_gradients();
  const std::vector<float> before(
      gradients.data<float>(),
      gradients.data<float>() + gradients.num_elements());
  model.ReportReady();
  ASSERT_TRUE(model.reducer().Finish(model.stream()).ok());
  for (size_t i = 0; i < before.size(); ++i) {
    ASSERT_EQ(gradients.data<float>()[i], before[i]);
  }
  EXPECT_EQ(GradientReducer::WorkspaceBytes(model.store(), mesh->mesh()), 0);
}

// A rank that gives up fails the sums of the others, in bounded time.
TEST(GradientReducer, ALostRankIsAnErrorEverywhere) {
  const auto statuses =
      RunOnMesh({4, 1, 1, 1}, [](MeshCommunicators& mesh) -> absl::Status {
        RankModel model(&mesh, {true, 2048});
        if (mesh.rank() == 2) return absl::UnavailableError("rank 2 is lost");
        model.FillGradients(1);
        model.ReportReady();
        return model.reducer().Finish(model.stream());
      });
  for (const absl::Status& status : statuses) {
    EXPECT_FALSE(status.ok());
    EXPECT_EQ(status.message(), "rank 2 is lost");
  }
}

}  // namespace
}  // namespace cubit
