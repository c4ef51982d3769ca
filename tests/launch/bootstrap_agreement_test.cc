// SPDX-License-Identifier: Apache-2.0

#include "launch/bootstrap_agreement.h"

#include <functional>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "runtime/communicator_threads.h"

namespace cubit {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Calls body(rank's communicator) on a thread of each rank.
void OnRanks(int size, const std::function<void(Communicator&)>& body) {
  auto ranks = MakeThreadCommunicators("control", size, absl::Seconds(20));
  std::vector<std::thread> threads;
  for (auto& rank : ranks) {
    threads.emplace_back([&body, &rank] { body(*rank); });
  }
  for (std::thread& thread : threads) thread.join();
}

RankFacts FactsOf(int rank) {
  RankFacts facts;
  facts.rank = rank;
  facts.world_size = 3;
  facts.host = "node" + std::to_string(rank);
  facts.pid = 70 + rank;
  facts.program = "abc";
  facts.config = "model {\n  num_layers: 2\n}\n";
  return facts;
}

// What each of three ranks returns if rank 2 says something else.
std::string Verdict(const std::function<void(RankFacts*)>& change) {
  std::vector<absl::Status> verdicts(3);
  OnRanks(3, [&](Communicator& control) {
    RankFacts own = FactsOf(control.rank());
    if (control.rank() == 2) change(&own);
    verdicts[static_cast<size_t>(control.rank())] = CheckFacts(control, own);
  });
  EXPECT_EQ(verdicts[0], verdicts[1]);
  EXPECT_EQ(verdicts[0], verdicts[2]);
  if (verdicts[0].ok()) return "";
  EXPECT_EQ(verdicts[0].code(), absl::StatusCode::kFailedPrecondition);
  return std::string(verdicts[0].message());
}

TEST(CheckFacts, AcceptsOneJob) {
  EXPECT_EQ(Verdict([](RankFacts*) {}), "");
}

TEST(CheckFacts, NamesTheDuplicateOfARank) {
  EXPECT_THAT(Verdict([](RankFacts* facts) { facts->rank = 1; }),
              AllOf(HasSubstr("rank 1 (node1, pid 71) and rank 1 (node2, pid "
                              "72)")));
}

TEST(CheckFacts, RefusesAnotherNumberOfRanks) {
  EXPECT_THAT(Verdict([](RankFacts* facts) { facts->world_size = 4; }),
              HasSubstr("rank 2 (node2, pid 72) was started as one of 4 ranks, "
                        "and is number 2 of 3"));
  EXPECT_THAT(Verdict([](RankFacts* facts) { facts->rank = 5; }),
              HasSubstr("rank 5 (node2, pid 72)"));
}

TEST(CheckFacts, RefusesAnotherProgram) {
  EXPECT_THAT(Verdict([](RankFacts* facts) { facts->program = "abd"; }),
              HasSubstr("rank 2 (node2, pid 72) runs another program than "
                        "rank 0 (node0, pid 70): digests abd and abc"));
}

TEST(CheckFacts, ShowsTheLineThatDiffers) {
  EXPECT_THAT(
      Verdict([](RankFacts* facts) {
        facts->config = "model {\n  num_layers: 4\n}\n";
      }),
      AllOf(HasSubstr("rank 2: its configuration (node2, pid 72) is not "
                      "that of rank 0"),
            HasSubstr("line 2 is \"num_layers: 4\" here and "
                      "\"num_layers: 2\" there")));
  EXPECT_THAT(Verdict([](RankFacts* facts) { facts->config = "model {"; }),
              HasSubstr("line 2 is nothing here and \"num_layers: 2\" there"));
}

TEST(CheckRankCount, HoldsTheConfigurationToTheRanks) {
  EXPECT_TRUE(CheckRankCount(1, 0, "cpu", 1).ok());
  EXPECT_TRUE(CheckRankCount(4, 0, "cpu", 4).ok());
  EXPECT_TRUE(CheckRankCount(2, 3, "cpu", 6).ok());
  EXPECT_TRUE(CheckRankCount(1, 0, "cuda", 8).ok());
  EXPECT_TRUE(CheckRankCount(2, 0, "cuda", 8).ok());
  EXPECT_FALSE(CheckRankCount(3, 0, "cuda", 8).ok());
  EXPECT_FALSE(CheckRankCount(2, 8, "cuda", 8).ok());
  EXPECT_FALSE(CheckRankCount(0, 0, "cuda", 8).ok());
  EXPECT_THAT(
      CheckRankCount(4, 0, "cpu", 1).message(),
      AllOf(HasSubstr("parallel.nodes is 4"), HasSubstr("1 rank was started")));
}

TEST(OwnProgramDigest, IsStable) {
  const auto digest = OwnProgramDigest();
  ASSERT_TRUE(digest.ok()) << digest.status();
  EXPECT_EQ(digest->size(), 32u);
  EXPECT_EQ(*digest, *OwnProgramDigest());
}

}  // namespace
}  // namespace cubit
