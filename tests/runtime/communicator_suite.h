// SPDX-License-Identifier: Apache-2.0
//
// The conformance suite of communicators (communicator_suite.cc): one body per
// property, run by every rank of a world, for each implementation. A body knows
// what the others contribute and so checks its own results. What only one
// implementation promises is tested in a file of its own.

#ifndef CUBIT_TESTS_RUNTIME_COMMUNICATOR_SUITE_H_
#define CUBIT_TESTS_RUNTIME_COMMUNICATOR_SUITE_H_

#include <functional>
#include <string>
#include <vector>

#include "runtime/communicator.h"

namespace cubit {

using CommunicatorBody = std::function<void(Communicator&)>;

struct CommunicatorImplementation {
  std::string name;
  std::vector<int> sizes;  // of worlds
  // Runs `body` on every rank of a new world called "world" that this process
  // has.
  std::function<void(int size, const CommunicatorBody& body)> run;
  // Calls only enqueue, and errors show in Health() later.
  bool queues = false;
};

// Defined by each program that is linked with the suite.
std::vector<CommunicatorImplementation> ImplementationsUnderTest();

}  // namespace cubit

#endif  // CUBIT_TESTS_RUNTIME_COMMUNICATOR_SUITE_H_
