// SPDX-License-Identifier: Apache-2.0
//
// What the implementations whose ranks meet on the host have in common: the
// comparison of calls, the parts of a reduction and their sums in the order of
// the ranks, and what one rank computes in a collective when it can read the
// memory of all (communicator_threads.cc, which sees to it that they have
// arrived).

#ifndef CUBIT_RUNTIME_COLLECTIVE_PHASES_H_
#define CUBIT_RUNTIME_COLLECTIVE_PHASES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "runtime/communicator.h"
#include "runtime/dtype.h"

namespace cubit {

// "0, 2, 3"; "none".
std::string JoinRanks(const std::vector<int>& ranks);
// "F32 [2, 3]".
std::string DescribeTensor(const ConstTensor& x);

// InvalidArgument, naming group, operation and both calls, unless all ranks
// called the same. `calls` in the order of the ranks.
absl::Status CompareCalls(const std::vector<CollectiveCall>& calls,
                          absl::string_view group);

// The ranks that one rank's Split puts together.
struct SplitMembers {
  std::vector<int> ranks;  // of the split group, in the order of the new one
  int rank = 0;            // the caller's in the new one
};

// Of rank `rank`. InvalidArgument, after `prefix`, if names of one color (not
// negative) differ.
absl::StatusOr<SplitMembers> MembersOf(const std::vector<CollectiveCall>& calls,
                                       int rank, absl::string_view prefix);

// Elements [begin, begin + count).
struct ElementRange {
  int64_t begin = 0;
  int64_t count = 0;
};

// Part `index` when `n` elements are dealt out to `size` ranks.
ElementRange PartOf(int64_t n, int size, int index);

// output[i] = reduction of inputs[q][i] over q, ascending; n elements. bf16 is
// added in fp32 and rounded once. `output` may be one of the inputs. CHECK: the
// dtype can be reduced.
void ReduceInOrder(const std::vector<const void*>& inputs, DType dtype,
                   ReduceOp op, int64_t n, void* output);

// Writes the outputs of `rank` from the inputs of all, `calls` in the order of
// the ranks; of AllReduce, only its own part of the output. The in-place forms
// are free of races between ranks that do this at the same time: no rank reads
// the part of an input that another's output replaces.
void ReadInputs(const std::vector<CollectiveCall>& calls, int rank);

// To be called when every rank has done the above: AllReduce collects the parts
// that the ranks have reduced into their outputs.
void ReadOutputs(const std::vector<CollectiveCall>& calls, int rank);

}  // namespace cubit

#endif  // CUBIT_RUNTIME_COLLECTIVE_PHASES_H_
