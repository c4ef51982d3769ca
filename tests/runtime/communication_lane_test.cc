// SPDX-License-Identifier: Apache-2.0

#include "runtime/communication_lane.h"

#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

#include "runtime/communicator.h"
#include "runtime/communicator_single.h"
#include "runtime/communicator_threads.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {
namespace {

CommunicationLane::Work Append(int value, std::vector<int>* values) {
  return [value, values](Communicator&, Stream&) {
    values->push_back(value);
    return absl::OkStatus();
  };
}

// Work that ends when `release` does.
CommunicationLane::Work WaitFor(std::promise<void>& release) {
  return [&release](Communicator&, Stream&) {
    release.get_future().wait();
    return absl::OkStatus();
  };
}

Tensor View(std::vector<float>& values) {
  return Tensor(values.data(), DType::kFloat32,
                {static_cast<int64_t>(values.size())});
}

TEST(CommunicationLane, NumbersAndRunsWorkInTheOrderOfPosting) {
  CommunicationLane lane(MakeSingleCommunicator("lane"));
  Stream stream;
  std::vector<int> values;
  for (int i = 0; i < 500; ++i) {
    EXPECT_EQ(lane.Post(stream, Append(i, &values)), i);
  }
  lane.Wait(499, stream);
  ASSERT_EQ(values.size(), 500u);
  for (int i = 0; i < 500; ++i) EXPECT_EQ(values[static_cast<size_t>(i)], i);
  EXPECT_TRUE(lane.Done(0));
  EXPECT_TRUE(lane.Done(499));
  EXPECT_TRUE(lane.status().ok());
}

// The caller goes on, and waits for what it names and no more.
TEST(CommunicationLane, RunsBesideTheCaller) {
  CommunicationLane lane(MakeSingleCommunicator("lane"));
  Stream stream;
  std::vector<int> values;
  std::promise<void> release;
  const auto first = lane.Post(stream, Append(1, &values));
  const auto second = lane.Post(stream, WaitFor(release));
  const auto third = lane.Post(stream, Append(3, &values));
  lane.Wait(first, stream);
  EXPECT_EQ(values, std::vector<int>{1});
  EXPECT_TRUE(lane.Done(first));
  EXPECT_FALSE(lane.Done(second));
  EXPECT_FALSE(lane.Done(third));
  release.set_value();
  lane.Wait(third, stream);
  EXPECT_EQ(values, (std::vector<int>{1, 3}));
}

TEST(CommunicationLane, AnErrorStaysAndStopsLaterWork) {
  CommunicationLane lane(MakeSingleCommunicator("lane"));
  Stream stream;
  std::vector<int> values;
  lane.Post(stream, Append(1, &values));
  lane.Post(stream, [](Communicator&, Stream&) {
    return absl::DataLossError("the first");
  });
  const auto last = lane.Post(stream, Append(2, &values));
  lane.Wait(last, stream);
  EXPECT_TRUE(lane.Done(last));
  EXPECT_EQ(values, std::vector<int>{1});
  EXPECT_EQ(lane.status(), absl::DataLossError("the first"));
  lane.Wait(lane.Post(stream, Append(3, &values)), stream);
  EXPECT_EQ(values, std::vector<int>{1});
}

TEST(CommunicationLane, DestructionWaitsForWhatWasPosted) {
  std::vector<int> values;
  std::promise<void> release;
  std::thread helper;
  {
    CommunicationLane lane(MakeSingleCommunicator("lane"));
    Stream stream;
    lane.Post(stream, WaitFor(release));
    lane.Post(stream, Append(1, &values));
    helper = std::thread([&release] { release.set_value(); });
  }
  EXPECT_EQ(values, std::vector<int>{1});
  helper.join();
}

TEST(CommunicationLane, ReportsAnErrorOfItsGroup) {
  CommunicationLane lane(MakeSingleCommunicator("lane"));
  EXPECT_TRUE(lane.status().ok());
  lane.Abort(absl::AbortedError("gone"));
  EXPECT_EQ(lane.status(), absl::AbortedError("gone"));
}

void OnRanks(int size,
             const std::function<void(std::unique_ptr<Communicator>)>& body) {
  auto ranks = MakeThreadCommunicators("lane", size, absl::Minutes(1));
  std::vector<std::thread> threads;
  for (auto& rank : ranks) {
    threads.emplace_back(
        [&body, comm = std::move(rank)]() mutable { body(std::move(comm)); });
  }
  for (std::thread& thread : threads) thread.join();
}

// A ring shift and a sum, as the solve and the gradients use two lanes at the
// same time.
TEST(CommunicationLane, TwoLanesOfARankMoveAtTheSameTime) {
  OnRanks(4, [](std::unique_ptr<Communicator> world) {
    auto first = world->Split(0, world->rank(), "first");
    auto second = world->Split(0, world->rank(), "second");
    ASSERT_TRUE(first.ok() && second.ok());
    CommunicationLane sums(*std::move(first));
    CommunicationLane ring(*std::move(second));
    const int rank = sums.rank();
    ASSERT_EQ(sums.size(), 4);
    Stream stream;
    for (int round = 0; round < 20; ++round) {
      const float base = static_cast<float>(round);
      std::vector<float> x(100, base + static_cast<float>(rank));
      std::vector<float> mine(7, static_cast<float>(rank));
      std::vector<float> theirs(7);
      const auto sum = [&x](Communicator& comm, Stream& s) {
        return comm.AllReduce(View(x), View(x), ReduceOp::kSum, s);
      };
      const auto shift = [&](Communicator& comm, Stream& s) {
        return comm.Exchange({{View(mine), (rank + 1) % 4}},
                             {{View(theirs), (rank + 3) % 4}}, s);
      };
      // Half of the ranks post to one lane first.
      CommunicationLane::Ticket summed = 0;
      if (rank % 2 == 0) summed = sums.Post(stream, sum);
      const auto shifted = ring.Post(stream, shift);
      if (rank % 2 == 1) summed = sums.Post(stream, sum);
      ring.Wait(shifted, stream);
      EXPECT_EQ(theirs[6], static_cast<float>((rank + 3) % 4));
      sums.Wait(summed, stream);
      EXPECT_EQ(x[99], 4 * base + 6);
    }
    EXPECT_TRUE(sums.status().ok());
    EXPECT_TRUE(ring.status().ok());
  });
}

TEST(CommunicationLane, AbortOnOneRankEndsTheWaitOfTheOthers) {
  OnRanks(3, [](std::unique_ptr<Communicator> world) {
    CommunicationLane lane(std::move(world));
    Stream stream;
    if (lane.rank() == 2) {
      lane.Abort(absl::AbortedError("rank 2 gave up"));
    } else {
      const auto ticket = lane.Post(stream, [](Communicator& comm, Stream& s) {
        return comm.Barrier(s);
      });
      lane.Wait(ticket, stream);
    }
    EXPECT_EQ(lane.status(), absl::AbortedError("rank 2 gave up"));
  });
}

}  // namespace
}  // namespace cubit
