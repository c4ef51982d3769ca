// SPDX-License-Identifier: Apache-2.0
//
// Layouts on the command line of the scaling benchmark.

#ifndef CUBIT_TESTS_BENCHMARKS_SCALING_LAYOUT_H_
#define CUBIT_TESTS_BENCHMARKS_SCALING_LAYOUT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace cubit {

struct ScalingLayout {
  std::string name;  // as it was written
  int dp = 1;
  int tp = 1;
  int pp = 1;
  int cp = 1;
  int64_t num_micro_batches = 0;       // of a dp rank; 0: the fewest that fit
  std::vector<std::string> overrides;  // "parallel.tp_size=2" and the like

  int world_size() const { return dp * tp * pp * cp; }
};

// Words joined by '-': dpN, tpN, ppN, cpN, mN (micro-batches); wavefront, ring,
// ulysses; gpipe, 1f1b, interleaved; zero0, zero1. "1" is one rank.
// InvalidArgument: another word, or a size below 1.
absl::StatusOr<ScalingLayout> ParseLayout(const std::string& text);

// Those to measure on `num_ranks` where nobody says which: every axis alone at
// 2, 4, ... and one mixture of as many as there is room for.
std::vector<std::string> DefaultLayouts(int num_ranks);

}  // namespace cubit

#endif  // CUBIT_TESTS_BENCHMARKS_SCALING_LAYOUT_H_
