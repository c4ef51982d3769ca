// SPDX-License-Identifier: Apache-2.0
//
// //data:prepare and //data:inspect as a user meets them.

#include <signal.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "data/parquet_file.h"
#include "tests/data/parquet_files.h"
#include "tests/data/shard_files.h"
#include "tests/testing/program.h"

namespace cubit {
namespace {

using testing::Program;
using testing::ProgramResult;
using testing::RunProgram;

// Files equal byte for byte.
const std::vector<std::string> kEnvironment = {"SOURCE_DATE_EPOCH=1700000000"};

class DataPrograms : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ScratchFolder("");
    text_ = folder_ + "/text.jsonl";
    std::string lines;
    for (int line = 0; line < 300; ++line) {
      absl::StrAppend(&lines, "{\"text\": \"This is document ", line, ".\"}\n");
    }
    SetFileContents(text_, lines);
    out_ = folder_ + "/shards";
  }

  static ProgramResult Prepare(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "data/prepare");
    return RunProgram(arguments, kEnvironment);
  }
  static ProgramResult Inspect(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "data/inspect");
    return RunProgram(arguments, kEnvironment);
  }
  static void Expect(const ProgramResult& result, int exit_status,
                     const std::string& words) {
    const std::string said = result.output + result.errors;
    EXPECT_EQ(result.exit_status, exit_status) << said;
    EXPECT_TRUE(absl::StrContains(said, words)) << said;
  }

  std::string folder_;
  std::string text_;
  std::string out_;
};

TEST_F(DataPrograms, PrepareThenInspect) {
  Expect(Prepare({"--input=" + text_, "--out=" + out_, "--threads=2"}), 0,
         "2 shards (0 of them from an earlier run), train 297 documents");
  Expect(Prepare({text_, "--out=" + out_}), 0, "nothing to do");
  Expect(Prepare({text_, "--out=" + out_, "--validation_fraction=0"}), 1,
         "validation_fraction 0.01 there, 0 here");
  Expect(Inspect({out_}), 0, "train      297 documents");
  Expect(Inspect({out_}), 0, "tokenizer  byte, 257 ids, end of text 256");
  Expect(Inspect({out_}), 0, "shard_00001.h5   validation            3");
  Expect(Inspect({out_, "--verify"}), 0, "verified: 2 shards");
  Expect(Inspect({out_, "--text=0"}), 0, "This is document 0.\n");
  Expect(Inspect({out_, "--text=1"}), 0, "This is document 2.\n");
  Expect(Inspect({out_, "--text=0", "--split=validation"}), 0,
         "This is document 1.\n");
  Expect(Inspect({out_, "--text=297"}), 1, "has 297 documents, counted from 0");
}

// Out to the files of llm.c and Megatron and back again to the same shards.
TEST_F(DataPrograms, ExportsWhatPrepareReadsBack) {
  ASSERT_EQ(
      Prepare({text_, "--out=" + out_, "--validation_fraction=0", "--source=s"})
          .exit_status,
      0);
  for (const std::string to : {"llm.c", "megatron"}) {
    const std::string prefix = folder_ + "/" + to + "/x";
    Expect(RunProgram({"data/export", out_, "--to=" + to, "--out=" + prefix}),
           0, "train: 300 documents");
    const std::string file =
        prefix + (to == "llm.c" ? "_train_000000.bin" : "_train.idx");
    const std::string back = folder_ + "/back_" + to;
    Expect(Prepare({file, "--out=" + back, "--validation_fraction=0",
                    "--source=s"}),
           0, "train 300 documents");
    EXPECT_EQ(FileContents(back + "/shard_00000.h5"),
              FileContents(out_ + "/shard_00000.h5"));
  }
  Expect(RunProgram({"data/export", out_, "--to=x", "--out=y"}), 1,
         "--to is \"x\"");
  Expect(RunProgram({"data/export", out_, "--to=llm.c"}), 1,
         "--out is missing");
  Expect(RunProgram({"data/export", "--help"}), 0, "--file_tokens");
}

TEST_F(DataPrograms, PreparesParquetOrNamesTheCommandThatBringsIt) {
  const std::string path = folder_ + "/a.parquet";
  if (!ParquetIsSupported()) {
    SetFileContents(path, "PAR1");
    Expect(Prepare({path, "--out=" + out_}), 1, "./bazelw install_arrow");
    EXPECT_FALSE(FileSystem::Posix().Exists(out_));
    return;
  }
  ParquetRecipe recipe;
  for (int row = 0; row < 300; ++row) {
    recipe.rows.push_back({absl::StrCat("This is document ", row, "."), 5});
  }
  WriteParquet(path, recipe);
  ASSERT_EQ(Prepare({text_, "--out=" + out_, "--source=s"}).exit_status, 0);
  const std::string other = folder_ + "/other";
  Expect(Prepare({path, "--out=" + other, "--source=s"}), 0,
         "train 297 documents");
  for (const char* shard : {"/shard_00000.h5", "/shard_00001.h5"}) {
    EXPECT_EQ(FileContents(other + shard), FileContents(out_ + shard));
  }
  SetFileContents(path, FileContents(path).substr(100));
  Expect(Prepare({path, "--out=" + folder_ + "/third"}), 1, path);
  EXPECT_FALSE(FileSystem::Posix().Exists(folder_ + "/third"));
}

TEST_F(DataPrograms, HelpIsComplete) {
  const ProgramResult prepare = Prepare({"--help"});
  for (const char* words :
       {"Examples:", "--input", "--out", "--tokenizer", "--threads",
        "--shard_tokens", "--validation_fraction", "--source"}) {
    Expect(prepare, 0, words);
  }
  const ProgramResult inspect = Inspect({"--help"});
  for (const char* words : {"Examples:", "--verify", "--text", "--split"}) {
    Expect(inspect, 0, words);
  }
}

TEST_F(DataPrograms, WrongRequestsEndWithStatusOne) {
  Expect(Prepare({}), 1, "--out is missing");
  Expect(Prepare({"--inptu=x"}), 1, "Did you mean --input?");
  Expect(Prepare({"--out=" + out_}), 1, "error: ");
  Expect(Prepare({folder_ + "/none.txt", "--out=" + out_}), 1, "none.txt");
  Expect(Prepare({text_, "--out=" + out_, "--tokenizer=" + folder_ + "/no"}), 1,
         folder_ + "/no");
  Expect(Prepare({text_, "--out=" + text_ + "/sub"}), 1, text_ + "/sub");
  SetFileContents(folder_ + "/bad.txt", "\xff\xfe\xfd");
  Expect(Prepare({folder_ + "/bad.txt", "--out=" + out_}), 1, "UTF-8");
  SetFileContents(folder_ + "/empty.txt", "");
  Expect(Prepare({folder_ + "/empty.txt", "--out=" + out_}), 1, "no text");
  EXPECT_FALSE(FileSystem::Posix().Exists(out_));
  Expect(Inspect({}), 1, "0 folders given, 1 wanted");
  Expect(Inspect({out_}), 1, "no such folder");
  Expect(Inspect({folder_}), 1, "has no index.json");
  Expect(Inspect({folder_, "--split=test"}), 1, "--split=test");
}

TEST_F(DataPrograms, InspectNamesEveryDamagedShard) {
  ASSERT_EQ(Prepare({text_, "--out=" + out_}).exit_status, 0);
  for (const char* name : {"/shard_00000.h5", "/shard_00001.h5"}) {
    const size_t size = FileContents(out_ + name).size();
    FlipBits(out_ + name, size / 2, 1);
  }
  const ProgramResult result = Inspect({out_, "--verify"});
  Expect(result, 1, "shard_00000.h5: has digest");
  Expect(result, 1, "shard_00001.h5: has digest");
  Expect(result, 1, "2 of 2 shards are damaged");
}

// SIGKILL while shards are being written; the same command then continues to
// the same files as without.
TEST_F(DataPrograms, ContinuesAfterBeingKilled) {
  std::string lines;
  for (int line = 0; line < 1500; ++line) {
    absl::StrAppend(&lines, "{\"text\": \"", std::string(2000, 'a'), line,
                    "\"}\n");
  }
  SetFileContents(text_, lines);
  const std::vector<std::string> arguments = {text_, "--out=" + out_,
                                              "--shard_tokens=100000"};
  {
    std::vector<std::string> command = arguments;
    command.insert(command.begin(), "data/prepare");
    Program program(command, kEnvironment);
    const auto start = std::chrono::steady_clock::now();
    while (!FileSystem::Posix().Exists(out_ + "/shard_00003.h5")) {
      ASSERT_LT(std::chrono::steady_clock::now() - start,
                std::chrono::seconds(30));
      std::this_thread::yield();
    }
    program.Signal(SIGKILL);
    EXPECT_EQ(program.Wait().exit_status, 128 + SIGKILL);
  }
  EXPECT_FALSE(FileSystem::Posix().Exists(out_ + "/index.json"));
  const ProgramResult again = Prepare(arguments);
  EXPECT_EQ(again.exit_status, 0) << again.errors;
  EXPECT_FALSE(absl::StrContains(again.errors, "(0 of them")) << again.errors;
  std::vector<std::string> undisturbed = arguments;
  undisturbed[1] = "--out=" + folder_ + "/whole";
  ASSERT_EQ(Prepare(undisturbed).exit_status, 0);
  const auto names = FileSystem::Posix().List(out_);
  ASSERT_TRUE(names.ok());
  EXPECT_GT(names->size(), 30u);
  EXPECT_EQ(*names, *FileSystem::Posix().List(folder_ + "/whole"));
  for (const std::string& name : *names) {
    if (name == "tokenizer") continue;
    EXPECT_EQ(FileContents(out_ + "/" + name),
              FileContents(folder_ + "/whole/" + name))
        << name;
  }
}

}  // namespace
}  // namespace cubit
