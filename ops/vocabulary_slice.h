// SPDX-License-Identifier: Apache-2.0
//
// A vocabulary in slices, one for each rank: an op that takes one works on V
// tokens of a larger vocabulary, where V is an extent of its tensors.

#ifndef CUBIT_OPS_VOCABULARY_SLICE_H_
#define CUBIT_OPS_VOCABULARY_SLICE_H_

#include <cstdint>

namespace cubit {

// Tokens [begin, begin + V). Those below `size` exist; the rest, which may be
// all of a slice, is padding.
struct VocabularySlice {
  int64_t begin = 0;
  int64_t size = 0;

  // How many of V tokens exist.
  int64_t Existing(int64_t extent) const {
    const int64_t left = size > begin ? size - begin : 0;
    return left < extent ? left : extent;
  }
};

}  // namespace cubit

#endif  // CUBIT_OPS_VOCABULARY_SLICE_H_
