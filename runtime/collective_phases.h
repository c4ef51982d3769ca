// SPDX-License-Identifier: Apache-2.0
//
// What one rank computes in a collective when it can read the memory of all
// (communicator_threads.cc, which sees to it that they have arrived).

#ifndef CUBIT_RUNTIME_COLLECTIVE_PHASES_H_
#define CUBIT_RUNTIME_COLLECTIVE_PHASES_H_

#include <vector>

#include "runtime/communicator.h"

namespace cubit {

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
