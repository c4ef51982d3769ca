// SPDX-License-Identifier: Apache-2.0

#include "launch/launcher_report.h"

#include <signal.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cubit {
namespace {

using Action = JobWatch::Action;
using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kRule[] =
    "--------------------------------------------------------------------------"
    "\n";

RankReport End(int rank, int status, int signal = 0) {
  RankReport report;
  report.kind = RankReport::Kind::kEnded;
  report.rank = rank;
  report.host = "node1";
  report.pid = 71;
  report.status = status;
  report.signal = signal;
  return report;
}

TEST(RankReport, SaysWhoAndHow) {
  EXPECT_EQ(End(2, 137, SIGKILL).ToString(),
            "rank 2 (node1, pid 71): killed by signal 9 (SIGKILL)");
  EXPECT_EQ(End(0, 3).ToString(),
            "rank 0 (node1, pid 71): ended with exit status 3 (hung, ended by "
            "the watchdog)");
}

// What the filter shows of a stream, cut into pieces of `size`.
std::string Shown(const std::string& stream, size_t size,
                  std::vector<RankReport>* reports) {
  OutputFilter filter;
  std::string shown;
  for (size_t i = 0; i < stream.size(); i += size) {
    shown += filter.Feed(stream.substr(i, size), reports);
  }
  return shown + filter.Flush();
}

TEST(OutputFilter, TakesRecordsOutAnywhereAndOfAnyPieces) {
  RankReport resume;
  resume.kind = RankReport::Kind::kResume;
  resume.text = "train --resume";
  const std::string stream = "loss 3" + EncodeReport(End(2, 137, SIGKILL)) +
                             ".5\n" + EncodeReport(resume) + "\x01 alone\n";
  for (size_t size = 1; size <= stream.size(); ++size) {
    std::vector<RankReport> reports;
    EXPECT_EQ(Shown(stream, size, &reports), "loss 3.5\n\x01 alone\n");
    ASSERT_EQ(reports.size(), 2u);
    EXPECT_EQ(reports[0].ToString(), End(2, 137, SIGKILL).ToString());
    EXPECT_EQ(reports[1].text, "train --resume");
  }
}

TEST(OutputFilter, CutsALongTextToOneRecord) {
  RankReport resume;
  resume.kind = RankReport::Kind::kResume;
  resume.text = std::string(100000, 'x');
  EXPECT_LT(EncodeReport(resume).size(), 4096u);
}

TEST(OutputFilter, ShowsTextAtOnce) {
  OutputFilter filter;
  std::vector<RankReport> reports;
  EXPECT_EQ(filter.Feed("\r\033[Kstep 3", &reports), "\r\033[Kstep 3");
  EXPECT_EQ(filter.Feed(" of 9", &reports), " of 9");
  EXPECT_EQ(filter.Feed("\n-", &reports), "\n");
  EXPECT_EQ(filter.Feed("- two dashes", &reports), "-- two dashes");
}

TEST(OutputFilter, WithholdsWhatMpirunSaysOfEnds) {
  const std::string banner =
      std::string(kRule) +
      "mpirun noticed that process rank 2 with PID 0 on node vm exited on "
      "signal 9 (Killed).\n" +
      kRule;
  const std::string useful =
      std::string(kRule) + "There are not enough slots available\n" + kRule;
  const std::string stream =
      "a\n" + banner + "mpirun: killing job...\n" + useful +
      "[vm:7] 3 more processes have sent help message help-mpi.txt\n" +
      "[rank 3] warning: b\n" + "srun: error: node1: task 2: Killed\n";
  for (size_t size = 1; size <= stream.size(); ++size) {
    std::vector<RankReport> reports;
    EXPECT_EQ(Shown(stream, size, &reports),
              "a\n" + useful + "[rank 3] warning: b\n");
  }
  OutputFilter filter;
  std::vector<RankReport> reports;
  filter.Feed(stream, &reports);
  EXPECT_THAT(filter.withheld(), HasSubstr("noticed that process rank 2"));
  EXPECT_THAT(filter.withheld(), Not(HasSubstr("warning")));
}

TEST(OutputFilter, WithholdsWhatMpirunSaysOfItself) {
  OutputFilter filter("[vm:00037]");
  std::vector<RankReport> reports;
  EXPECT_EQ(filter.Feed("[vm:00037] *** Process received signal ***\n"
                        "[vm:00038] of a rank\n",
                        &reports),
            "[vm:00038] of a rank\n");
}

TEST(OutputFilter, WithholdsWhatSlurmSaysOfEndsOnly) {
  OutputFilter filter;
  std::vector<RankReport> reports;
  EXPECT_EQ(
      filter.Feed("srun: Job step creation temporarily disabled, retrying\n"
                  "srun: error: n1: task 1: Killed\n"
                  "slurmstepd-n1: error: *** STEP 3.1 ON n1 CANCELLED AT x\n"
                  "slurmstepd-n1: error: Detected 1 oom-kill event\n",
                  &reports),
      "srun: Job step creation temporarily disabled, retrying\n"
      "slurmstepd-n1: error: Detected 1 oom-kill event\n");
}

TEST(OutputFilter, PassesOneOfTheSameWordsOfSeveralRanks) {
  OutputFilter filter;
  std::vector<RankReport> reports;
  EXPECT_EQ(filter.Feed("[rank 1] error: a\nerror: a\n[rank 2] error: a\n"
                        "[rank 2] error: b\n[rank 2] error: b\nx\nx\n",
                        &reports),
            "[rank 1] error: a\n[rank 2] error: b\n[rank 2] error: b\nx\nx\n");
}

TEST(OutputFilter, LeavesItToTheLauncherToSayThatRanksStop) {
  OutputFilter filter;
  std::vector<RankReport> reports;
  EXPECT_EQ(
      filter.Feed("a\n\nstopping after this step (again: stop)\nb\n", &reports),
      "a\nb\n");
}

TEST(StatusOfEnd, KnowsOurStatusesOnly) {
  EXPECT_EQ(StatusOfEnd(End(0, 1), 0), 1);
  EXPECT_EQ(StatusOfEnd(End(0, 3), 0), 3);
  EXPECT_EQ(StatusOfEnd(End(0, 77), 0), 2);
  EXPECT_EQ(StatusOfEnd(End(0, 137, SIGKILL), 0), 2);
  EXPECT_EQ(StatusOfEnd(End(0, 143, SIGTERM), 0), 2);
  EXPECT_EQ(StatusOfEnd(End(0, 143, SIGTERM), SIGTERM), 143);
}

TEST(WorseStatus, OrdersByMeaning) {
  EXPECT_EQ(WorseStatus(0, 130), 130);
  EXPECT_EQ(WorseStatus(143, 2), 2);
  EXPECT_EQ(WorseStatus(3, 2), 3);
  EXPECT_EQ(WorseStatus(3, 1), 1);
  EXPECT_EQ(WorseStatus(4, 1), 4);
  EXPECT_EQ(WorseStatus(0, 0), 0);
}

class JobWatchTest : public ::testing::Test {
 protected:
  JobWatchTest() {
    for (int i = 0; i < 4; ++i) watch_.Started(RankReport());
  }
  JobWatch watch_;
  const JobWatch::Time start_{};
};

TEST_F(JobWatchTest, StopsAndThenKillsAfterADeath) {
  EXPECT_FALSE(watch_.NextTime().has_value());
  EXPECT_TRUE(watch_.Ended(End(2, 137, SIGKILL), start_));
  EXPECT_EQ(watch_.Due(start_ + seconds(2)), Action::kNone);
  EXPECT_EQ(watch_.Due(start_ + seconds(3)), Action::kStop);
  EXPECT_EQ(watch_.Due(start_ + seconds(4)), Action::kNone);
  EXPECT_EQ(watch_.Due(start_ + seconds(6)), Action::kKill);
  EXPECT_FALSE(watch_.NextTime().has_value());
  // Victims of the stop change nothing; a rank's own word does.
  EXPECT_FALSE(watch_.Ended(End(0, 143, SIGTERM), start_));
  EXPECT_EQ(watch_.reason()->rank, 2);
  EXPECT_EQ(watch_.ExitStatus(137), 2);
  EXPECT_FALSE(watch_.Ended(End(1, 4), start_));
  EXPECT_EQ(watch_.ExitStatus(137), 4);
}

TEST_F(JobWatchTest, WaitsForCheckpointsAfterASignal) {
  watch_.Interrupted(SIGTERM, start_);
  for (int rank = 0; rank < 4; ++rank) {
    EXPECT_FALSE(watch_.Ended(End(rank, 143), start_ + seconds(30)));
  }
  EXPECT_EQ(watch_.Due(start_ + seconds(590)), Action::kNone);
  EXPECT_EQ(watch_.ExitStatus(0), 143);
  EXPECT_EQ(watch_.Due(start_ + JobWatch::kGrace), Action::kKill);
}

TEST_F(JobWatchTest, ASecondSignalKillsAtOnce) {
  watch_.Interrupted(SIGINT, start_);
  watch_.Interrupted(SIGINT, start_ + seconds(1));
  EXPECT_EQ(watch_.Due(start_ + seconds(1)), Action::kKill);
}

TEST_F(JobWatchTest, AStatusThatNoRankExplains) {
  EXPECT_EQ(watch_.ExitStatus(0), 0);
  EXPECT_EQ(watch_.ExitStatus(137), 2);
  EXPECT_EQ(JobWatch().ExitStatus(1), 1);  // no rank was started
}

}  // namespace
}  // namespace cubit
