// SPDX-License-Identifier: Apache-2.0

#include "runtime/watchdog_report.h"

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "runtime/command_line.h"

namespace cubit {
namespace {

using Group = WatchdogMessage::Group;

std::vector<WatchedRank> Ranks(int count) {
  std::vector<WatchedRank> ranks(static_cast<size_t>(count));
  for (int q = 0; q < count; ++q) {
    WatchedRank& rank = ranks[static_cast<size_t>(q)];
    rank.rank = q;
    rank.host = absl::StrCat("node", q / 2);
    rank.heartbeat.set_step(12);
    rank.heartbeat.set_activity(absl::StrCat("action F", q));
  }
  return ranks;
}

Group& AddGroup(WatchedRank& rank, const std::string& name, int group_rank,
                int64_t collectives) {
  Group& group = *rank.heartbeat.add_groups();
  group.set_name(name);
  group.set_rank(group_rank);
  group.set_num_collectives(collectives);
  group.set_last("Barrier #5 of 0 bytes (done)");
  return group;
}

void AddPending(Group& group, const std::string& text, int64_t sequence,
                int peer, double seconds) {
  WatchdogMessage::Operation& operation = *group.add_pending();
  operation.set_text(text);
  operation.set_sequence(sequence);
  operation.set_peer(peer);
  operation.set_seconds(seconds);
}

void ExpectVerdict(const std::vector<WatchedRank>& ranks, int exit_status,
                   const std::vector<std::string>& texts) {
  const WatchdogFindings findings = JudgeRanks(ranks, {100, 10});
  ASSERT_TRUE(findings.verdict.has_value());
  EXPECT_EQ(findings.verdict->exit_status(), exit_status);
  for (const std::string& text : texts) {
    EXPECT_TRUE(absl::StrContains(findings.verdict->report(), text))
        << "wanted: " << text << "\ngot: " << findings.verdict->report();
  }
}

TEST(WatchdogReport, FindsNothingInAHealthyRun) {
  std::vector<WatchedRank> ranks = Ranks(3);
  for (WatchedRank& rank : ranks) {
    AddPending(AddGroup(rank, "dp of rank 0", rank.rank, 8),
               "AllReduce #7 of 4 bytes (pending)", 7, -1, 49);
    rank.silent_seconds = 4.9;
  }
  const WatchdogFindings findings = JudgeRanks(ranks, {100, 10});
  EXPECT_FALSE(findings.verdict.has_value());
  EXPECT_TRUE(findings.warnings.empty());
}

// Ranks 0 and 1 have called operation 7, rank 2 only 6 operations.
std::vector<WatchedRank> HungCollective(double seconds) {
  std::vector<WatchedRank> ranks = Ranks(4);
  for (int q = 0; q < 3; ++q) {
    Group& group = AddGroup(ranks[static_cast<size_t>(q)], "dp of rank 0", q,
                            q < 2 ? 8 : 6);
    if (q < 2) {
      AddPending(group, "AllReduce #7 of 4096 bytes (pending)", 7, -1,
                 seconds - q);
    }
  }
  return ranks;
}

TEST(WatchdogReport, NamesWhoHasNotArrivedAtACollective) {
  ExpectVerdict(
      HungCollective(101), kExitHung,
      {"watchdog: hung: rank 0 (node0) has waited for 101s (limit 100s) in "
       "AllReduce #7 of 4096 bytes (pending) of group \"dp of rank 0\": "
       "arrived: rank 0 (node0), rank 1 (node0); not arrived: rank 2 (node1)",
       "rank 2 (node1): step 12, action F2; waits for nobody; last operations: "
       "Barrier #5 of 0 bytes (done) of group \"dp of rank 0\"; heard 0s ago",
       "rank 1 (node0): step 12, action F1; waits in AllReduce #7",
       "rank 3 (node1): step 12, action F3", "--resume"});
}

TEST(WatchdogReport, WarnsAtHalfOfALimit) {
  WatchdogFindings findings = JudgeRanks(HungCollective(60), {100, 10});
  EXPECT_FALSE(findings.verdict.has_value());
  ASSERT_EQ(findings.warnings.size(), 1u);
  EXPECT_TRUE(absl::StrContains(findings.warnings[0].text,
                                "not arrived: rank 2 (node1)"))
      << findings.warnings[0].text;
  // It is the same one a moment later.
  EXPECT_EQ(findings.warnings[0].key,
            JudgeRanks(HungCollective(61), {100, 10}).warnings[0].key);
  std::vector<WatchedRank> silent = Ranks(2);
  silent[1].silent_seconds = 6;
  findings = JudgeRanks(silent, {100, 10});
  ASSERT_EQ(findings.warnings.size(), 1u);
  EXPECT_TRUE(absl::StrContains(
      findings.warnings[0].text,
      "rank 1 (node0) has been silent for 6s; all ranks end at 10s"))
      << findings.warnings[0].text;
}

TEST(WatchdogReport, NamesThePeerOfAMessage) {
  std::vector<WatchedRank> ranks = Ranks(3);
  for (WatchedRank& rank : ranks) AddGroup(rank, "pp", rank.rank, 0);
  AddPending(*ranks[0].heartbeat.mutable_groups(0),
             "Recv #3 from rank 2 of 8 bytes (pending)", 3, 2, 200);
  ExpectVerdict(ranks, kExitHung,
                {"in Recv #3 from rank 2 of 8 bytes (pending) of group \"pp\": "
                 "arrived: rank 0 (node0); not arrived: rank 2 (node1)\n"});
}

// Rank 0 waits for rank 1, which waits for rank 2, which waits for nobody.
TEST(WatchdogReport, BeginsWithTheCauseOfAChain) {
  std::vector<WatchedRank> ranks = Ranks(3);
  for (WatchedRank& rank : ranks) AddGroup(rank, "pp", rank.rank, 0);
  AddPending(*ranks[0].heartbeat.mutable_groups(0), "Recv #3 from rank 1", 3, 1,
             250);
  AddPending(*ranks[1].heartbeat.mutable_groups(0), "Recv #2 from rank 2", 2, 2,
             200);
  ExpectVerdict(
      ranks, kExitHung,
      {"hung: rank 1 (node0) has waited for 200s (limit 100s) in Recv "
       "#2 from rank 2 of group \"pp\": arrived: rank 1 (node0); not "
       "arrived: rank 2 (node1)"});
}

TEST(WatchdogReport, NamesSilentRanks) {
  std::vector<WatchedRank> ranks = HungCollective(101);
  ranks[2].silent_seconds = 10.5;
  ExpectVerdict(ranks, kExitHung,
                {"watchdog: rank 2 (node1) silent for 10.5s (limit 10s)",
                 "rank 0 (node0): step 12, action F0; waits in AllReduce #7"});
}

TEST(WatchdogReport, ARankThatEndedIsTheCause) {
  std::vector<WatchedRank> ranks = HungCollective(101);
  ranks[2].state = WatchedRank::State::kLost;
  ranks[2].silent_seconds = 50;
  ExpectVerdict(ranks, kExitFailed,
                {"watchdog: rank 2 (node1) ended without a word",
                 "rank 2 (node1): step 12, action F2; waits for nobody; last "
                 "operations: Barrier #5 of 0 bytes (done) of group \"dp of "
                 "rank 0\"; connection lost"});
  ranks[2].state = WatchedRank::State::kLeft;
  ranks[2].error = "disk full";
  ExpectVerdict(ranks, kExitFailed,
                {"watchdog: rank 2 (node1) ended with an error: disk full"});
}

TEST(WatchdogReport, ARankThatEndedAsItShouldIsNotMissed) {
  std::vector<WatchedRank> ranks = Ranks(2);
  ranks[1].state = WatchedRank::State::kLeft;
  ranks[1].silent_seconds = 1000;
  const WatchdogFindings findings = JudgeRanks(ranks, {100, 10});
  EXPECT_FALSE(findings.verdict.has_value());
  EXPECT_TRUE(findings.warnings.empty());
}

TEST(WatchdogReport, StaysReadableWithManyRanks) {
  std::vector<WatchedRank> ranks = Ranks(200);
  ranks[150].silent_seconds = 11;
  ExpectVerdict(ranks, kExitHung,
                {"silent for 11s", "\n  rank 150 (node75): step 12",
                 "\n  rank 62 (node31)", "\n  and 136 more ranks\n"});
}

}  // namespace
}  // namespace cubit
