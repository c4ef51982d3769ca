// SPDX-License-Identifier: Apache-2.0
//
// The conformance suite over NCCL. Alone the program tests a world of one rank;
// communicator_nccl_ranks_test.cc starts it with two, whose sums have one order
// only, so that the suite's exact results hold. Vectors lie in memory that the
// GPU reaches, and launches wait (//tests/testing:cuda_test_main).

#include "runtime/communicator_nccl.h"

#include <memory>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "gtest/gtest.h"

#include "runtime/check.h"
#include "runtime/communicator.h"
#include "runtime/communicator_mpi.h"
#include "runtime/communicator_single.h"
#include "tests/runtime/communicator_suite.h"
#include "tests/runtime/nccl_test_device.h"

namespace cubit {
namespace {

// MPI for the time of the tests, if mpirun started this process.
class Session : public testing::Environment {
 public:
  void SetUp() override {
    if (!MpiSession::StartedByMpi()) return;
    auto session = MpiSession::Start();
    CUBIT_CHECK_OK(session);
    session_ = *std::move(session);
    UseTestGpu(session_->rank(), session_->size());
  }
  void TearDown() override { session_.reset(); }

  // A world of `size` ranks; null on ranks that are left over.
  std::unique_ptr<Communicator> Host(int size) {
    if (session_ == nullptr) {
      return size == 1 ? MakeSingleCommunicator("world") : nullptr;
    }
    MpiOptions options;
    options.timeout = absl::Seconds(60);
    auto all = session_->MakeCommunicator("world", options);
    CUBIT_CHECK_OK(all);
    const int world = (*all)->rank() / size;
    const bool whole = (world + 1) * size <= (*all)->size();
    auto part = (*all)->Split(whole ? world : -1, 0, "world");
    CUBIT_CHECK_OK(part);
    return *std::move(part);
  }

 private:
  std::unique_ptr<MpiSession> session_;
};

Session* const session =
    static_cast<Session*>(testing::AddGlobalTestEnvironment(new Session));

void RunNccl(int size, const CommunicatorBody& body) {
  std::unique_ptr<Communicator> host = session->Host(size);
  if (host == nullptr) return;
  auto world = MakeNcclCommunicator(std::move(host), {absl::Seconds(60)});
  ASSERT_TRUE(world.ok()) << world.status();
  body(**world);
}

}  // namespace

std::vector<CommunicatorImplementation> ImplementationsUnderTest() {
  const std::vector<int> sizes =
      MpiSession::StartedByMpi() ? std::vector<int>{1, 2} : std::vector<int>{1};
  return {{"Nccl", sizes, RunNccl, /*queues=*/true}};
}

}  // namespace cubit
