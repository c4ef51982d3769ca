// SPDX-License-Identifier: Apache-2.0
//
// What goes wrong between ranks that are threads: calls that differ, ranks that
// leave, limits that pass. The conformance suite is in communicator_test.cc.

#include "runtime/communicator_threads.h"

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

#include "runtime/communicator.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {
namespace {

constexpr absl::Duration kLong = absl::Minutes(1);
// Long enough for every thread of a busy machine to arrive.
constexpr absl::Duration kShort = absl::Milliseconds(250);

using Body = std::function<absl::Status(Communicator&)>;

// What `body` returned on each rank. A rank's communicator is destroyed as soon
// as its body returns.
std::vector<absl::Status> RunRanks(int size, absl::Duration timeout,
                                   const Body& body) {
  auto ranks = MakeThreadCommunicators("world", size, timeout);
  std::vector<absl::Status> statuses(ranks.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < ranks.size(); ++i) {
    threads.emplace_back(
        [&body, &status = statuses[i], comm = std::move(ranks[i])]() mutable {
          status = body(*comm);
          comm.reset();
        });
  }
  for (std::thread& thread : threads) thread.join();
  return statuses;
}

Tensor View(std::vector<float>& values) {
  return Tensor(values.data(), DType::kFloat32,
                {static_cast<int64_t>(values.size())});
}

// Every rank got the same error, with this code and all of `texts`.
void ExpectAll(const std::vector<absl::Status>& statuses, absl::StatusCode code,
               const std::vector<std::string>& texts) {
  for (const absl::Status& status : statuses) {
    EXPECT_EQ(status, statuses[0]);
    EXPECT_EQ(status.code(), code) << status;
    for (const std::string& text : texts) {
      EXPECT_TRUE(absl::StrContains(status.message(), text))
          << "wanted: " << text << "\ngot: " << status;
    }
  }
}

TEST(ThreadCommunicator, BarrierWaitsForEveryRank) {
  std::vector<int> counts(5);  // plain: ThreadSanitizer sees a missing wait
  const auto statuses = RunRanks(5, kLong, [&counts](Communicator& comm) {
    Stream stream;
    for (int round = 1; round <= 50; ++round) {
      counts[static_cast<size_t>(comm.rank())] = round;
      absl::Status status = comm.Barrier(stream);
      for (const int count : counts) EXPECT_EQ(count, round);
      status.Update(comm.Barrier(stream));
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  });
  for (const absl::Status& status : statuses) EXPECT_TRUE(status.ok());
}

TEST(ThreadCommunicator, FindsDifferentOperations) {
  const auto statuses = RunRanks(3, kLong, [](Communicator& comm) {
    Stream stream;
    std::vector<float> x(4);
    absl::Status status = comm.Barrier(stream);
    if (!status.ok()) return status;
    if (comm.rank() == 2) return comm.Broadcast(View(x), 1, stream);
    return comm.AllReduce(View(x), View(x), ReduceOp::kMax, stream);
  });
  ExpectAll(statuses, absl::StatusCode::kInvalidArgument,
            {"group \"world\", operation #1: rank 0 called "
             "AllReduce(max, F32 [4]), rank 2 called "
             "Broadcast(root 1, F32 [4])"});
}

TEST(ThreadCommunicator, FindsDifferentShapesDTypesReductionsAndRoots) {
  const auto call = [](int variant, Communicator& comm) {
    Stream stream;
    std::vector<float> x(12);
    const bool odd = comm.rank() == 1;
    const int64_t rows = variant == 0 && odd ? 4 : 3;
    const DType dtype = variant == 1 && odd ? DType::kInt32 : DType::kFloat32;
    const Tensor t(x.data(), dtype, {rows, 2});
    if (variant == 2) {
      return comm.AllReduce(t, t, odd ? ReduceOp::kMax : ReduceOp::kSum,
                            stream);
    }
    return comm.Broadcast(t, variant == 3 && odd ? 1 : 0, stream);
  };
  const std::vector<std::pair<std::string, std::string>> texts = {
      {"Broadcast(root 0, F32 [3, 2])", "Broadcast(root 0, F32 [4, 2])"},
      {"Broadcast(root 0, F32 [3, 2])", "Broadcast(root 0, I32 [3, 2])"},
      {"AllReduce(sum, F32 [3, 2])", "AllReduce(max, F32 [3, 2])"},
      {"Broadcast(root 0, F32 [3, 2])", "Broadcast(root 1, F32 [3, 2])"}};
  for (int variant = 0; variant < 4; ++variant) {
    const auto statuses = RunRanks(
        2, kLong, [&](Communicator& comm) { return call(variant, comm); });
    const auto& [first, second] = texts[static_cast<size_t>(variant)];
    ExpectAll(statuses, absl::StatusCode::kInvalidArgument,
              {absl::StrCat("rank 0 called ", first),
               absl::StrCat("rank 1 called ", second)});
  }
}

TEST(ThreadCommunicator, FindsSplitNamesThatDiffer) {
  const auto statuses = RunRanks(3, kLong, [](Communicator& comm) {
    return comm.Split(7, 0, comm.rank() == 2 ? "b" : "a").status();
  });
  ExpectAll(statuses, absl::StatusCode::kInvalidArgument,
            {"color 7 is \"", "\"a\" on rank ", "\"b\" on rank 2"});
}

TEST(ThreadCommunicator, FindsMessagesThatDiffer) {
  const auto statuses = RunRanks(2, kLong, [](Communicator& comm) {
    Stream stream;
    std::vector<float> x(4);
    std::vector<float> y(5);
    if (comm.rank() == 0) {
      absl::Status status = comm.Send(View(x), 1, stream);
      return status.ok() ? comm.Send(View(x), 1, stream) : status;
    }
    absl::Status status = comm.Recv(View(x), 0, stream);
    return status.ok() ? comm.Recv(View(y), 0, stream) : status;
  });
  ExpectAll(statuses, absl::StatusCode::kInvalidArgument,
            {"message #1 from rank 0 to rank 1: sent F32 [4], the receiver "
             "expects F32 [5]"});
}

// One rank's wrong call ends the wait of the others with its reason.
TEST(ThreadCommunicator, AWrongCallOfOneRankReachesTheOthers) {
  const auto statuses = RunRanks(4, kLong, [](Communicator& comm) {
    Stream stream;
    std::vector<float> x(4);
    std::vector<float> y(5);
    return comm.AllReduce(View(x), View(comm.rank() == 3 ? y : x),
                          ReduceOp::kSum, stream);
  });
  ExpectAll(statuses, absl::StatusCode::kInvalidArgument,
            {"rank 3 of 4, AllReduce #0: input F32 [4], output F32 [5]"});
}

TEST(ThreadCommunicator, ARankThatLeavesEndsTheCollective) {
  const auto statuses = RunRanks(3, kLong, [](Communicator& comm) {
    Stream stream;
    absl::Status status = comm.Barrier(stream);
    if (!status.ok() || comm.rank() == 1) return status;
    return comm.Barrier(stream);
  });
  EXPECT_TRUE(statuses[1].ok());
  ExpectAll({statuses[0], statuses[2]}, absl::StatusCode::kUnavailable,
            {"Barrier #1", "rank 1: Barrier #0 of 0 bytes (done)",
             "rank 1 has left"});
}

TEST(ThreadCommunicator, ARankThatLeavesEndsTheMessage) {
  for (const bool send : {false, true}) {
    const auto statuses = RunRanks(2, kLong, [send](Communicator& comm) {
      Stream stream;
      std::vector<float> x(4);
      if (comm.rank() == 1) return absl::OkStatus();
      return send ? comm.Send(View(x), 1, stream)
                  : comm.Recv(View(x), 1, stream);
    });
    EXPECT_EQ(statuses[0].code(), absl::StatusCode::kUnavailable);
    EXPECT_TRUE(
        absl::StrContains(statuses[0].message(),
                          send ? "Send #0 to rank 1" : "Recv #0 from rank 1"))
        << statuses[0];
  }
}

// Ranks may finish and leave while others still use what they completed.
TEST(ThreadCommunicator, LeavingAfterTheLastOperationHarmsNobody) {
  for (int round = 0; round < 50; ++round) {
    const auto statuses = RunRanks(4, kLong, [](Communicator& comm) {
      Stream stream;
      std::vector<float> x(9, 1.0f);
      absl::Status status =
          comm.AllReduce(View(x), View(x), ReduceOp::kSum, stream);
      EXPECT_EQ(x, std::vector<float>(9, 4.0f));
      return status;
    });
    for (const absl::Status& status : statuses) EXPECT_TRUE(status.ok());
  }
}

// Rank 2 never calls: it waits for the others' errors by joining them.
TEST(ThreadCommunicator, ACollectiveThatTakesTooLongNamesWhoIsMissing) {
  auto ranks = MakeThreadCommunicators("dp 3", 3, kShort);
  std::vector<absl::Status> statuses(2);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < 2; ++i) {
    threads.emplace_back([&status = statuses[i], &comm = *ranks[i]] {
      Stream stream;
      std::vector<float> x(4);
      status = comm.AllReduce(View(x), View(x), ReduceOp::kSum, stream);
    });
  }
  for (std::thread& thread : threads) thread.join();
  ExpectAll(statuses, absl::StatusCode::kDeadlineExceeded,
            {"group \"dp 3\"", "AllReduce #0: AllReduce(sum, F32 [4])",
             "arrived: ranks 0, 1; not arrived: ranks 2 (rank 2: no operation "
             "yet)",
             "gave up after 250ms"});
  EXPECT_EQ(ranks[0]->RecentOperations().back().state,
            OperationRecord::State::kFailed);
  Stream stream;
  EXPECT_EQ(ranks[2]->Barrier(stream), statuses[0]);
}

// Send waits for its Recv, so two that cross are a mistake, and found.
TEST(ThreadCommunicator, SendsThatCrossAreFound) {
  const auto statuses = RunRanks(2, kShort, [](Communicator& comm) {
    Stream stream;
    std::vector<float> x(4);
    return comm.Send(View(x), 1 - comm.rank(), stream);
  });
  ExpectAll(statuses, absl::StatusCode::kDeadlineExceeded,
            {"of 2 waits in Send #0 to rank", "of 16 bytes (pending)"});
}

TEST(ThreadCommunicator, ACollectiveAgainstAMessageIsFound) {
  const auto statuses = RunRanks(2, kShort, [](Communicator& comm) {
    Stream stream;
    std::vector<float> x(4);
    return comm.rank() == 0 ? comm.Barrier(stream)
                            : comm.Recv(View(x), 0, stream);
  });
  ExpectAll(statuses, absl::StatusCode::kDeadlineExceeded, {});
}

TEST(ThreadCommunicator, AbortWakesWaitingRanks) {
  const auto statuses = RunRanks(4, kLong, [](Communicator& comm) {
    Stream stream;
    std::vector<float> x(4);
    absl::Status status = comm.Barrier(stream);
    if (!status.ok()) return status;
    switch (comm.rank()) {
      case 0:
        comm.Abort(absl::DataLossError("rank 0 lost its disk"));
        return comm.Health();
      case 1:
        return comm.Barrier(stream);
      case 2:
        return comm.Recv(View(x), 0, stream);
      default:
        return comm.Send(View(x), 0, stream);
    }
  });
  ExpectAll(statuses, absl::StatusCode::kDataLoss, {"rank 0 lost its disk"});
}

// A thread that waits in a group of its own is reached through the world, from
// which the group was split.
TEST(ThreadCommunicator, AbortOfTheWorldWakesItsGroups) {
  const auto statuses = RunRanks(4, kLong, [](Communicator& comm) {
    Stream stream;
    auto pair = comm.Split(comm.rank() / 2, 0, "pair");
    if (!pair.ok()) return pair.status();
    if (comm.rank() == 3) {
      comm.Abort(absl::AbortedError("rank 3 gave up"));
      return (*pair)->Health();
    }
    if (comm.rank() == 2) return (*pair)->Barrier(stream);
    absl::Status status;
    while (status.ok()) status = (*pair)->Barrier(stream);
    return status;
  });
  ExpectAll(statuses, absl::StatusCode::kAborted, {"rank 3 gave up"});
}

// Sends and sums fresh tensors until an error, which rank `round % 4` causes
// after a while.
absl::Status CallUntilAborted(Communicator& comm, int round) {
  const int next = (comm.rank() + 1) % 4;
  const int previous = (comm.rank() + 3) % 4;
  absl::Status status;
  for (int i = 0; status.ok(); ++i) {
    Stream stream;
    std::vector<float> x(700, 1.0f);
    std::vector<float> y(700);
    if (comm.rank() == round % 4 && i == round / 4) {
      comm.Abort(absl::AbortedError("enough"));
    }
    status =
        i % 2 == 0
            ? comm.AllReduce(View(x), View(y), ReduceOp::kSum, stream)
            : comm.Exchange({{View(x), next}}, {{View(y), previous}}, stream);
    EXPECT_TRUE(!status.ok() || y[699] == (i % 2 == 0 ? 4.0f : 1.0f));
  }
  return status;
}

// Ranks free their tensors as soon as a call returns, also with an error, at
// whatever moment the abort comes: the sanitizers see a late reader.
TEST(ThreadCommunicator, NobodyReadsTensorsOfACallThatReturned) {
  for (int round = 0; round < 40; ++round) {
    const auto statuses = RunRanks(4, kLong, [round](Communicator& comm) {
      return CallUntilAborted(comm, round);
    });
    ExpectAll(statuses, absl::StatusCode::kAborted, {"enough"});
  }
}

// As a watchdog does.
TEST(ThreadCommunicator, AnotherThreadMayLookAtAnyTime) {
  auto ranks = MakeThreadCommunicators("world", 2, kLong);
  std::vector<std::thread> threads;
  for (auto& comm : ranks) {
    threads.emplace_back([&comm = *comm] {
      Stream stream;
      for (int i = 0; i < 200; ++i) EXPECT_TRUE(comm.Barrier(stream).ok());
    });
  }
  int64_t seen = 0;
  while (seen < 199) {
    EXPECT_TRUE(ranks[0]->Health().ok());
    const auto records = ranks[0]->RecentOperations();
    if (records.empty()) continue;
    EXPECT_GE(records.back().sequence, seen);
    seen = records.back().sequence;
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace cubit
