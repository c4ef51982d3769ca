// SPDX-License-Identifier: Apache-2.0
//
#include "tests/runtime/communicator_suite.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "runtime/bfloat16.h"
#include "runtime/communicator.h"
#include "runtime/device.h"
#include "runtime/dtype.h"
#include "runtime/philox.h"
#include "runtime/tensor.h"

namespace cubit {

bool operator==(BFloat16 a, BFloat16 b) { return a.bits == b.bits; }
std::ostream& operator<<(std::ostream& out, BFloat16 x) {
  return out << ToFloat(x);
}

namespace {

using Body = CommunicatorBody;
using Implementation = CommunicatorImplementation;

constexpr int64_t kSizes[] = {0, 1, 2, 3, 7, 64, 513, 1031};

// What `rank` contributes to experiment `name`.
template <typename T>
std::vector<T> Values(const std::string& name, int rank, int64_t n) {
  const Philox random(17, absl::StrCat(name, rank));
  std::vector<T> values(static_cast<size_t>(n));
  for (size_t i = 0; i < values.size(); ++i) {
    if constexpr (std::is_integral_v<T>) {
      values[i] = static_cast<T>(random.Bits(i) >> 40);
    } else {
      // Of different magnitudes, so that the order of a sum shows.
      const double value =
          std::ldexp(random.Uniform(i) - 0.5, static_cast<int>(i % 7) * rank);
      if constexpr (std::is_same_v<T, BFloat16>) {
        values[i] = ToBFloat16(static_cast<float>(value));
      } else {
        values[i] = static_cast<T>(value);
      }
    }
  }
  return values;
}

template <typename T>
Tensor View(std::vector<T>& values) {
  return Tensor(values.data(), DTypeOf<T>::kValue,
                {static_cast<int64_t>(values.size())});
}

// The same, in the type in which they are added.
template <typename T>
auto Terms(const std::string& name, int rank, int64_t n) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    std::vector<float> terms;
    for (const BFloat16 x : Values<T>(name, rank, n)) {
      terms.push_back(ToFloat(x));
    }
    return terms;
  } else {
    return Values<T>(name, rank, n);
  }
}

// Reduction of all ranks' values, in the order of the ranks.
template <typename T>
std::vector<T> Reduced(const std::string& name, int size, int64_t n,
                       ReduceOp op) {
  auto sum = Terms<T>(name, 0, n);
  for (int q = 1; q < size; ++q) {
    const auto other = Terms<T>(name, q, n);
    for (size_t i = 0; i < sum.size(); ++i) {
      sum[i] =
          op == ReduceOp::kSum ? sum[i] + other[i] : std::max(sum[i], other[i]);
    }
  }
  if constexpr (std::is_same_v<T, BFloat16>) {
    std::vector<T> rounded(sum.size());
    std::transform(sum.begin(), sum.end(), rounded.begin(), ToBFloat16);
    return rounded;
  } else {
    return sum;
  }
}

template <typename T>
std::vector<T> Concatenated(const std::string& name, int size, int64_t n) {
  std::vector<T> all;
  for (int q = 0; q < size; ++q) {
    const std::vector<T> part = Values<T>(name, q, n);
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

template <typename T>
std::vector<T> PartOf(const std::vector<T>& all, int index, int64_t n) {
  return {all.begin() + index * n, all.begin() + (index + 1) * n};
}

class CommunicatorTest
    : public testing::TestWithParam<std::tuple<Implementation, int>> {
 protected:
  int size() const { return std::get<1>(GetParam()); }
  bool queues() const { return std::get<0>(GetParam()).queues; }
  void Run(const Body& body) { std::get<0>(GetParam()).run(size(), body); }
};

TEST_P(CommunicatorTest, KnowsItsPlace) {
  Run([this](Communicator& comm) {
    EXPECT_EQ(comm.size(), size());
    EXPECT_GE(comm.rank(), 0);
    EXPECT_LT(comm.rank(), size());
    EXPECT_EQ(comm.name(), "world");
    EXPECT_TRUE(comm.Health().ok());
  });
}

template <typename T>
void CheckAllReduce(Communicator& comm, int64_t n, ReduceOp op) {
  Stream stream;
  const std::string name = absl::StrCat("reduce", n);
  const std::vector<T> wanted = Reduced<T>(name, comm.size(), n, op);
  std::vector<T> input = Values<T>(name, comm.rank(), n);
  std::vector<T> output(input.size());
  ASSERT_TRUE(comm.AllReduce(View(input), View(output), op, stream).ok());
  EXPECT_EQ(output, wanted) << n;
  EXPECT_EQ(input, Values<T>(name, comm.rank(), n)) << "input was changed";
  ASSERT_TRUE(comm.AllReduce(View(input), View(input), op, stream).ok());
  EXPECT_EQ(input, wanted) << n << " in place";
}

TEST_P(CommunicatorTest, AllReduceAddsInTheOrderOfTheRanks) {
  Run([](Communicator& comm) {
    for (const int64_t n : kSizes) {
      CheckAllReduce<float>(comm, n, ReduceOp::kSum);
    }
    CheckAllReduce<double>(comm, 7, ReduceOp::kSum);
    CheckAllReduce<int64_t>(comm, 7, ReduceOp::kSum);
    for (const int64_t n : {1, 7, 1031}) {
      CheckAllReduce<BFloat16>(comm, n, ReduceOp::kSum);
    }
  });
}

TEST_P(CommunicatorTest, AllReduceFindsTheLargest) {
  Run([](Communicator& comm) {
    for (const int64_t n : kSizes) {
      CheckAllReduce<float>(comm, n, ReduceOp::kMax);
    }
    CheckAllReduce<int64_t>(comm, 7, ReduceOp::kMax);
    CheckAllReduce<BFloat16>(comm, 1031, ReduceOp::kMax);
  });
}

TEST_P(CommunicatorTest, AllReducePassesNanAndInfinityOn) {
  Run([](Communicator& comm) {
    Stream stream;
    const bool last = comm.rank() == comm.size() - 1;
    std::vector<float> x = {last ? NAN : 1.0f, last ? INFINITY : 1.0f, 1.0f};
    ASSERT_TRUE(comm.AllReduce(View(x), View(x), ReduceOp::kSum, stream).ok());
    EXPECT_TRUE(std::isnan(x[0]));
    EXPECT_TRUE(std::isinf(x[1]));
    EXPECT_EQ(x[2], static_cast<float>(comm.size()));
  });
}

TEST_P(CommunicatorTest, AllGatherPutsPartsInTheOrderOfTheRanks) {
  Run([](Communicator& comm) {
    Stream stream;
    for (const int64_t n : kSizes) {
      std::vector<int64_t> input = Values<int64_t>("gather", comm.rank(), n);
      const auto wanted = Concatenated<int64_t>("gather", comm.size(), n);
      std::vector<int64_t> output(wanted.size());
      ASSERT_TRUE(comm.AllGather(View(input), View(output), stream).ok());
      EXPECT_EQ(output, wanted) << n;
      std::vector<int64_t> both(wanted.size());
      std::copy(input.begin(), input.end(), both.begin() + comm.rank() * n);
      const Tensor all = View(both);
      ASSERT_TRUE(
          comm.AllGather(all.Slice(comm.rank() * n, n), all, stream).ok());
      EXPECT_EQ(both, wanted) << n << " in place";
    }
  });
}

template <typename T>
void CheckReduceScatter(Communicator& comm, int64_t n, ReduceOp op) {
  Stream stream;
  const int size = comm.size();
  std::vector<T> input = Values<T>("rs", comm.rank(), size * n);
  const std::vector<T> wanted =
      PartOf(Reduced<T>("rs", size, size * n, op), comm.rank(), n);
  std::vector<T> output(wanted.size());
  ASSERT_TRUE(comm.ReduceScatter(View(input), View(output), op, stream).ok());
  EXPECT_EQ(output, wanted) << n;
  const Tensor all = View(input);
  const Tensor part = all.Slice(comm.rank() * n, n);
  ASSERT_TRUE(comm.ReduceScatter(all, part, op, stream).ok());
  EXPECT_EQ(PartOf(input, comm.rank(), n), wanted) << n << " in place";
}

TEST_P(CommunicatorTest, ReduceScatterGivesEachRankItsPart) {
  Run([](Communicator& comm) {
    for (const int64_t n : kSizes) {
      for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kMax}) {
        CheckReduceScatter<float>(comm, n, op);
      }
      CheckReduceScatter<BFloat16>(comm, n, ReduceOp::kSum);
    }
  });
}

TEST_P(CommunicatorTest, AllToAllTransposesParts) {
  Run([](Communicator& comm) {
    Stream stream;
    const int size = comm.size();
    for (const int64_t n : kSizes) {
      std::vector<uint8_t> input =
          Values<uint8_t>("a2a", comm.rank(), size * n);
      std::vector<uint8_t> wanted;
      for (int q = 0; q < size; ++q) {
        const std::vector<uint8_t> part =
            PartOf(Values<uint8_t>("a2a", q, size * n), comm.rank(), n);
        wanted.insert(wanted.end(), part.begin(), part.end());
      }
      std::vector<uint8_t> output(input.size());
      ASSERT_TRUE(comm.AllToAll(View(input), View(output), stream).ok());
      EXPECT_EQ(output, wanted) << n;
    }
  });
}

TEST_P(CommunicatorTest, BroadcastComesFromEveryRoot) {
  Run([](Communicator& comm) {
    Stream stream;
    for (int root = 0; root < comm.size(); ++root) {
      for (const int64_t n : {0, 5, 1031}) {
        std::vector<int32_t> x = Values<int32_t>("bc", comm.rank(), n);
        ASSERT_TRUE(comm.Broadcast(View(x), root, stream).ok());
        EXPECT_EQ(x, Values<int32_t>("bc", root, n));
      }
    }
  });
}

// Two bytes an element and no arithmetic: moved as they are.
TEST_P(CommunicatorTest, MovesBFloat16) {
  Run([](Communicator& comm) {
    Stream stream;
    std::vector<uint8_t> bits(6, static_cast<uint8_t>(comm.rank() + 1));
    std::vector<uint8_t> all(bits.size() * static_cast<size_t>(comm.size()));
    ASSERT_TRUE(
        comm.AllGather(Tensor(bits.data(), DType::kBFloat16, {3}),
                       Tensor(all.data(), DType::kBFloat16, {comm.size(), 3}),
                       stream)
            .ok());
    for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i], i / 6 + 1);
  });
}

TEST_P(CommunicatorTest, SendsAlongAChain) {
  Run([](Communicator& comm) {
    Stream stream;
    std::vector<float> x = Values<float>("chain", 0, 33);
    if (comm.rank() > 0) {
      std::fill(x.begin(), x.end(), 0.0f);
      ASSERT_TRUE(comm.Recv(View(x), comm.rank() - 1, stream).ok());
    }
    if (comm.rank() + 1 < comm.size()) {
      ASSERT_TRUE(comm.Send(View(x), comm.rank() + 1, stream).ok());
    }
    EXPECT_EQ(x, Values<float>("chain", 0, 33));
  });
}

TEST_P(CommunicatorTest, ExchangesAroundARing) {
  Run([](Communicator& comm) {
    Stream stream;
    const int size = comm.size();
    const int next = (comm.rank() + 1) % size;
    const int previous = (comm.rank() + size - 1) % size;
    std::vector<float> mine = Values<float>("ring", comm.rank(), 65);
    std::vector<float> theirs(mine.size());
    for (int hop = 1; hop <= size; ++hop) {
      ASSERT_TRUE(comm.Exchange({{View(mine), next}},
                                {{View(theirs), previous}}, stream)
                      .ok());
      std::swap(mine, theirs);
      EXPECT_EQ(mine,
                Values<float>("ring", (comm.rank() + size - hop) % size, 65));
    }
  });
}

// Every rank sends three messages of different sizes, one of them empty, to
// every rank, itself included; each pair keeps its order.
TEST_P(CommunicatorTest, ExchangeKeepsTheOrderOfEachPair) {
  Run([](Communicator& comm) {
    Stream stream;
    const auto payload = [](int from, int to, int64_t n) {
      return Values<int32_t>(absl::StrCat("pair", to, "/", n, "/"), from, n);
    };
    std::vector<std::vector<int32_t>> buffers;
    buffers.reserve(size_t{6} * static_cast<size_t>(comm.size()));
    std::vector<OutgoingMessage> sends;
    std::vector<IncomingMessage> receives;
    for (int q = comm.size() - 1; q >= 0; --q) {
      for (const int64_t n : {4, 0, 9}) {
        buffers.push_back(payload(comm.rank(), q, n));
        sends.push_back({View(buffers.back()), q});
        buffers.emplace_back(static_cast<size_t>(n));
        receives.push_back({View(buffers.back()), q});
      }
    }
    ASSERT_TRUE(comm.Exchange(sends, receives, stream).ok());
    size_t at = 1;
    for (int q = comm.size() - 1; q >= 0; --q) {
      for (const int64_t n : {4, 0, 9}) {
        EXPECT_EQ(buffers[at], payload(q, comm.rank(), n));
        at += 2;
      }
    }
  });
}

TEST_P(CommunicatorTest, SplitOrdersByKeyThenRank) {
  Run([](Communicator& comm) {
    Stream stream;
    // Equal keys keep the order; negated ranks reverse it.
    for (const int sign : {0, -1}) {
      const int color = comm.rank() % 2;
      auto group = comm.Split(color, sign * comm.rank(), "half");
      ASSERT_TRUE(group.ok()) << group.status();
      std::vector<int> members;
      for (int q = color; q < comm.size(); q += 2) members.push_back(q);
      if (sign < 0) std::reverse(members.begin(), members.end());
      Communicator& half = **group;
      ASSERT_EQ(half.size(), static_cast<int>(members.size()));
      EXPECT_EQ(members[static_cast<size_t>(half.rank())], comm.rank());
      EXPECT_EQ(half.name(), "half");
      std::vector<int64_t> rank = {comm.rank()};
      std::vector<int64_t> all(members.size());
      ASSERT_TRUE(half.AllGather(View(rank), View(all), stream).ok());
      EXPECT_EQ(all, std::vector<int64_t>(members.begin(), members.end()));
    }
  });
}

TEST_P(CommunicatorTest, SplitLeavesOutNegativeColors) {
  Run([](Communicator& comm) {
    Stream stream;
    const bool in = comm.rank() % 3 == 0;
    // Names of those left out need not agree.
    auto group = comm.Split(in ? 5 : -1, 0,
                            in ? "third" : absl::StrCat("none ", comm.rank()));
    ASSERT_TRUE(group.ok()) << group.status();
    ASSERT_EQ(*group != nullptr, in);
    if (in) {
      std::vector<int64_t> one = {1};
      ASSERT_TRUE((*group)
                      ->AllReduce(View(one), View(one), ReduceOp::kSum, stream)
                      .ok());
      EXPECT_EQ(one[0], (comm.size() + 2) / 3);
    }
    ASSERT_TRUE(comm.Barrier(stream).ok());
  });
}

TEST_P(CommunicatorTest, SplitGroupsSplitAgain) {
  Run([](Communicator& comm) {
    Stream stream;
    auto half = comm.Split(comm.rank() / 4, 0, "half");
    ASSERT_TRUE(half.ok());
    auto pair = (*half)->Split((*half)->rank() / 2, 0, "pair");
    ASSERT_TRUE(pair.ok());
    std::vector<int64_t> sum = {comm.rank()};
    ASSERT_TRUE(
        (*pair)->AllReduce(View(sum), View(sum), ReduceOp::kSum, stream).ok());
    const int64_t first = comm.rank() / 2 * 2;
    EXPECT_EQ(sum[0], first + 1 < comm.size() ? 2 * first + 1 : first);
  });
}

// One operation of a script that all ranks read alike; checks its result.
void RunScripted(Communicator& comm, int64_t step) {
  Stream stream;
  const auto draw = [step](uint64_t i, uint64_t bound) {
    return static_cast<int64_t>(
        Philox(3, "script").Bits(4 * static_cast<uint64_t>(step) + i) % bound);
  };
  const int64_t n = draw(1, 40);
  const int size = comm.size();
  const std::string name = absl::StrCat("script", step, "/");
  std::vector<float> x = Values<float>(name, comm.rank(), n);
  std::vector<float> all(static_cast<size_t>(size * n));
  switch (draw(0, 4)) {
    case 0:
      ASSERT_TRUE(
          comm.AllReduce(View(x), View(x), ReduceOp::kSum, stream).ok());
      EXPECT_EQ(x, Reduced<float>(name, size, n, ReduceOp::kSum));
      break;
    case 1:
      ASSERT_TRUE(comm.AllGather(View(x), View(all), stream).ok());
      EXPECT_EQ(all, Concatenated<float>(name, size, n));
      break;
    case 2: {
      const int root = static_cast<int>(draw(2, static_cast<uint64_t>(size)));
      ASSERT_TRUE(comm.Broadcast(View(x), root, stream).ok());
      EXPECT_EQ(x, Values<float>(name, root, n));
      break;
    }
    default: {
      const int shift = static_cast<int>(draw(2, static_cast<uint64_t>(size)));
      const int to = (comm.rank() + shift) % size;
      const int from = (comm.rank() + size - shift) % size;
      std::vector<float> y(x.size());
      ASSERT_TRUE(
          comm.Exchange({{View(x), to}}, {{View(y), from}}, stream).ok());
      EXPECT_EQ(y, Values<float>(name, from, n));
    }
  }
}

TEST_P(CommunicatorTest, ManyOperationsInTurnOnTwoGroups) {
  Run([](Communicator& comm) {
    auto half = comm.Split(comm.rank() % 2, 0, "half");
    ASSERT_TRUE(half.ok());
    for (int64_t step = 0; step < 60; ++step) {
      RunScripted(step % 3 == 0 ? **half : comm, step);
    }
  });
}

// The ranks arrive in another order each time; the bits stay.
TEST_P(CommunicatorTest, SumsDoNotDependOnTheOrderOfArrival) {
  Run([](Communicator& comm) {
    Stream stream;
    const auto wanted = Reduced<float>("bits", comm.size(), 37, ReduceOp::kSum);
    for (int round = 0; round < 20; ++round) {
      std::vector<float> x = Values<float>("bits", comm.rank(), 37);
      const int place = (comm.rank() * 5 + round * 3) % comm.size();
      for (int i = 0; i < 20 * place; ++i) std::this_thread::yield();
      ASSERT_TRUE(
          comm.AllReduce(View(x), View(x), ReduceOp::kSum, stream).ok());
      EXPECT_EQ(x, wanted);
    }
  });
}

TEST_P(CommunicatorTest, RecordsItsLastOperations) {
  Run([](Communicator& comm) {
    Stream stream;
    std::vector<float> x(3);
    EXPECT_TRUE(comm.RecentOperations().empty());
    ASSERT_TRUE(comm.Barrier(stream).ok());
    ASSERT_TRUE(comm.Broadcast(View(x), 0, stream).ok());
    std::vector<float> y(3);
    ASSERT_TRUE(comm.Exchange({{View(x), comm.rank()}},
                              {{View(y), comm.rank()}}, stream)
                    .ok());
    // What is queued is known to be done when somebody looks.
    stream.Synchronize();
    ASSERT_TRUE(comm.Health().ok());
    const auto records = comm.RecentOperations();
    ASSERT_EQ(records.size(), 4u);
    EXPECT_EQ(records[0].ToString(), "Barrier #0 of 0 bytes (done)");
    EXPECT_EQ(records[1].ToString(), "Broadcast #1 of 12 bytes (done)");
    EXPECT_EQ(
        records[2].ToString(),
        absl::StrCat("Send #0 to rank ", comm.rank(), " of 12 bytes (done)"));
    EXPECT_EQ(
        records[3].ToString(),
        absl::StrCat("Recv #0 from rank ", comm.rank(), " of 12 bytes (done)"));
    EXPECT_EQ(records[0].group, "world");
    for (int i = 0; i < 100; ++i) ASSERT_TRUE(comm.Barrier(stream).ok());
    ASSERT_EQ(comm.RecentOperations().size(), FlightRecorder::kCapacity);
    EXPECT_EQ(comm.RecentOperations().back().sequence, 101);
  });
}

// A wrong call of every rank: each finds its own, and the group has failed.
void ExpectWrong(Communicator& comm, const absl::Status& status,
                 const std::string& text) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_NE(std::string(status.message()).find(text), std::string::npos)
      << status;
  EXPECT_NE(std::string(status.message()).find("\"world\", rank "),
            std::string::npos)
      << status;
  Stream stream;
  EXPECT_EQ(comm.Health(), comm.Barrier(stream));
  EXPECT_EQ(comm.Health().code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(CommunicatorTest, RefusesWrongShapes) {
  Run([](Communicator& comm) {
    Stream stream;
    std::vector<float> x(2);
    std::vector<float> y(3);
    ExpectWrong(comm, comm.AllReduce(View(x), View(y), ReduceOp::kSum, stream),
                "input F32 [2], output F32 [3]: wanted equal shapes");
  });
  Run([](Communicator& comm) {
    Stream stream;
    std::vector<float> x(2);
    std::vector<float> y(static_cast<size_t>(2 * comm.size() + 1));
    ExpectWrong(comm, comm.AllGather(View(x), View(y), stream),
                "wanted an output of size times the input");
  });
  Run([](Communicator& comm) {
    Stream stream;
    std::vector<float> x(static_cast<size_t>(2 * comm.size() + 1));
    std::vector<float> y(2);
    ExpectWrong(comm,
                comm.ReduceScatter(View(x), View(y), ReduceOp::kSum, stream),
                "wanted an input of size times the output");
  });
}

TEST_P(CommunicatorTest, RefusesWrongDTypes) {
  Run([](Communicator& comm) {
    Stream stream;
    std::vector<float> x(2);
    std::vector<int32_t> y(2);
    ExpectWrong(comm, comm.AllReduce(View(x), View(y), ReduceOp::kSum, stream),
                "wanted one dtype");
  });
  Run([](Communicator& comm) {
    Stream stream;
    std::vector<int32_t> x(2);
    ExpectWrong(comm, comm.AllReduce(View(x), View(x), ReduceOp::kSum, stream),
                "dtype I32 cannot be reduced");
  });
}

TEST_P(CommunicatorTest, RefusesWrongRanks) {
  Run([](Communicator& comm) {
    Stream stream;
    std::vector<float> x(2);
    ExpectWrong(
        comm, comm.Broadcast(View(x), comm.size(), stream),
        absl::StrCat("root ", comm.size(), ", wanted 0 to ", comm.size() - 1));
  });
  Run([](Communicator& comm) {
    Stream stream;
    std::vector<float> x(2);
    ExpectWrong(comm, comm.Send(View(x), -1, stream),
                absl::StrCat("peer -1, wanted 0 to ", comm.size() - 1));
  });
  Run([](Communicator& comm) {
    Stream stream;
    std::vector<float> x(2);
    ExpectWrong(comm, comm.Recv(View(x), comm.rank(), stream),
                "0 messages to this rank itself, 1 from it");
  });
}

TEST_P(CommunicatorTest, RefusesOverlapAndMissingMemory) {
  Run([](Communicator& comm) {
    Stream stream;
    std::vector<float> x(5);
    const Tensor all = View(x);
    ExpectWrong(comm,
                comm.AllReduce(all.Slice(0, 4), all.Slice(1, 4), ReduceOp::kSum,
                               stream),
                "overlap");
  });
  Run([](Communicator& comm) {
    Stream stream;
    const Tensor nothing(nullptr, DType::kFloat32, {3});
    ExpectWrong(comm, comm.Broadcast(nothing, 0, stream),
                "F32 [3] points at no memory");
  });
}

TEST_P(CommunicatorTest, AbortFailsWhatWasSplitFromIt) {
  Run([this](Communicator& comm) {
    Stream stream;
    auto all = comm.Split(0, 0, "all");
    ASSERT_TRUE(all.ok());
    auto below = (*all)->Split(0, 0, "below");
    ASSERT_TRUE(below.ok());
    ASSERT_TRUE(comm.Barrier(stream).ok());
    if (comm.rank() == 0) (*all)->Abort(absl::AbortedError("first reason"));
    while (queues() && (*below)->Health().ok()) std::this_thread::yield();
    // All but rank 0 may come before the abort; none gets through.
    const absl::Status status = (*below)->Barrier(stream);
    EXPECT_EQ(status, absl::AbortedError("first reason"));
    (*all)->Abort(absl::AbortedError("second reason"));
    EXPECT_EQ((*all)->Health(), absl::AbortedError("first reason"));
    // Not what it was split from.
    EXPECT_TRUE(comm.Barrier(stream).ok());
    EXPECT_TRUE(comm.Health().ok());
  });
}

std::vector<std::tuple<Implementation, int>> Worlds() {
  std::vector<std::tuple<Implementation, int>> worlds;
  for (const Implementation& implementation : ImplementationsUnderTest()) {
    for (const int size : implementation.sizes) {
      worlds.emplace_back(implementation, size);
    }
  }
  return worlds;
}

INSTANTIATE_TEST_SUITE_P(
    Worlds, CommunicatorTest, testing::ValuesIn(Worlds()),
    [](const testing::TestParamInfo<std::tuple<Implementation, int>>& world) {
      return absl::StrCat(std::get<0>(world.param).name,
                          std::get<1>(world.param));
    });

}  // namespace
}  // namespace cubit
