// SPDX-License-Identifier: Apache-2.0

#include "launch/data_setup.h"

#include <cstdlib>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "data/reader_process.h"
#include "tests/testing/program.h"

namespace cubit {
namespace {

using ::testing::HasSubstr;

RunConfig Config(const std::vector<std::string>& skipped) {
  RunConfig config;
  config.mutable_batch()->set_global_batch_size(10);
  for (const std::string& range : skipped) {
    config.mutable_data()->add_skip_steps(range);
  }
  return config;
}

TEST(SkippedPositions, AreThoseOfTheSteps) {
  const auto ranges = SkippedPositions(Config({"1-2", "5-5"}));
  ASSERT_TRUE(ranges.ok()) << ranges.status();
  ASSERT_EQ(ranges->size(), 2u);
  EXPECT_EQ((*ranges)[0].begin, 0);
  EXPECT_EQ((*ranges)[0].end, 20);
  EXPECT_EQ((*ranges)[1].begin, 40);
  EXPECT_EQ((*ranges)[1].end, 50);
  EXPECT_TRUE(SkippedPositions(Config({}))->empty());
}

TEST(SkippedPositions, RefusesWhatIsNoRange) {
  for (const char* text : {"", "5", "5-", "-5", "6-5", "0-3", "a-b", "1-2-3",
                           "1-99999999999999999"}) {
    const auto ranges = SkippedPositions(Config({text}));
    ASSERT_FALSE(ranges.ok()) << text;
    EXPECT_THAT(std::string(ranges.status().message()),
                HasSubstr("FIRST-LAST is wanted"));
  }
  EXPECT_FALSE(SkippedPositions(Config({"5-8", "8-9"})).ok());
  EXPECT_FALSE(SkippedPositions(Config({"5-8", "1-2"})).ok());
}

TEST(SkippedPositions, OnlyUnusedDataCanBeSkippedLater) {
  const RunConfig none = Config({});
  // After 5 steps: step 6 has positions 50 to 59.
  EXPECT_TRUE(CheckSkippedOnResume(none, Config({"6-9"}), 50).ok());
  EXPECT_TRUE(CheckSkippedOnResume(none, Config({"1-9"}), 0).ok());
  const absl::Status used = CheckSkippedOnResume(none, Config({"5-9"}), 50);
  EXPECT_EQ(used.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(used.message()),
              HasSubstr("its next unused data is of step 6"));
  // What was skipped stays skipped; 5 steps then used data of steps 1 to 8.
  const RunConfig some = Config({"3-5"});
  EXPECT_TRUE(CheckSkippedOnResume(some, Config({"3-5", "9-9"}), 50).ok());
  EXPECT_FALSE(CheckSkippedOnResume(some, Config({"3-5", "8-9"}), 50).ok());
  EXPECT_FALSE(CheckSkippedOnResume(some, none, 50).ok());
}

// With weights every path is a data set of its own.
TEST(PrepareRunData, BlendsTextsByWeight) {
  const std::string folder = testing::NewFolder();
  setenv("XDG_CACHE_HOME", (folder + "/cache").c_str(), 1);
  std::string lines;
  for (int i = 0; i < 50; ++i) {
    lines += "{\"text\": \"Some text, long enough for samples.\"}\n";
  }
  testing::WriteText(folder + "/a.jsonl", lines);
  testing::WriteText(folder + "/b.jsonl", lines + lines);
  RunConfig config = Config({});
  config.mutable_model()->set_seq_len(16);
  config.mutable_data()->add_path(folder + "/a.jsonl");
  config.mutable_data()->add_path(folder + "/b.jsonl");
  auto together = PrepareRunData(config);
  ASSERT_TRUE(together.ok()) << together.status();
  EXPECT_EQ(together->folders.size(), 1u);
  EXPECT_EQ(together->train->Epochs(100).size(), 1u);
  config.mutable_data()->add_weight(3);
  config.mutable_data()->add_weight(1);
  auto blended = PrepareRunData(config);
  ASSERT_TRUE(blended.ok()) << blended.status();
  EXPECT_EQ(blended->folders.size(), 2u);
  const std::vector<double> epochs = blended->train->Epochs(1000);
  ASSERT_EQ(epochs.size(), 2u);
  EXPECT_GT(epochs[0], 5 * epochs[1]);
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  if (const auto status = cubit::RunReaderProcess(argc, argv)) return *status;
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
