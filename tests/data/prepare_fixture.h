// SPDX-License-Identifier: Apache-2.0
//
// What tests of the preparation share: 27 documents in three files, prepared
// into several small shards.

#ifndef CUBIT_TESTS_DATA_PREPARE_FIXTURE_H_
#define CUBIT_TESTS_DATA_PREPARE_FIXTURE_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gtest/gtest.h"

#include "data/prepare.h"
#include "runtime/file_system.h"
#include "tests/data/fake_tokenizer.h"

namespace cubit {

// Every file below a folder, by its path inside; nothing if there is none.
std::map<std::string, std::string> Snapshot(const std::string& folder);

// The documents of a split, in order. Verifies every shard on the way.
std::vector<std::string> ReadTexts(const std::string& folder,
                                   const std::string& split,
                                   const Tokenizer& tokenizer);

class PrepareTest : public ::testing::Test {
 protected:
  void SetUp() override;

  // The input files, 0 to 2.
  std::string Input(int file);
  std::string Out(const std::string& name) { return options_.out + "/" + name; }

  absl::StatusOr<PrepareReport> Run();
  absl::StatusOr<PrepareReport> Run(FileSystem& files);
  // Runs; expects an error with `words` that changes nothing in the folder.
  void ExpectRefused(const std::string& words);
  // What the folder must hold in the end, made without any interruption.
  std::map<std::string, std::string> Wanted();
  // Expects texts_ in the splits that SplitRule says.
  void ExpectRightTexts();

  FileSystem& posix_ = FileSystem::Posix();
  std::string folder_;
  std::vector<std::string> texts_;
  PrepareOptions options_;
  FakeTokenizer tokenizer_{1};
};

}  // namespace cubit

#endif  // CUBIT_TESTS_DATA_PREPARE_FIXTURE_H_
