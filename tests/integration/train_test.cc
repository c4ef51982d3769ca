// SPDX-License-Identifier: Apache-2.0
//
// //launch:train as a user meets it: runs, resumes, interruptions, bad input.

#include <signal.h>
#include <sys/mount.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/types/variant.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "launch/metrics.h"
#include "runtime/digest.h"
#include "runtime/file_system.h"
#include "tests/testing/program.h"

namespace cubit {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using testing::NewFolder;
using testing::Outcome;
using testing::OutcomeOf;
using testing::Program;
using testing::ReadText;
using testing::RunAsUser;
using testing::UserCommand;
using testing::UserEnvironment;
using testing::WriteText;

using Arguments = std::vector<std::string>;

constexpr char kTrain[] = "launch/train";
constexpr char kPrepare[] = "data/prepare";

// A model that takes a step in milliseconds.
const Arguments kSmall = {
    "--set=model.num_layers=1",        "--set=model.hidden_size=32",
    "--set=model.num_heads=2",         "--set=model.seq_len=64",
    "--set=batch.global_batch_size=4", "--set=batch.micro_batch_size=2",
    "--set=evaluation.max_batches=2",  "--set=log.every_steps=1"};

// Some documents of words that repeat, so that there is something to learn.
std::string SomeText(int document) {
  std::string text;
  for (int i = 0; i < 60; ++i) {
    text += "the " + std::to_string((i * 7 + document) % 10) +
            " cats sat on the mat and looked at the dog. ";
  }
  return text;
}

void WriteDocuments(const std::string& folder, int count) {
  for (int i = 0; i < count; ++i) {
    WriteText(folder + "/document" + std::to_string(i) + ".txt", SomeText(i));
  }
}

class TrainTest : public ::testing::Test {
 protected:
  TrainTest() : home_(NewFolder()), text_(NewFolder()) {
    WriteDocuments(text_, 8);
  }

  Arguments With(const Arguments& more) const {
    Arguments all = kSmall;
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  Outcome Train(const Arguments& more) const {
    return RunAsUser(kTrain, With(more), home_);
  }
  Outcome TrainOn(const std::string& data, const std::string& run,
                  Arguments more = {}) const {
    more.push_back("--data=" + data);
    more.push_back("--output_dir=" + run);
    return Train(more);
  }
  // A folder of token shards made of `text_`.
  std::string Shards() const {
    std::string out = home_ + "/shards";
    const Outcome result =
        RunAsUser(kPrepare, {"--input=" + text_, "--out=" + out}, home_);
    EXPECT_EQ(result.status, 0) << result.output;
    return out;
  }
  std::string Run(const std::string& name) const { return home_ + "/" + name; }

  std::string home_;
  std::string text_;
};

std::vector<double> Losses(const std::string& run) {
  const auto metrics = ReadMetrics(run + "/metrics.jsonl");
  EXPECT_TRUE(metrics.ok()) << metrics.status();
  std::vector<double> losses;
  for (const TrainMetrics& line : metrics->train) losses.push_back(line.loss);
  return losses;
}

// Digest of every file of a checkpoint, by name.
std::string CheckpointDigest(const std::string& folder) {
  std::string digests;
  const auto names = FileSystem::Posix().List(folder);
  EXPECT_TRUE(names.ok()) << names.status();
  for (const std::string& name : *names) {
    if (name.find('.') == std::string::npos) continue;  // a folder
    digests += name + " " + Sha256Hex(ReadText(folder + "/" + name)) + "\n";
  }
  return digests;
}

std::string Step(const std::string& run, const std::string& step) {
  return run + "/checkpoints/step_" + std::string(8 - step.size(), '0') + step;
}

TEST_F(TrainTest, RefusesWhatDoesNotFitAndSaysWhatDoes) {
  const std::string run = Run("run");
  const Outcome result = TrainOn(text_, run,
                                 {"--set=batch.global_batch_size=16777216",
                                  "--set=batch.micro_batch_size=16777216"});
  EXPECT_EQ(result.status, 1) << result.output;
  EXPECT_THAT(result.output, HasSubstr("of memory and the device has"));
  EXPECT_THAT(result.output, HasSubstr("--set batch.micro_batch_size="));
  EXPECT_FALSE(FileSystem::Posix().Exists(run));
  const Outcome plan = Train({"--dry_run", "--device_memory=64MiB"});
  EXPECT_EQ(plan.status, 0) << plan.output;
  EXPECT_THAT(plan.output, HasSubstr("micro_batch_size that fits: 4"));
  EXPECT_EQ(Train({"--dry_run", "--device_memory=64potatoes"}).status, 1);
}

TEST_F(TrainTest, RecomputingChangesNoLoss) {
  for (const char* recompute : {"none", "selective", "full"}) {
    const Outcome result = TrainOn(
        text_, Run(recompute),
        {"--steps=5", std::string("--set=memory.recompute=") + recompute});
    ASSERT_EQ(result.status, 0) << result.output;
  }
  EXPECT_EQ(Losses(Run("selective")), Losses(Run("none")));
  EXPECT_EQ(Losses(Run("full")), Losses(Run("none")));
}

TEST_F(TrainTest, ProfilesStepsByKindOfWork) {
  const Outcome result =
      TrainOn(text_, Run("run"), {"--steps=4", "--profile_steps=2-3"});
  ASSERT_EQ(result.status, 0) << result.output;
  EXPECT_THAT(result.output, HasSubstr("device time of steps 2 to 3"));
  for (const char* work : {"linear", "solve", "attention", "optimizer"}) {
    EXPECT_THAT(result.output, HasSubstr(std::string("\n") + work));
  }
  const auto metrics = ReadMetrics(Run("run") + "/metrics.jsonl");
  ASSERT_TRUE(metrics.ok()) << metrics.status();
  const auto profile =
      std::find_if(metrics->events.begin(), metrics->events.end(),
                   [](const auto& event) { return event.event == "profile"; });
  ASSERT_NE(profile, metrics->events.end());
  EXPECT_EQ(profile->step, 3);
  double seconds = 0;
  for (const auto& [name, value] : profile->fields) {
    EXPECT_THAT(name, EndsWith(".rank0"));
    seconds += absl::get<double>(value);
  }
  const double mean =
      (metrics->train[1].step_seconds + metrics->train[2].step_seconds) / 2;
  EXPECT_LE(seconds, mean);
  EXPECT_GE(seconds, mean / 2);
  EXPECT_EQ(TrainOn(text_, Run("bad"), {"--profile_steps=3-2"}).status, 1);
}

TEST_F(TrainTest, LearnsAndWritesEverythingItPromises) {
  const std::string run = Run("run");
  const Outcome result = TrainOn(text_, run, {"--steps=60"});
  ASSERT_EQ(result.status, 0) << result.output;
  const auto metrics = ReadMetrics(run + "/metrics.jsonl");
  ASSERT_TRUE(metrics.ok()) << metrics.status();
  ASSERT_EQ(metrics->train.size(), 60u);
  ASSERT_GE(metrics->validation.size(), 2u);
  EXPECT_LT(metrics->validation.back().loss,
            metrics->validation.front().loss - 1.0);
  EXPECT_FALSE(metrics->validation.back().loss_by_position.empty());
  for (const TrainMetrics& line : metrics->train) {
    ASSERT_TRUE(line.krr.has_value());
    EXPECT_GT(line.krr->min_diagonal, 0);
    EXPECT_GT(line.krr->max_gain, 0);
    EXPECT_GT(line.memory_bytes, 0);
  }
  EXPECT_NE(ReadText(run + "/config.textproto").find("num_layers: 1"),
            std::string::npos);
  EXPECT_FALSE(ReadText(run + "/log.txt").empty());
  EXPECT_NE(ReadText(run + "/checkpoints/latest").find("60"),
            std::string::npos);
  EXPECT_NE(result.output.find("sample at step 60"), std::string::npos);
}

TEST_F(TrainTest, MemoryAndFlopsAreWhatDryRunSaid) {
  const Outcome plan = Train({"--data=" + text_, "--steps=2", "--dry_run"});
  ASSERT_EQ(plan.status, 0) << plan.output;
  const std::string run = Run("run");
  ASSERT_EQ(TrainOn(text_, run, {"--steps=2"}).status, 0);
  const auto metrics = ReadMetrics(run + "/metrics.jsonl");
  ASSERT_TRUE(metrics.ok());
  EXPECT_NE(plan.output.find(
                std::to_string(metrics->train.back().memory_bytes) + " bytes"),
            std::string::npos)
      << plan.output << metrics->train.back().memory_bytes;
}

TEST_F(TrainTest, ResumingGivesTheSameBitsAsNotStopping) {
  for (const char* mixer : {"cubit", "softmax", "deltaformer"}) {
    const std::string set = std::string("--set=model.mixer=") + mixer;
    const std::string whole = Run(std::string("whole_") + mixer);
    const std::string parts = Run(std::string("parts_") + mixer);
    ASSERT_EQ(TrainOn(text_, whole, {"--steps=20", set}).status, 0);
    const Outcome first =
        TrainOn(text_, parts, {"--steps=20", "--stop_at_step=10", set});
    ASSERT_EQ(first.status, 0) << first.output;
    EXPECT_NE(first.output.find("--resume"), std::string::npos);
    EXPECT_EQ(Losses(parts).size(), 10u);
    const Outcome second =
        RunAsUser(kTrain, {"--output_dir=" + parts, "--resume"}, home_);
    ASSERT_EQ(second.status, 0) << second.output;
    EXPECT_NE(second.output.find("resumed at step 10"), std::string::npos);
    EXPECT_EQ(Losses(whole), Losses(parts));
    EXPECT_EQ(CheckpointDigest(Step(whole, "20")),
              CheckpointDigest(Step(parts, "20")));
  }
}

TEST_F(TrainTest, SignalsEndInACheckpointAndTheCommandToResume) {
  for (const auto& [signal, status] :
       {std::pair<int, int>{SIGINT, 130}, {SIGTERM, 143}}) {
    const std::string run = Run("run" + std::to_string(signal));
    Program program(
        UserCommand(kTrain, With({"--steps=100000", "--data=" + text_,
                                  "--output_dir=" + run})),
        UserEnvironment(home_));
    ASSERT_TRUE(program.WaitForError("step 3/"));
    program.Signal(signal);
    const Outcome result = OutcomeOf(program.Wait());
    EXPECT_EQ(result.status, status) << result.output;
    EXPECT_NE(result.output.find("--output_dir=" + run + " --resume"),
              std::string::npos)
        << result.output;
    const auto losses = Losses(run);
    const std::string last = std::to_string(losses.size());
    EXPECT_TRUE(FileSystem::Posix().Exists(Step(run, last)));
  }
}

TEST_F(TrainTest, FallsBackToTheCheckpointBeforeADamagedOneAndSaysSo) {
  const std::string run = Run("run");
  ASSERT_EQ(TrainOn(text_, run,
                    {"--steps=10", "--stop_at_step=8",
                     "--set=checkpoint.every_steps=4"})
                .status,
            0);
  const std::string folder = Step(run, "8");
  const auto names = FileSystem::Posix().List(folder);
  ASSERT_TRUE(names.ok());
  for (const std::string& name : *names) {
    if (name.find(".safetensors") == std::string::npos) continue;
    std::string contents = ReadText(folder + "/" + name);
    contents[contents.size() / 2] ^= 1;
    WriteText(folder + "/" + name, contents);
  }
  const Outcome result =
      RunAsUser(kTrain, {"--output_dir=" + run, "--resume"}, home_);
  EXPECT_EQ(result.status, 0) << result.output;
  EXPECT_NE(result.output.find(folder), std::string::npos) << result.output;
  EXPECT_NE(result.output.find("resumed at step 4"), std::string::npos)
      << result.output;
}

TEST_F(TrainTest, RefusesToResumeAnotherModel) {
  const std::string run = Run("run");
  ASSERT_EQ(TrainOn(text_, run, {"--steps=10", "--stop_at_step=2"}).status, 0);
  const Outcome result = RunAsUser(
      kTrain, {"--output_dir=" + run, "--resume", "--set=model.hidden_size=64"},
      home_);
  EXPECT_EQ(result.status, 1) << result.output;
  EXPECT_NE(result.output.find("model.hidden_size"), std::string::npos)
      << result.output;
}

// What is asked, and words that the error must hold.
struct BadRequest {
  const char* name;
  Arguments arguments;
  std::vector<std::string> words;
};

class BadRequestTest : public TrainTest,
                       public ::testing::WithParamInterface<BadRequest> {};

TEST_P(BadRequestTest, IsAnErrorWithStatusOneAndWritesNothing) {
  const std::string run = Run("run");
  Arguments arguments = {"--data=" + text_, "--output_dir=" + run};
  arguments.insert(arguments.end(), GetParam().arguments.begin(),
                   GetParam().arguments.end());
  const Outcome result = Train(arguments);
  EXPECT_EQ(result.status, 1) << result.output;
  for (const std::string& word : GetParam().words) {
    EXPECT_NE(result.output.find(word), std::string::npos)
        << "no \"" << word << "\" in: " << result.output;
  }
  EXPECT_FALSE(FileSystem::Posix().Exists(run));
}

INSTANTIATE_TEST_SUITE_P(
    Requests, BadRequestTest,
    ::testing::Values(
        BadRequest{"UnknownFlag", {"--dry_rum"}, {"--dry_rum", "--dry_run"}},
        BadRequest{"UnknownKey",
                   {"--set=model.num_layer=2"},
                   {"num_layer", "num_layers"}},
        BadRequest{"UnknownWord", {"--set=model.mixer=cubic"}, {"cubit"}},
        BadRequest{"UnknownPreset",
                   {"--preset=cubit_125"},
                   {"cubit_125", "cubit_125m"}},
        BadRequest{"HeadsDoNotDivide",
                   {"--set=model.num_heads=3"},
                   {"num_heads", "3", "32"}},
        BadRequest{"BatchDoesNotDivide",
                   {"--set=batch.micro_batch_size=3"},
                   {"micro_batch_size", "3", "4"}},
        BadRequest{"SequenceLongerThanText",
                   {"--set=model.seq_len=1000000"},
                   {"tokens"}},
        BadRequest{"NegativeStop", {"--stop_at_step=-1"}, {"--stop_at_step"}},
        BadRequest{"NoSuchDevice", {"--device=tpu"}, {"tpu", "cpu"}},
        BadRequest{"MoreRanksThanThereAre", {"--tp=2"}, {"tp", "--nodes=2"}},
        BadRequest{"PositionalWord", {"tiny"}, {"tiny", "--help"}}),
    [](const auto& test) { return test.param.name; });

TEST_F(TrainTest, NamesWhatIsWrongWithTextItCannotUse) {
  const std::string run = Run("run");
  Outcome result = TrainOn(home_ + "/missing", run);
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.output.find("missing"), std::string::npos);

  const std::string empty = NewFolder();
  WriteText(empty + "/empty.txt", "");
  result = TrainOn(empty, run);
  EXPECT_EQ(result.status, 1) << result.output;

  const std::string invalid = NewFolder();
  WriteText(invalid + "/latin1.txt", "caf\xE9 au lait");
  result = TrainOn(invalid, run);
  EXPECT_EQ(result.status, 1) << result.output;
  EXPECT_NE(result.output.find("latin1.txt"), std::string::npos)
      << result.output;
  EXPECT_NE(result.output.find("UTF-8"), std::string::npos) << result.output;
  EXPECT_FALSE(FileSystem::Posix().Exists(run));
}

TEST_F(TrainTest, NeverTrainsOnADamagedShard) {
  const std::string shards = Shards();
  // The shard of the train split is the larger one.
  const auto names = FileSystem::Posix().List(shards);
  ASSERT_TRUE(names.ok());
  std::string path, contents;
  for (const std::string& name : *names) {
    if (name.find(".h5") == std::string::npos) continue;
    const std::string candidate = ReadText(shards + "/" + name);
    if (candidate.size() < contents.size()) continue;
    path = shards + "/" + name;
    contents = candidate;
  }
  ASSERT_FALSE(path.empty());

  WriteText(path, contents.substr(0, contents.size() / 2));
  Outcome result = TrainOn(shards, Run("truncated"), {"--steps=40"});
  EXPECT_TRUE(result.status == 1 || result.status == 2) << result.status;
  EXPECT_NE(result.output.find(path), std::string::npos) << result.output;

  // A bit of the tokens: text of the first document is found in the file as
  // 16-bit ids.
  std::string needle;
  for (const char c : std::string("cats sat")) {
    needle += c;
    needle += '\0';
  }
  const size_t at = contents.find(needle);
  ASSERT_NE(at, std::string::npos);
  std::string flipped = contents;
  flipped[at] ^= 1;
  WriteText(path, flipped);
  result = TrainOn(shards, Run("flipped"), {"--steps=40"});
  EXPECT_TRUE(result.status == 1 || result.status == 2) << result.output;
  EXPECT_NE(result.output.find(path), std::string::npos) << result.output;
}

TEST_F(TrainTest, RefusesShardsOfAnotherTokenizer) {
  const std::string shards = Shards();
  const std::string tokenizer = NewFolder();
  // A vocabulary of the 256 bytes alone, in the tiktoken format.
  std::string lines;
  constexpr char kDigits[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (int byte = 0; byte < 256; ++byte) {
    lines += kDigits[byte >> 2];
    lines += kDigits[(byte & 3) << 4];
    lines += "== " + std::to_string(byte) + "\n";
  }
  WriteText(tokenizer + "/bytes.tiktoken", lines);
  const Outcome result =
      TrainOn(shards, Run("run"),
              {"--set=data.tokenizer=" + tokenizer + "/bytes.tiktoken"});
  EXPECT_EQ(result.status, 1) << result.output;
  EXPECT_NE(result.output.find("tokenizer"), std::string::npos)
      << result.output;
  EXPECT_FALSE(FileSystem::Posix().Exists(Run("run")));
}

TEST_F(TrainTest, RefusesAFolderThatHoldsARun) {
  const std::string run = Run("run");
  ASSERT_EQ(TrainOn(text_, run, {"--steps=2"}).status, 0);
  const std::string before = ReadText(run + "/metrics.jsonl");
  const Outcome result = TrainOn(text_, run, {"--steps=2"});
  EXPECT_EQ(result.status, 1) << result.output;
  EXPECT_NE(result.output.find("--resume"), std::string::npos);
  EXPECT_EQ(ReadText(run + "/metrics.jsonl"), before);
}

// A small disk of our own, where the machine lets us mount one.
class SmallDisk {
 public:
  explicit SmallDisk(const char* options) : path_(NewFolder()) {
    mounted_ = mount("tmpfs", path_.c_str(), "tmpfs", 0, options) == 0;
  }
  ~SmallDisk() {
    if (mounted_) umount2(path_.c_str(), MNT_DETACH);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;

  bool mounted() const { return mounted_; }
  const std::string& path() const { return path_; }
  bool MakeReadOnly() const {
    return mount("tmpfs", path_.c_str(), "tmpfs", MS_REMOUNT | MS_RDONLY, "") ==
           0;
  }

 private:
  std::string path_;
  bool mounted_;
};

TEST_F(TrainTest, KeepsTheLastCheckpointWhenTheDiskIsFull) {
  const SmallDisk disk("size=1200k");
  if (!disk.mounted()) GTEST_SKIP() << "skipped: needs the right to mount";
  const std::string run = disk.path() + "/run";
  const Outcome result = TrainOn(text_, run,
                                 {"--steps=6", "--set=checkpoint.every_steps=2",
                                  "--set=checkpoint.keep_last=10"});
  EXPECT_EQ(result.status, 2) << result.output;
  EXPECT_NE(result.output.find("No space left"), std::string::npos)
      << result.output;
  EXPECT_NE(result.output.find("free"), std::string::npos) << result.output;
  const auto names = FileSystem::Posix().List(run + "/checkpoints");
  ASSERT_TRUE(names.ok()) << names.status();
  for (const std::string& name : *names) {
    EXPECT_EQ(name.find(".tmp"), std::string::npos) << name;
  }
  EXPECT_TRUE(FileSystem::Posix().Exists(Step(run, "2")));
}

TEST_F(TrainTest, RefusesAReadOnlyFolderBeforeTraining) {
  const SmallDisk disk("size=1m");
  if (!disk.mounted() || !disk.MakeReadOnly()) {
    GTEST_SKIP() << "skipped: needs the right to mount";
  }
  const Outcome result = TrainOn(text_, disk.path() + "/run", {"--steps=2"});
  EXPECT_EQ(result.status, 1) << result.output;
  EXPECT_NE(result.output.find("Read-only"), std::string::npos)
      << result.output;
}

TEST_F(TrainTest, GeneratesTheSameTextTwiceFromACheckpoint) {
  const std::string run = Run("run");
  ASSERT_EQ(TrainOn(text_, run, {"--steps=40"}).status, 0);
  const Arguments arguments = {"--checkpoint=" + run, "--prompt=the cats",
                               "--max_tokens=40"};
  const Outcome first = RunAsUser("launch/generate", arguments, home_);
  EXPECT_EQ(first.status, 0) << first.output;
  EXPECT_NE(first.output.find("the cats"), std::string::npos);
  EXPECT_GT(first.output.size(), 30u);
  EXPECT_EQ(first.output,
            RunAsUser("launch/generate", arguments, home_).output);
  const Outcome missing =
      RunAsUser("launch/generate", {"--checkpoint=" + home_ + "/none"}, home_);
  EXPECT_EQ(missing.status, 1);
  EXPECT_NE(missing.output.find("does not exist"), std::string::npos);
}

}  // namespace
}  // namespace cubit
