// SPDX-License-Identifier: Apache-2.0

#include "runtime/status_macros.h"

#include <memory>
#include <string>

#include "gtest/gtest.h"

namespace cubit {
namespace {

absl::StatusOr<std::unique_ptr<int>> Positive(int value) {
  if (value <= 0) return absl::InvalidArgumentError("not positive");
  return std::make_unique<int>(value);
}

absl::StatusOr<int> Sum(int a, int b) {
  CUBIT_ASSIGN_OR_RETURN(const std::unique_ptr<int> first, Positive(a));
  std::unique_ptr<int> second;
  CUBIT_ASSIGN_OR_RETURN(second, Positive(b));
  return *first + *second;
}

absl::Status Twice(const absl::Status& first, int* reached) {
  CUBIT_RETURN_IF_ERROR(first);
  *reached = 1;
  return absl::OkStatus();
}

TEST(AssignOrReturn, MovesTheValueIntoDeclarationsAndVariables) {
  const absl::StatusOr<int> sum = Sum(2, 3);
  ASSERT_TRUE(sum.ok());
  EXPECT_EQ(*sum, 5);
}

TEST(AssignOrReturn, ReturnsTheFirstError) {
  EXPECT_EQ(Sum(0, 1).status(), absl::InvalidArgumentError("not positive"));
  EXPECT_EQ(Sum(1, -1).status(), absl::InvalidArgumentError("not positive"));
}

TEST(ReturnIfError, StopsOnlyOnErrors) {
  int reached = 0;
  EXPECT_EQ(Twice(absl::AbortedError("x"), &reached), absl::AbortedError("x"));
  EXPECT_EQ(reached, 0);
  EXPECT_TRUE(Twice(absl::OkStatus(), &reached).ok());
  EXPECT_EQ(reached, 1);
}

}  // namespace
}  // namespace cubit
