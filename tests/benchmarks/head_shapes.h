// SPDX-License-Identifier: Apache-2.0
//
// The flag --shapes of benchmarks of mixer cores: BxHxTxK, by default the
// shapes of the measured peers.

#ifndef CUBIT_TESTS_BENCHMARKS_HEAD_SHAPES_H_
#define CUBIT_TESTS_BENCHMARKS_HEAD_SHAPES_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace cubit {

struct HeadShape {
  int64_t batch = 0;
  int64_t num_heads = 0;
  int64_t seq_len = 0;
  int64_t head_dim = 0;
};

// What the flag says; invalid argument for a text that is no shape.
absl::StatusOr<std::vector<HeadShape>> HeadShapesOfFlag();

}  // namespace cubit

#endif  // CUBIT_TESTS_BENCHMARKS_HEAD_SHAPES_H_
