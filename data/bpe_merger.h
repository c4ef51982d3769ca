// SPDX-License-Identifier: Apache-2.0
//
// The merge loop of byte-pair encoding (Sennrich et al., "Neural machine
// translation of rare words with subword units", 2016; on bytes: Radford et
// al., "Language models are unsupervised multitask learners", 2019).

#ifndef CUBIT_DATA_BPE_MERGER_H_
#define CUBIT_DATA_BPE_MERGER_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"

#include "data/bpe_vocabulary.h"

namespace cubit {

class BpeMerger {
 public:
  // byte_ids: the token of every single byte.
  explicit BpeMerger(const std::array<int32_t, 256>& byte_ids)
      : byte_ids_(byte_ids) {}

  // Adds the next merge in order of rank. Ids are >= 0. False, with no effect,
  // if the pair has a merge already.
  bool Add(const BpeMerge& merge);

  // Appends the ids of one piece of fewer than 2^32 - 1 bytes: beginning with
  // its bytes, the adjacent pair of lowest rank is merged, the leftmost of
  // equals, until no pair has a merge. Takes O(n log n) time and 28 n bytes of
  // memory for n bytes. Thread-safe once every merge is added.
  void Merge(absl::string_view piece, std::vector<int32_t>* ids) const;

 private:
  struct Product {
    uint32_t rank;
    int32_t id;
  };

  // The merge of a pair; rank kNoRank if there is none.
  Product Find(int32_t left, int32_t right) const;
  void MergeShort(absl::string_view piece, std::vector<int32_t>* ids) const;
  void MergeLong(absl::string_view piece, std::vector<int32_t>* ids) const;

  std::array<int32_t, 256> byte_ids_;
  absl::flat_hash_map<uint64_t, Product> products_;  // by pair
};

}  // namespace cubit

#endif  // CUBIT_DATA_BPE_MERGER_H_
