// SPDX-License-Identifier: Apache-2.0

#include "data/bpe_merger.h"

#include <array>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace cubit {
namespace {

std::array<int32_t, 256> OwnIds() {
  std::array<int32_t, 256> ids;
  for (int32_t byte = 0; byte < 256; ++byte) ids[byte] = byte;
  return ids;
}

// The definition, word for word: look for the pair of lowest rank from the
// left, merge it, begin again.
std::vector<int32_t> MergeByDefinition(const std::vector<BpeMerge>& merges,
                                       const std::string& piece) {
  std::map<std::pair<int32_t, int32_t>, size_t> rank_of;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    rank_of[{merges[rank].left, merges[rank].right}] = rank;
  }
  std::vector<int32_t> ids;
  for (const char c : piece) ids.push_back(static_cast<unsigned char>(c));
  while (true) {
    size_t best_rank = merges.size();
    size_t best_at = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto found = rank_of.find({ids[i], ids[i + 1]});
      if (found != rank_of.end() && found->second < best_rank) {
        best_rank = found->second;
        best_at = i;
      }
    }
    if (best_rank == merges.size()) return ids;
    ids[best_at] = merges[best_rank].result;
    ids.erase(ids.begin() + static_cast<int64_t>(best_at) + 1);
  }
}

// `count` merges of random pairs of the letters and of what was merged before,
// in an order that need not be that of a trained vocabulary.
std::vector<BpeMerge> RandomMerges(int letters, int count, std::mt19937* random,
                                   BpeMerger* merger) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < letters; ++i) tokens.push_back('a' + i);
  std::vector<BpeMerge> merges;
  int32_t next = 256;
  while (static_cast<int>(merges.size()) < count) {
    const BpeMerge merge = {tokens[(*random)() % tokens.size()],
                            tokens[(*random)() % tokens.size()], next};
    if (!merger->Add(merge)) continue;
    merges.push_back(merge);
    tokens.push_back(next++);
  }
  return merges;
}

TEST(BpeMerger, AgreesWithTheDefinitionOnShortAndLongPieces) {
  std::mt19937 random(3);
  for (int round = 0; round < 60; ++round) {
    BpeMerger merger(OwnIds());
    const int letters = 1 + static_cast<int>(random() % 4);
    const std::vector<BpeMerge> merges = RandomMerges(
        letters, 1 + static_cast<int>(random() % 60), &random, &merger);
    for (const size_t size : {1, 2, 3, 10, 47, 48, 49, 50, 130}) {
      std::string piece;
      for (size_t i = 0; i < size; ++i) {
        piece.push_back(static_cast<char>('a' + random() % letters));
      }
      std::vector<int32_t> ids;
      merger.Merge(piece, &ids);
      ASSERT_EQ(ids, MergeByDefinition(merges, piece)) << piece;
    }
  }
}

TEST(BpeMerger, MergesTheLeftmostOfEqualPairsFirst) {
  BpeMerger merger(OwnIds());
  ASSERT_TRUE(merger.Add({'a', 'a', 256}));
  EXPECT_FALSE(merger.Add({'a', 'a', 257}));
  for (const size_t size : {3, 99}) {
    std::vector<int32_t> ids;
    merger.Merge(std::string(size, 'a'), &ids);
    std::vector<int32_t> expected(size / 2, 256);
    expected.push_back('a');
    EXPECT_EQ(ids, expected);
  }
}

TEST(BpeMerger, AppendsAndTakesEmptyPieces) {
  const BpeMerger merger(OwnIds());
  std::vector<int32_t> ids = {7};
  merger.Merge("", &ids);
  merger.Merge("b", &ids);
  EXPECT_EQ(ids, (std::vector<int32_t>{7, 'b'}));
}

// Quadratic time would be 10^11 steps: far over the limit of the test.
TEST(BpeMerger, TakesAMillionBytesInOnePiece) {
  BpeMerger merger(OwnIds());
  int32_t token = 'a';
  for (int32_t next = 256; next < 276; ++next) {  // "a" doubled 20 times
    ASSERT_TRUE(merger.Add({token, token, next}));
    token = next;
  }
  std::vector<int32_t> ids;
  merger.Merge(std::string(size_t{1} << 20, 'a'), &ids);
  EXPECT_EQ(ids, (std::vector<int32_t>{275}));
}

}  // namespace
}  // namespace cubit
