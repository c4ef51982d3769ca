// SPDX-License-Identifier: Apache-2.0

#include "ops/score_tile.h"

#include <algorithm>
#include <vector>

#include "gtest/gtest.h"

#include "tests/ops/head_array.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::Documents;
using ::cubit::testing::HeadArray;
using ::cubit::testing::HostTensor;
using ::cubit::testing::TestMask;

// Every query and key of a tile, asked of both.
void ExpectAgreement(const VisibleKeys& keys, const reference::Mask& mask,
                     int64_t offset, const TileRange& tile) {
  bool any = false;
  for (int64_t i = 0; i < tile.rows; ++i) {
    const VisibleKeys::Interval seen = keys.InTile(tile, i);
    for (int64_t j = 0; j < tile.columns; ++j) {
      const bool want = mask.Sees(tile.row + i, tile.column + j, offset);
      any = any || want;
      ASSERT_EQ(j >= seen.begin && j < seen.end, want)
          << tile.row + i << ", " << tile.column + j;
    }
  }
  // A tile without a visible score may be visited, never the reverse.
  EXPECT_TRUE(keys.Touches(tile) || !any);
}

struct MaskForm {
  bool causal;
  bool strict;
  int64_t num_queries;
};

TEST(VisibleKeys, AgreeWithTheMaskOnEveryTile) {
  constexpr int64_t kKeys = 150;
  for (const MaskForm& form :
       {MaskForm{true, false, 150}, MaskForm{true, false, 100},
        MaskForm{true, false, 1}, MaskForm{true, true, 150},
        MaskForm{false, false, 150}, MaskForm{false, false, 100}}) {
    const TestMask mask(form.causal, Documents(1, kKeys, {1, 64, 65, 149}));
    const VisibleKeys keys(mask.ForOp(), 0, form.num_queries, kKeys,
                           form.strict);
    reference::Mask reference = mask.ForReference(0);
    reference.strict = form.strict;
    for (int64_t row = 0; row < form.num_queries; row += kTile) {
      for (int64_t column = 0; column < kKeys; column += kTile) {
        ExpectAgreement(keys, reference, kKeys - form.num_queries,
                        {row, std::min(kTile, form.num_queries - row), column,
                         std::min(kTile, kKeys - column)});
      }
    }
  }
}

TEST(VisibleKeys, SkipTilesOfOtherDocumentsAndOfTheFuture) {
  const TestMask mask(true, Documents(1, 256, {64, 192}));
  const VisibleKeys keys(mask.ForOp(), 0, 256, 256, /*strict=*/false);
  EXPECT_TRUE(keys.Touches({64, 64, 64, 64}));
  EXPECT_TRUE(keys.Touches({128, 64, 64, 64}));
  EXPECT_FALSE(keys.Touches({64, 64, 0, 64}));
  EXPECT_FALSE(keys.Touches({192, 64, 128, 64}));
  EXPECT_FALSE(keys.Touches({64, 64, 128, 64}));
}

// Ids [B, begin .. begin + count) of ids [B, T].
HostTensor<int32_t> Part(const HostTensor<int32_t>& ids, int64_t begin,
                         int64_t count) {
  const int64_t batch = ids.shape()[0];
  HostTensor<int32_t> part({batch, count});
  for (int64_t i = 0; i < batch * count; ++i) {
    part[i] = ids[i / count * ids.shape()[1] + begin + i % count];
  }
  return part;
}

// Chunks of one sequence: every query and key asked of its mask.
void ExpectChunksAgree(const HostTensor<int32_t>& ids, int64_t b,
                       const TileRange& pair) {
  const HostTensor<int32_t> of_queries = Part(ids, pair.row, pair.rows);
  const HostTensor<int32_t> of_keys = Part(ids, pair.column, pair.columns);
  const VisibleKeys keys = VisibleKeys::OfEarlierChunk(
      of_queries.view(), of_keys.view(), b, pair.rows, pair.columns);
  EXPECT_FALSE(keys.own_keys());
  const reference::Mask mask = TestMask(true, ids).ForReference(b);
  bool any = false;
  for (int64_t i = 0; i < pair.rows; ++i) {
    const VisibleKeys::Interval seen = keys.Of(i);
    for (int64_t j = 0; j < pair.columns; ++j) {
      const bool want = mask.Sees(pair.row + i, pair.column + j, 0);
      any = any || want;
      ASSERT_EQ(j >= seen.begin && j < seen.end, want)
          << pair.row + i << ", " << pair.column + j;
    }
  }
  EXPECT_EQ(keys.Touches({0, pair.rows, 0, pair.columns}), any);
}

TEST(VisibleKeys, OfAnEarlierChunkAgreeWithTheMaskOfTheSequence) {
  const HostTensor<int32_t> ids = Documents(2, 300, {20, 90, 120, 180, 181});
  for (const int64_t b : {0, 1}) {
    for (int64_t column = 0; column < 300; column += 75) {
      for (int64_t row = column + 75; row < 300; row += 75) {
        ExpectChunksAgree(ids, b, {row, 75, column, 75});
      }
    }
  }
}

TEST(VisibleKeysDeathTest, ChunksStandInTheOrderOfTheSequence) {
  const HostTensor<int32_t> early({1, 2}, {0, 1}), late({1, 2}, {1, 2});
  VisibleKeys::OfEarlierChunk(late.view(), early.view(), 0, 2, 2);
  EXPECT_DEATH(VisibleKeys::OfEarlierChunk(early.view(), late.view(), 0, 2, 2),
               "segment ids decrease at query 0");
}

TEST(VisibleKeysDeathTest, DocumentsMustNotComeBack) {
  const HostTensor<int32_t> segments({1, 4}, {0, 1, 0, 1});
  AttentionMask mask;
  mask.segment_ids = segments.view();
  EXPECT_DEATH(VisibleKeys(mask, 0, 4, 4, false),
               "segment_ids decreases at position 2");
}

TEST(Packing, RowsBlocksAndBack) {
  const testing::HeadSize size = {2, 2, 70, 5};
  const HeadArray x(size, "x");
  std::vector<float> rows(70 * 5), blocks(2 * 5 * kTile, -1);
  PackRows(x.view(), 1, 0, 0, 70, 2.0f, rows.data());
  TransposeBlocks(rows.data(), 70, 5, blocks.data());
  for (int64_t t = 0; t < 2 * kTile; ++t) {
    for (int64_t c = 0; c < 5; ++c) {
      const float want = t < 70 ? 2 * x.view().row<float>(1, t, 0)[c] : 0.0f;
      const int64_t block = t / kTile * 5 * kTile;
      EXPECT_EQ(blocks[static_cast<size_t>(block + c * kTile + t % kTile)],
                want);
    }
  }
  HeadArray y(size, "y");
  const std::vector<float> old = y.Head<float>(2).values();
  UnpackRows(rows.data(), 1, 0, 10, 70, /*accumulate=*/true, y.view());
  const std::vector<float> sum = y.Head<float>(2).values();
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(sum[i], i < 50 ? old[i] : old[i] + rows[i]);
  }
  EXPECT_TRUE(y.RestIsPoisoned());
}

}  // namespace
}  // namespace cubit
