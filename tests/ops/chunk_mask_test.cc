// SPDX-License-Identifier: Apache-2.0

#include "ops/cuda/chunk_mask.h"

#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

namespace cubit {
namespace cuda {
namespace {

struct Pair {
  std::vector<int32_t> rows;  // documents
  std::vector<int32_t> columns;
  bool documents = true;  // whether they are given
  bool diagonal = false;
  bool strict = false;
};

ChunkMaskView ViewOf(const Pair& pair) {
  ChunkMaskView view;
  view.row_segments = pair.documents ? pair.rows.data() : nullptr;
  view.column_segments = pair.documents ? pair.columns.data() : nullptr;
  view.num_rows = static_cast<int>(pair.rows.size());
  view.num_columns = static_cast<int>(pair.columns.size());
  view.diagonal = pair.diagonal;
  view.strict = pair.strict;
  return view;
}

bool Sees(const Pair& pair, size_t row, size_t column) {
  if (pair.documents && pair.rows[row] != pair.columns[column]) return false;
  if (!pair.diagonal) return true;
  return pair.strict ? column < row : column <= row;
}

bool IsInside(const ChunkRange& range, size_t index) {
  return static_cast<int>(index) >= range.begin &&
         static_cast<int>(index) < range.end;
}

// Both views of the mask against its definition, and the bounds that a block of
// rows or columns takes from its first and last.
void Check(const Pair& pair) {
  const ChunkMaskView view = ViewOf(pair);
  for (size_t i = 0; i < pair.rows.size(); ++i) {
    const ChunkRange columns = VisibleColumns(view, static_cast<int>(i));
    for (size_t j = 0; j < pair.columns.size(); ++j) {
      const ChunkRange rows = VisibleRows(view, static_cast<int>(j));
      EXPECT_EQ(IsInside(columns, j), Sees(pair, i, j)) << i << ", " << j;
      EXPECT_EQ(IsInside(rows, i), Sees(pair, i, j)) << i << ", " << j;
    }
  }
  for (int i = 1; i < view.num_rows; ++i) {
    EXPECT_GE(VisibleColumns(view, i).begin, VisibleColumns(view, i - 1).begin);
    EXPECT_GE(VisibleColumns(view, i).end, VisibleColumns(view, i - 1).end);
  }
  for (int j = 1; j < view.num_columns; ++j) {
    EXPECT_GE(VisibleRows(view, j).begin, VisibleRows(view, j - 1).begin);
    EXPECT_GE(VisibleRows(view, j).end, VisibleRows(view, j - 1).end);
  }
}

TEST(ChunkMask, OneDocumentSeesAllOfAnEarlierChunk) {
  Pair pair = {{0, 0, 0}, {0, 0, 0, 0, 0}};
  Check(pair);
  pair.documents = false;
  Check(pair);
}

TEST(ChunkMask, TheDiagonalIsCausalOrStrict) {
  for (const bool documents : {false, true}) {
    for (const bool strict : {false, true}) {
      const std::vector<int32_t> ids = {0, 0, 1, 1, 1, 4, 7, 7};
      Check({ids, ids, documents, true, strict});
      Check({{3}, {3}, documents, true, strict});
    }
  }
}

TEST(ChunkMask, DocumentsEndInTheRows) {
  Check({{2, 2, 3, 3, 5}, {0, 1, 1, 2, 2, 2}});
  Check({{2, 3, 5}, {0, 1}});  // nothing in common
  Check({{4, 4, 4}, {4, 4}});
}

}  // namespace
}  // namespace cuda
}  // namespace cubit
