// SPDX-License-Identifier: Apache-2.0

#include "runtime/check.h"

#include <cstdio>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"

namespace cubit {
namespace {

TEST(Check, PassesWithoutEvaluatingTheMessage) {
  int messages = 0;
  CUBIT_CHECK(true) << ++messages;
  CUBIT_CHECK_EQ(2, 2) << ++messages;
  CUBIT_CHECK_OK(absl::OkStatus());
  EXPECT_EQ(messages, 0);
}

TEST(Check, EvaluatesItsConditionOnce) {
  int calls = 0;
  CUBIT_CHECK(++calls > 0);
  CUBIT_CHECK_EQ(++calls, 2);
  EXPECT_EQ(calls, 2);
}

TEST(Check, IsOneStatementAfterAnIf) {
  bool other_branch = false;
  if (false)
    CUBIT_CHECK(false);
  else
    other_branch = true;
  EXPECT_TRUE(other_branch);
}

TEST(CheckDeathTest, NamesFileConditionAndMessage) {
  const int rows = 3;
  EXPECT_DEATH(CUBIT_CHECK(rows == 4) << "rows of "
                                      << "x",
               "check_test.cc:[0-9]+: check failed: rows == 4 rows of x");
}

TEST(CheckDeathTest, ComparisonsPrintBothValues) {
  const int a = 3;
  EXPECT_DEATH(CUBIT_CHECK_EQ(a, 4), "a == 4 \\(3 vs. 4\\)");
  EXPECT_DEATH(CUBIT_CHECK_NE(a, 3), "a != 3 \\(3 vs. 3\\)");
  EXPECT_DEATH(CUBIT_CHECK_LT(a, 3), "a < 3 \\(3 vs. 3\\)");
  EXPECT_DEATH(CUBIT_CHECK_LE(a, 2), "a <= 2 \\(3 vs. 2\\)");
  EXPECT_DEATH(CUBIT_CHECK_GT(a, 3), "a > 3 \\(3 vs. 3\\)");
  EXPECT_DEATH(CUBIT_CHECK_GE(a, 4), "a >= 4 \\(3 vs. 4\\)");
}

TEST(CheckDeathTest, OkPrintsTheStatus) {
  const absl::Status lost = absl::DataLossError("shard 3 is torn");
  EXPECT_DEATH(CUBIT_CHECK_OK(lost), "DATA_LOSS: shard 3 is torn");
  const absl::StatusOr<int> none = absl::NotFoundError("no such step");
  EXPECT_DEATH(CUBIT_CHECK_OK(none), "NOT_FOUND: no such step");
}

TEST(FatalHook, IsCalledOnceWithTheMessage) {
  static int calls = 0;
  static std::string message;
  EXPECT_EQ(SetFatalHook([](const char* text) {
              ++calls;
              message = text;
            }),
            nullptr);
  CallFatalHook("first");
  CallFatalHook("second");
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(message, "first");
}

TEST(FatalHookDeathTest, HearsOfAFailedCheck) {
  EXPECT_DEATH(
      {
        SetFatalHook([](const char* text) {
          std::fprintf(stderr, "hook heard: %s\n", text);
        });
        CUBIT_CHECK_EQ(1, 2);
      },
      "hook heard: .*1 == 2 \\(1 vs. 2\\)");
}

}  // namespace
}  // namespace cubit
