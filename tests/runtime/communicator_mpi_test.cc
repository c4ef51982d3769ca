// SPDX-License-Identifier: Apache-2.0
//
// The conformance suite over processes, and what goes wrong between them: calls
// that differ, ranks that leave, limits that pass. Each rank looks at its own
// part of a test.

#include "runtime/communicator_mpi.h"

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

#include "runtime/check.h"
#include "runtime/communicator.h"
#include "runtime/device.h"
#include "runtime/tensor.h"
#include "tests/runtime/communicator_suite.h"
#include "tests/runtime/mpi_test_main.h"

namespace cubit {
namespace {

constexpr absl::Duration kLong = absl::Seconds(20);
constexpr absl::Duration kShort = absl::Seconds(1);

std::unique_ptr<Communicator> World(absl::Duration timeout,
                                    int64_t block_bytes = int64_t{16} << 20) {
  auto world = TestSession().MakeCommunicator("world", {timeout, block_bytes});
  CUBIT_CHECK_OK(world);
  return *std::move(world);
}

// All processes, or the first `size`, the next `size` and so on.
void RunWorlds(int size, int64_t block_bytes, const CommunicatorBody& body) {
  auto all = World(kLong, block_bytes);
  if (size == all->size()) return body(*all);
  const int world = all->rank() / size;
  const bool whole = (world + 1) * size <= all->size();
  auto part = all->Split(whole ? world : -1, 0, "world");
  CUBIT_CHECK_OK(part);
  if (whole) body(**part);
}

void RunLarge(int size, const CommunicatorBody& body) {
  RunWorlds(size, int64_t{16} << 20, body);
}

// Blocks of a few elements: every larger operation takes several.
void RunSmall(int size, const CommunicatorBody& body) {
  RunWorlds(size, 500, body);
}

Tensor View(std::vector<float>& values) {
  return Tensor(values.data(), DType::kFloat32,
                {static_cast<int64_t>(values.size())});
}

void ExpectError(const absl::Status& status, absl::StatusCode code,
                 const std::vector<std::string>& texts) {
  EXPECT_EQ(status.code(), code) << status;
  for (const std::string& text : texts) {
    EXPECT_TRUE(absl::StrContains(status.message(), text))
        << "wanted: " << text << "\ngot: " << status;
  }
}

TEST(MpiCommunicator, FindsDifferentOperations) {
  auto world = World(kLong);
  Stream stream;
  std::vector<float> x(4);
  ASSERT_TRUE(world->Barrier(stream).ok());
  const absl::Status status =
      world->rank() == 2
          ? world->Broadcast(View(x), 1, stream)
          : world->AllReduce(View(x), View(x), ReduceOp::kMax, stream);
  ExpectError(status, absl::StatusCode::kInvalidArgument,
              {"group \"world\", operation #1: rank 0 called "
               "AllReduce(max, F32 [4]), rank 2 called "
               "Broadcast(root 1, F32 [4])"});
  EXPECT_EQ(world->Barrier(stream), status);
}

TEST(MpiCommunicator, FindsDifferentShapesDTypesReductionsAndRoots) {
  for (int variant = 0; variant < 4; ++variant) {
    auto world = World(kLong);
    Stream stream;
    std::vector<float> x(2000);
    const bool odd = world->rank() == 1;
    const int64_t rows = variant == 0 && odd ? 400 : 300;
    const DType dtype = variant == 1 && odd ? DType::kInt32 : DType::kFloat32;
    const Tensor t(x.data(), dtype, {rows, 2});
    const absl::Status status =
        variant == 2 ? world->AllReduce(
                           t, t, odd ? ReduceOp::kMax : ReduceOp::kSum, stream)
                     : world->Broadcast(t, variant == 3 && odd ? 1 : 0, stream);
    const std::vector<std::string> theirs = {
        "Broadcast(root 0, F32 [400, 2])", "Broadcast(root 0, I32 [300, 2])",
        "AllReduce(max, F32 [300, 2])", "Broadcast(root 1, F32 [300, 2])"};
    ExpectError(
        status, absl::StatusCode::kInvalidArgument,
        {absl::StrCat("rank 1 called ", theirs[static_cast<size_t>(variant)])});
  }
}

TEST(MpiCommunicator, FindsSplitNamesThatDiffer) {
  auto world = World(kLong);
  const auto group = world->Split(7, 0, world->rank() == 2 ? "b" : "a");
  ExpectError(group.status(), absl::StatusCode::kInvalidArgument,
              {"color 7 is \"", "\"a\" on rank ", "\"b\" on rank 2"});
}

TEST(MpiCommunicator, FindsMessagesThatDiffer) {
  auto world = World(kLong);
  Stream stream;
  std::vector<float> x(4);
  std::vector<float> y(5);
  absl::Status status;
  if (world->rank() == 0) {
    status = world->Send(View(x), 1, stream);
    if (status.ok()) status = world->Send(View(x), 1, stream);
  } else if (world->rank() == 1) {
    status = world->Recv(View(x), 0, stream);
    if (status.ok()) status = world->Recv(View(y), 0, stream);
  } else {
    status = world->Recv(View(x), 0, stream);
  }
  ExpectError(status, absl::StatusCode::kInvalidArgument,
              {"message #1 from rank 0 to rank 1: sent F32 [4], the receiver "
               "expects F32 [5]"});
}

TEST(MpiCommunicator, AWrongCallOfOneRankReachesTheOthers) {
  auto world = World(kLong);
  Stream stream;
  std::vector<float> x(4);
  std::vector<float> y(5);
  const absl::Status status = world->AllReduce(
      View(x), View(world->rank() == 3 ? y : x), ReduceOp::kSum, stream);
  ExpectError(status, absl::StatusCode::kInvalidArgument,
              {"rank 3 of 4, AllReduce #0: input F32 [4], output F32 [5]"});
}

TEST(MpiCommunicator, ARankThatLeavesEndsTheCollective) {
  auto world = World(kLong);
  auto bystanders = World(kLong);
  Stream stream;
  ASSERT_TRUE(world->Barrier(stream).ok());
  // No rank is still in it when another finds that one has left.
  ASSERT_TRUE(bystanders->Barrier(stream).ok());
  if (world->rank() == 1) return;
  ExpectError(world->Barrier(stream), absl::StatusCode::kUnavailable,
              {"Barrier #1", "rank 1 has left"});
}

TEST(MpiCommunicator, ARankThatLeavesEndsTheMessage) {
  for (const bool send : {false, true}) {
    auto world = World(kLong);
    Stream stream;
    std::vector<float> x(4);
    if (world->rank() == 0) {
      const absl::Status status = send ? world->Send(View(x), 1, stream)
                                       : world->Recv(View(x), 1, stream);
      ExpectError(status, absl::StatusCode::kUnavailable,
                  {send ? "Send #0 to rank 1" : "Recv #0 from rank 1"});
    }
  }
}

// A rank's last messages arrive though it has gone.
TEST(MpiCommunicator, LeavingAfterTheLastOperationHarmsNobody) {
  for (int round = 0; round < 50; ++round) {
    auto world = World(kLong);
    Stream stream;
    std::vector<float> x(900, 1.0f);
    ASSERT_TRUE(
        world->AllReduce(View(x), View(x), ReduceOp::kSum, stream).ok());
    EXPECT_EQ(x[899], 4.0f);
    std::vector<float> y(900);
    const int other = world->rank() ^ 1;
    const absl::Status status = world->rank() % 2 == 0
                                    ? world->Send(View(x), other, stream)
                                    : world->Recv(View(y), other, stream);
    ASSERT_TRUE(status.ok()) << status;
  }
}

TEST(MpiCommunicator, ACollectiveThatTakesTooLongNamesWhoIsMissing) {
  auto outer = World(kLong);
  auto world = World(kShort);
  Stream stream;
  std::vector<float> x(4);
  if (world->rank() != 2) {
    const absl::Status status =
        world->AllReduce(View(x), View(x), ReduceOp::kSum, stream);
    ExpectError(status, absl::StatusCode::kDeadlineExceeded,
                {"group \"world\"",
                 "waits in AllReduce #0: arrived: ranks 0, "
                 "1, 3; not arrived: ranks 2",
                 "gave up after 1s"});
    EXPECT_EQ(world->RecentOperations().back().state,
              OperationRecord::State::kFailed);
  }
  ASSERT_TRUE(outer->Barrier(stream).ok());
  EXPECT_EQ(world->Barrier(stream).code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(MpiCommunicator, SendsThatCrossAreFound) {
  auto world = World(kShort);
  Stream stream;
  std::vector<float> x(100000);
  const absl::Status status = world->Send(View(x), world->rank() ^ 1, stream);
  ExpectError(status, absl::StatusCode::kDeadlineExceeded,
              {"waits in Send #0 to rank", "not arrived: ranks"});
}

TEST(MpiCommunicator, ACollectiveAgainstAMessageIsFound) {
  auto world = World(kShort);
  Stream stream;
  std::vector<float> x(4);
  const absl::Status status = world->rank() == 0
                                  ? world->Barrier(stream)
                                  : world->Recv(View(x), 0, stream);
  ExpectError(status, absl::StatusCode::kDeadlineExceeded, {});
}

TEST(MpiCommunicator, AbortWakesWaitingRanks) {
  auto world = World(kLong);
  auto bystanders = World(kLong);
  Stream stream;
  std::vector<float> x(4);
  // No rank is still making a group when another aborts.
  ASSERT_TRUE(bystanders->Barrier(stream).ok());
  absl::Status status;
  switch (world->rank()) {
    case 0:
      world->Abort(absl::DataLossError("rank 0 lost its disk"));
      status = world->Health();
      break;
    case 1:
      status = world->Barrier(stream);
      break;
    case 2:
      status = world->Recv(View(x), 0, stream);
      break;
    default:
      status = world->Send(View(x), 0, stream);
  }
  EXPECT_EQ(status, absl::DataLossError("rank 0 lost its disk"));
}

TEST(MpiCommunicator, AbortOfTheWorldWakesItsGroups) {
  auto world = World(kLong);
  auto bystanders = World(kLong);
  Stream stream;
  auto pair = world->Split(world->rank() / 2, 0, "pair");
  ASSERT_TRUE(pair.ok()) << pair.status();
  // No rank is still in the split when another aborts.
  ASSERT_TRUE(bystanders->Barrier(stream).ok());
  absl::Status status;
  if (world->rank() == 3) {
    world->Abort(absl::AbortedError("rank 3 gave up"));
    status = (*pair)->Health();
  } else {
    while (status.ok()) status = (*pair)->Barrier(stream);
  }
  EXPECT_EQ(status, absl::AbortedError("rank 3 gave up"));
}

// Another thread of this process ends the wait, as a watchdog does.
TEST(MpiCommunicator, AnotherThreadMayAbort) {
  auto world = World(kLong);
  Stream stream;
  std::vector<float> x(4);
  std::thread other;
  if (world->rank() == 0) {
    other = std::thread([&world] {
      while (world->RecentOperations().empty()) std::this_thread::yield();
      world->Abort(absl::AbortedError("enough"));
    });
  }
  EXPECT_EQ(world->Recv(View(x), (world->rank() + 1) % 4, stream),
            absl::AbortedError("enough"));
  if (other.joinable()) other.join();
}

// As the lanes do: each thread has a group of its own.
TEST(MpiCommunicator, ThreadsUseTheirGroupsAtTheSameTime) {
  auto world = World(kLong);
  std::vector<std::unique_ptr<Communicator>> groups;
  for (int i = 0; i < 3; ++i) {
    auto group = world->Split(0, 0, absl::StrCat("lane ", i));
    ASSERT_TRUE(group.ok());
    groups.push_back(*std::move(group));
  }
  std::vector<std::thread> threads;
  for (auto& group : groups) {
    threads.emplace_back([&group = *group] {
      Stream stream;
      for (int i = 0; i < 10; ++i) {
        std::vector<float> x(2000, static_cast<float>(group.rank() + i));
        ASSERT_TRUE(
            group.AllReduce(View(x), View(x), ReduceOp::kSum, stream).ok());
        EXPECT_EQ(x[1999], static_cast<float>(6 + 4 * i));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

std::vector<CommunicatorImplementation> ImplementationsUnderTest() {
  return {{"Mpi", {1, 2, 3, 4}, RunLarge}, {"MpiBlocks", {3, 4}, RunSmall}};
}

}  // namespace cubit

int main(int argc, char** argv) {
  return cubit::RunTestsUnderMpi(argc, argv, 4);
}
