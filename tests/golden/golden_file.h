// SPDX-License-Identifier: Apache-2.0
//
// One file of golden values: the inputs of a mixer core, its outputs and the
// gradient of every input (README.md has the layout).

#ifndef CUBIT_TESTS_GOLDEN_GOLDEN_FILE_H_
#define CUBIT_TESTS_GOLDEN_GOLDEN_FILE_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace cubit {
namespace golden {

// An array of any rank, widened to double.
struct Array {
  std::vector<int64_t> shape;
  std::vector<double> values;
};
using Arrays = std::map<std::string, Array>;

enum class Mixer { kSoftmax, kCubit, kDeltaFormer };

struct Case {
  Mixer mixer = Mixer::kSoftmax;
  int64_t batch = 0;      // B
  int64_t num_heads = 0;  // H
  int64_t seq_len = 0;    // T
  int64_t head_dim = 0;   // K, "d" in the file
  bool causal = true;
  bool document_mask = false;
  bool lrr = true;
  bool qk_norm = false;
  bool rope = true;
  double rope_base = 0;
  Arrays in;
  Arrays out;

  const Array& input(const std::string& name) const { return in.at(name); }
};

// Reads and checks a file: every array that the mixer needs is there, nothing
// else is, and all shapes follow from B, H, T and d. Errors name the file, what
// was found and what was wanted.
absl::StatusOr<Case> ReadCase(const std::string& path);

}  // namespace golden
}  // namespace cubit

#endif  // CUBIT_TESTS_GOLDEN_GOLDEN_FILE_H_
