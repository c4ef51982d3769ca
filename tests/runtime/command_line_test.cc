// SPDX-License-Identifier: Apache-2.0

#include "runtime/command_line.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/testing/program.h"

namespace cubit {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using testing::ProgramResult;

ProgramResult RunWith(std::vector<std::string> flags,
                      const std::vector<std::string>& environment = {}) {
  flags.insert(flags.begin(), "tests/runtime/command_line_program");
  return testing::RunProgram(flags, environment);
}

TEST(ParseCommandLine, ReadsFlagsAndReturnsTheRest) {
  const ProgramResult result = RunWith(
      {"--num_layers=3", "a", "--prompt", "--odd", "--resume", "--", "--b"});
  EXPECT_EQ(result.exit_status, kExitDone) << result.errors;
  EXPECT_THAT(result.output, HasSubstr("prompt [--odd]\nnum_layers 3\n"
                                       "resume 1\nrest [a]\nrest [--b]\n"));
}

TEST(ParseCommandLine, TakesNegatedFlagsAndNegativeNumbers) {
  const ProgramResult result =
      RunWith({"--noresume", "--num_layers", "-4", "-num_layers=-5"});
  EXPECT_EQ(result.exit_status, kExitDone) << result.errors;
  EXPECT_THAT(result.output, HasSubstr("num_layers -5\nresume 0\n"));
}

TEST(ParseCommandLine, HelpListsEveryFlagWithItsDefaultAndTheExamples) {
  for (const char* flag : {"--help", "-h", "-help", "--helpfull"}) {
    const ProgramResult result = RunWith({"--num_layers=3", flag});
    EXPECT_EQ(result.exit_status, kExitDone) << flag;
    EXPECT_THAT(result.output, HasSubstr("program --num_layers=3")) << flag;
    EXPECT_THAT(result.output, HasSubstr("--num_layers  (default 2)\n"));
    EXPECT_THAT(result.output, HasSubstr("--prompt  (default "));
    EXPECT_THAT(result.output, HasSubstr("--resume  (default false)\n"));
    EXPECT_THAT(result.output, HasSubstr("Text to begin with."));
    // Abseil's own flags would drown them.
    EXPECT_THAT(result.output, Not(HasSubstr("--undefok")));
  }
}

TEST(ParseCommandLine, HelpAfterTheFlagsIsAnArgument) {
  const ProgramResult result = RunWith({"--", "--help"});
  EXPECT_EQ(result.exit_status, kExitDone);
  EXPECT_THAT(result.output, HasSubstr("rest [--help]"));
}

TEST(ParseCommandLine, UnknownFlagNamesTheNearestAndExitsWithOne) {
  const ProgramResult result = RunWith({"--num_layer=3"});
  EXPECT_EQ(result.exit_status, kExitWrongRequest);
  EXPECT_THAT(result.errors,
              HasSubstr("error: unknown flag --num_layer. Did you mean "
                        "--num_layers? --help lists all flags."));
  EXPECT_EQ(result.output, "");
}

TEST(ParseCommandLine, UnknownFlagWithoutANeighbourStandsAlone) {
  const ProgramResult result = RunWith({"--xyzzy=3"});
  EXPECT_EQ(result.exit_status, kExitWrongRequest);
  EXPECT_THAT(result.errors, HasSubstr("unknown flag --xyzzy. --help lists"));
}

TEST(ParseCommandLine, OnlyBoolFlagsCanBeNegated) {
  const ProgramResult result = RunWith({"--noprompt"});
  EXPECT_EQ(result.exit_status, kExitWrongRequest);
  EXPECT_THAT(result.errors, HasSubstr("Did you mean --prompt?"));
}

TEST(ParseCommandLine, BadValueExitsWithOneAndNamesTheFlag) {
  const ProgramResult result = RunWith({"--num_layers=three"});
  EXPECT_EQ(result.exit_status, kExitWrongRequest);
  EXPECT_THAT(result.errors, HasSubstr("three"));
  EXPECT_THAT(result.errors, HasSubstr("num_layers"));
  EXPECT_EQ(result.output, "");
}

TEST(ParseCommandLine, PathsAreRelativeToWhereTheUserStands) {
  const ProgramResult moved = RunWith({}, {"BUILD_WORKING_DIRECTORY=/usr"});
  EXPECT_THAT(moved.output, HasSubstr("folder [/usr]"));
  const ProgramResult lost =
      RunWith({}, {"BUILD_WORKING_DIRECTORY=/no/folder"});
  EXPECT_EQ(lost.exit_status, kExitDone);
  EXPECT_THAT(lost.errors, HasSubstr("warning: cannot move to /no/folder"));
}

TEST(ParseCommandLine, ACrashPrintsAStackTrace) {
  const ProgramResult result = RunWith({"--fail=crash"});
  EXPECT_EQ(result.exit_status, 128 + 6);
  EXPECT_THAT(result.errors, HasSubstr("SIGABRT"));
  EXPECT_THAT(result.errors, HasSubstr("main"));
}

TEST(ExitStatus, SaysWhetherToRetry) {
  const ProgramResult wrong = RunWith({"--fail=not_found"});
  EXPECT_EQ(wrong.exit_status, kExitWrongRequest);
  EXPECT_EQ(wrong.errors, "error: no such file\n");
  const ProgramResult failed = RunWith({"--fail=data_loss"});
  EXPECT_EQ(failed.exit_status, kExitFailed);
  EXPECT_EQ(failed.errors, "error: shard is torn\n");
}

TEST(ExitStatus, SortsEveryCode) {
  EXPECT_EQ(ExitStatus(absl::OkStatus()), 0);
  for (const absl::Status& status :
       {absl::InvalidArgumentError("x"), absl::NotFoundError("x"),
        absl::FailedPreconditionError("x"), absl::AlreadyExistsError("x"),
        absl::OutOfRangeError("x"), absl::PermissionDeniedError("x"),
        absl::UnimplementedError("x")}) {
    EXPECT_EQ(ExitStatus(status), 1) << status;
  }
  for (const absl::Status& status :
       {absl::AbortedError("x"), absl::DataLossError("x"),
        absl::InternalError("x"), absl::UnavailableError("x"),
        absl::ResourceExhaustedError("x"), absl::UnknownError("x"),
        absl::DeadlineExceededError("x"), absl::CancelledError("x")}) {
    EXPECT_EQ(ExitStatus(status), 2) << status;
  }
}

TEST(NearestWord, FindsSlipsOfTheHand) {
  const std::vector<std::string> words = {"hidden_size", "num_heads", "steps",
                                          "tp"};
  EXPECT_EQ(NearestWord("hiden_size", words), "hidden_size");
  EXPECT_EQ(NearestWord("num_head", words), "num_heads");
  EXPECT_EQ(NearestWord("stpes", words), "steps");
  EXPECT_EQ(NearestWord("heads_num", words), "");
  EXPECT_EQ(NearestWord("q", words), "");
  EXPECT_EQ(NearestWord("dp", words), "tp");
  EXPECT_EQ(NearestWord("", words), "");
  EXPECT_EQ(NearestWord("steps", {}), "");
}

}  // namespace
}  // namespace cubit
