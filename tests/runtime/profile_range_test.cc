// SPDX-License-Identifier: Apache-2.0

#include "runtime/profile_range.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cubit {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

double Sum(const StepProfile& profile) {
  double sum = 0;
  for (const auto& [category, seconds] : profile.seconds()) sum += seconds;
  return sum;
}

// Something that takes time.
void Work() {
  volatile double x = 1;
  for (int i = 0; i < 20000; ++i) x = x * 1.0000001;
}

TEST(StepProfile, SharesAddUpToTheStep) {
  Stream stream;
  StepProfile profile(&stream);
  stream.set_profile(&profile);
  for (int step = 0; step < 3; ++step) {
    profile.Begin();
    Work();
    {
      const ProfileRange outer("outer", stream);
      Work();
      {
        const ProfileRange inner("inner", stream);
        Work();
      }
      Work();
    }
    profile.End();
  }
  EXPECT_EQ(profile.num_steps(), 3);
  EXPECT_THAT(profile.seconds(),
              ElementsAre(Pair("inner", ::testing::Gt(0.0)),
                          Pair("other", ::testing::Gt(0.0)),
                          Pair("outer", ::testing::Gt(0.0))));
  EXPECT_NEAR(Sum(profile), profile.total_seconds(),
              1e-9 * profile.total_seconds());
  EXPECT_THAT(profile.ToString(), HasSubstr("of 3 steps"));
  EXPECT_THAT(profile.ToString(), HasSubstr("inner"));
}

// An inner range's time is not counted for the one around it.
TEST(StepProfile, TimeCountsForTheInnermostRange) {
  Stream stream;
  StepProfile profile(&stream);
  stream.set_profile(&profile);
  profile.Begin();
  {
    const ProfileRange outer("outer", stream);
    const ProfileRange inner("inner", stream);
    for (int i = 0; i < 50; ++i) Work();
  }
  profile.End();
  EXPECT_LT(profile.seconds().at("outer"), profile.seconds().at("inner") / 4);
}

TEST(ProfileRange, CostsNothingWhereNobodyAsks) {
  Stream stream;
  const ProfileRange alone("alone", stream);
  StepProfile profile(&stream);
  stream.set_profile(&profile);
  // Ranges outside of a step are not counted.
  { const ProfileRange range("range", stream); }
  EXPECT_TRUE(profile.seconds().empty());
  stream.set_profile(nullptr);
}

TEST(Event, MeasuresBetweenTwoPoints) {
  Stream stream;
  Event begin;
  Event end;
  begin.Record(stream);
  Work();
  end.Record(stream);
  end.Synchronize();
  EXPECT_GT(Event::SecondsBetween(begin, end), 0);
  Event moved = std::move(begin);
  EXPECT_GT(Event::SecondsBetween(moved, end), 0);
}

TEST(ProfileLabel, MayStandAnywhere) { const ProfileLabel label("forward", 3); }

}  // namespace
}  // namespace cubit
