// SPDX-License-Identifier: Apache-2.0
//
// The conformance suite over the implementations of one process.

#include "runtime/communicator.h"

#include <thread>
#include <utility>
#include <vector>

#include "absl/time/time.h"

#include "runtime/communicator_single.h"
#include "runtime/communicator_threads.h"
#include "tests/runtime/communicator_suite.h"

namespace cubit {
namespace {

void RunSingle(int /*size*/, const CommunicatorBody& body) {
  body(*MakeSingleCommunicator("world"));
}

void RunThreads(int size, const CommunicatorBody& body) {
  auto ranks = MakeThreadCommunicators("world", size, absl::Minutes(1));
  std::vector<std::thread> threads;
  for (auto& rank : ranks) {
    threads.emplace_back([&body, comm = std::move(rank)] { body(*comm); });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

std::vector<CommunicatorImplementation> ImplementationsUnderTest() {
  return {{"Single", {1}, RunSingle},
          {"Threads", {1, 2, 3, 4, 5, 6, 7, 8}, RunThreads}};
}

}  // namespace cubit
