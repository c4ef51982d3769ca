// SPDX-License-Identifier: Apache-2.0

#include "parallel/sequence_layout.h"

#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

namespace cubit {
namespace {

TEST(SequenceLayout, IdsByChunksAreThoseOfTheChunksPlacesInEverySequence) {
  constexpr int64_t kBatch = 3;
  constexpr int64_t kSeqLen = 8;
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < kBatch * kSeqLen; ++i) ids.push_back(i);
  std::vector<int32_t> by_chunks(ids.size(), -1);
  SequenceLayout(kSeqLen, 2)
      .OrderByChunks(kBatch, ids.data(), by_chunks.data());
  EXPECT_EQ(by_chunks,
            (std::vector<int32_t>{0, 1, 8,  9,  16, 17, 2, 3, 10, 11, 18, 19,
                                  4, 5, 12, 13, 20, 21, 6, 7, 14, 15, 22, 23}));
}

TEST(SequenceLayout, IdsOfOneChunkStayAsTheyAre) {
  const std::vector<int32_t> ids = {3, 1, 4, 1, 5, 9};
  std::vector<int32_t> by_chunks(ids.size(), -1);
  SequenceLayout(3, 1).OrderByChunks(2, ids.data(), by_chunks.data());
  EXPECT_EQ(by_chunks, ids);
}

}  // namespace
}  // namespace cubit
