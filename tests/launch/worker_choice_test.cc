// SPDX-License-Identifier: Apache-2.0

#include "launch/worker_choice.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/testing/program.h"

namespace cubit {
namespace {

using ::testing::HasSubstr;

GpuProbe OneGpu() { return {1, ""}; }
GpuProbe NoGpu() { return {0, "no NVIDIA driver is here"}; }
GpuProbe MustNotBeAsked() {
  ADD_FAILURE() << "asked for GPUs";
  return {};
}

std::string Kind(const std::vector<std::string>& arguments, bool built,
                 GpuProbe (*probe)()) {
  const auto choice = ChooseWorker(arguments, built, probe);
  return choice.ok() ? choice->kind : std::string(choice.status().message());
}

TEST(ChooseWorker, TakesTheGpuWhereThereIsOne) {
  EXPECT_EQ(Kind({}, true, OneGpu), "cuda");
  EXPECT_EQ(Kind({}, true, NoGpu), "cpu");
  EXPECT_EQ(Kind({"--device=auto"}, true, OneGpu), "cuda");
  EXPECT_EQ(Kind({"--device", "cuda"}, true, OneGpu), "cuda");
  EXPECT_EQ(Kind({"--device=cuda", "-device=cpu"}, true, OneGpu), "cpu");
}

TEST(ChooseWorker, AsksForNoGpuThatItWillNotUse) {
  EXPECT_EQ(Kind({"--device=cpu"}, true, MustNotBeAsked), "cpu");
  EXPECT_EQ(Kind({"--device=cuda", "--dry_run"}, true, MustNotBeAsked), "cuda");
}

TEST(ChooseWorker, OtherFlagsMeanNothing) {
  EXPECT_EQ(Kind({"--device_memory=80", "--", "--device=cpu"}, true, OneGpu),
            "cuda");
  EXPECT_THAT(Kind({"--device=cuda", "--dry_run=false"}, true, NoGpu),
              HasSubstr("no NVIDIA driver is here"));
}

TEST(ChooseWorker, SaysWhatIsMissing) {
  const auto choice = ChooseWorker({}, false, OneGpu);
  ASSERT_TRUE(choice.ok());
  EXPECT_EQ(choice->kind, "cpu");
  EXPECT_THAT(choice->warning, HasSubstr("without nvcc"));
  EXPECT_THAT(Kind({"--device=cuda"}, false, OneGpu),
              HasSubstr("without nvcc"));
  EXPECT_THAT(Kind({"--device=cuda"}, true, NoGpu), HasSubstr("--device=cpu"));
  EXPECT_THAT(Kind({"--device=tpu"}, true, NoGpu),
              HasSubstr("\"tpu\"; give auto, cpu or cuda"));
}

// The front with workers that say who they are, and a driver that is a toy.
class WorkerStart : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::NewFolder();
    const std::string copy =
        "cp tests/launch/worker_front " + folder_ + "/program";
    ASSERT_EQ(std::system(copy.c_str()), 0);
    AddWorker("cpu");
  }
  void AddWorker(const std::string& kind) {
    const std::string path = folder_ + "/program_" + kind;
    testing::WriteText(path, "#!/bin/sh\necho " + kind + ": \"$@\"\nexit 7\n");
    ASSERT_EQ(chmod(path.c_str(), 0755), 0);
  }
  testing::ProgramResult Run(const std::vector<std::string>& arguments,
                             const std::vector<std::string>& environment) {
    std::vector<std::string> command = {folder_ + "/program"};
    command.insert(command.end(), arguments.begin(), arguments.end());
    return testing::RunProgram(command, environment);
  }
  std::vector<std::string> ToyDriver(const std::string& num_gpus,
                                     const std::string& major) {
    const std::string copy =
        "cp tests/launch/libtoy_driver.so " + folder_ + "/libcuda.so.1";
    EXPECT_EQ(std::system(copy.c_str()), 0);
    return {"LD_LIBRARY_PATH=" + folder_, "TOY_GPUS=" + num_gpus,
            "TOY_MAJOR=" + major};
  }

  std::string folder_;
};

TEST_F(WorkerStart, HandsArgumentsAndStatusOn) {
  const auto result = Run({"--device=cpu", "--steps=3", "a b"}, {});
  EXPECT_EQ(result.output, "cpu: --device=cpu --steps=3 a b\n");
  EXPECT_EQ(result.exit_status, 7);
}

TEST_F(WorkerStart, AsksTheDriver) {
  AddWorker("cuda");
  EXPECT_EQ(Run({}, ToyDriver("1", "9")).output, "cuda:\n");
  EXPECT_EQ(Run({}, ToyDriver("0", "9")).output, "cpu:\n");
  const auto beside_old = Run({}, ToyDriver("2", "7"));
  EXPECT_EQ(beside_old.output, "cpu:\n");
  EXPECT_THAT(beside_old.errors,
              HasSubstr("warning: GPU 1 has compute capability 7.5; 8.0 or "
                        "newer is needed. Computing on the CPU"));
  const auto old = Run({"--device=cuda"}, ToyDriver("2", "7"));
  EXPECT_EQ(old.exit_status, 1);
  EXPECT_THAT(old.errors, HasSubstr("compute capability 7.5"));
  const auto none = Run({"--device=cuda"}, ToyDriver("0", "9"));
  EXPECT_EQ(none.exit_status, 1);
  EXPECT_THAT(none.errors, HasSubstr("shows no GPU"));
}

// Under a tool that follows the driver, a program that such a process became
// waits for ever.
TEST_F(WorkerStart, BecomesTheWorkerWithoutADriverInItsProcess) {
  const std::string path = folder_ + "/program_cuda";
  testing::WriteText(path, "#!/bin/sh\necho $$\n");
  ASSERT_EQ(chmod(path.c_str(), 0755), 0);
  std::vector<std::string> environment = ToyDriver("1", "9");
  environment.push_back("TOY_PID=" + folder_ + "/driver");
  const std::string worker = Run({}, environment).output;
  const std::string driver = testing::ReadText(folder_ + "/driver");
  EXPECT_NE(worker, "");
  EXPECT_NE(driver, "");
  EXPECT_NE(worker, driver);
}

// The driver's start takes a good part of a second.
TEST_F(WorkerStart, OfALauncherAsksTheDriverOnce) {
  const std::string copy =
      "cp tests/launch/launcher_front " + folder_ + "/program";
  ASSERT_EQ(std::system(copy.c_str()), 0);
  AddWorker("cuda");
  std::vector<std::string> environment = ToyDriver("1", "9");
  environment.push_back("TOY_PID=" + folder_ + "/driver");
  EXPECT_EQ(Run({}, environment).output, "cuda:\n");
  const std::string asked = testing::ReadText(folder_ + "/driver");
  EXPECT_EQ(std::count(asked.begin(), asked.end(), '\n'), 1) << asked;
}

TEST_F(WorkerStart, SurvivesADriverThatDoesNot) {
  AddWorker("cuda");
  std::vector<std::string> environment = ToyDriver("1", "9");
  environment.push_back("TOY_ABORTS=1");
  const auto without = Run({}, environment);
  EXPECT_EQ(without.output, "cpu:\n");
  EXPECT_THAT(without.errors,
              HasSubstr("warning: the look for GPUs failed: the NVIDIA driver "
                        "ended its process with signal 6. Computing on"));
  const auto asked = Run({"--device=cuda"}, environment);
  EXPECT_EQ(asked.exit_status, 1);
  EXPECT_THAT(asked.errors, HasSubstr("with signal 6"));
}

TEST_F(WorkerStart, WarnsOfAGpuThatTheBuildCannotUse) {
  const auto result = Run({}, ToyDriver("1", "9"));
  EXPECT_EQ(result.output, "cpu:\n");
  EXPECT_THAT(result.errors, HasSubstr("warning: a GPU is here"));
}

}  // namespace
}  // namespace cubit
