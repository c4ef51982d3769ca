// SPDX-License-Identifier: Apache-2.0
//
// Which columns a row of a pair of chunks sees, and which rows see a column
// (ChunkMask in chunked_attention.h). Documents are contiguous, so both are one
// range, and bounds never decrease from one row or column to the next: the
// range of a block of rows goes from the first row's begin to the last row's
// end. Plain functions, which a test on the CPU calls too.

#ifndef CUBIT_OPS_CUDA_CHUNK_MASK_H_
#define CUBIT_OPS_CUDA_CHUNK_MASK_H_

#include <cstdint>

#ifdef __CUDACC__
#define CUBIT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define CUBIT_HOST_DEVICE inline
#endif

namespace cubit {
namespace cuda {

// [begin, end); end <= begin: nothing.
struct ChunkRange {
  int begin;
  int end;
};

// One sequence of a pair of chunks.
struct ChunkMaskView {
  const int32_t* row_segments;  // [num_rows], or null: one document
  const int32_t* column_segments;
  int num_rows;
  int num_columns;
  bool diagonal;  // the chunks are the same
  bool strict;    // of these, a row does not see its own column
};

// How many of ids [0, count), which do not decrease, are below `id`, or up to
// it with `or_equal`.
CUBIT_HOST_DEVICE int CountSegments(const int32_t* ids, int count, int32_t id,
                                    bool or_equal) {
  int begin = 0;
  int end = count;
  while (begin < end) {
    const int middle = (begin + end) / 2;
    if (ids[middle] < id || (or_equal && ids[middle] == id)) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

// Columns that `row` < num_rows sees.
CUBIT_HOST_DEVICE ChunkRange VisibleColumns(const ChunkMaskView& mask,
                                            int row) {
  ChunkRange range = {0, mask.num_columns};
  if (mask.row_segments != nullptr) {
    const int32_t id = mask.row_segments[row];
    range.begin =
        CountSegments(mask.column_segments, mask.num_columns, id, false);
    range.end = CountSegments(mask.column_segments, mask.num_columns, id, true);
  }
  const int causal_end = mask.strict ? row : row + 1;
  if (mask.diagonal && causal_end < range.end) range.end = causal_end;
  return range;
}

// Rows that see `column` < num_columns.
CUBIT_HOST_DEVICE ChunkRange VisibleRows(const ChunkMaskView& mask,
                                         int column) {
  ChunkRange range = {0, mask.num_rows};
  if (mask.row_segments != nullptr) {
    const int32_t id = mask.column_segments[column];
    range.begin = CountSegments(mask.row_segments, mask.num_rows, id, false);
    range.end = CountSegments(mask.row_segments, mask.num_rows, id, true);
  }
  const int causal_begin = mask.strict ? column + 1 : column;
  if (mask.diagonal && causal_begin > range.begin) range.begin = causal_begin;
  return range;
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_CHUNK_MASK_H_
