// SPDX-License-Identifier: Apache-2.0
//
// Small checkpoints for tests: a model of a few tensors whose values follow
// from a number, so that a reader can tell which state it has found.

#ifndef CUBIT_TESTS_PARALLEL_CHECKPOINT_TESTING_H_
#define CUBIT_TESTS_PARALLEL_CHECKPOINT_TESTING_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "parallel/checkpoint.h"
#include "runtime/file_system.h"
#include "runtime/tensor.h"

namespace cubit {

// An empty folder of the running test's own; `name` tells several apart.
std::string FreshFolder(const std::string& name);

// The operating system's files, without the wait for the disk in Sync and
// SyncFolder: a test that writes hundreds of checkpoints stays fast.
FileSystem& UnsyncedFiles();

// Tensors of every kind that matters: ranks 0 to 4, several dtypes, an empty
// one. Owns their memory.
class TestModel {
 public:
  // Every byte follows from `value` and its place.
  explicit TestModel(int value);

  const std::vector<CheckpointTensor>& tensors() const { return tensors_; }
  bool operator==(const TestModel& other) const {
    return bytes_ == other.bytes_;
  }

 private:
  void Add(const std::string& name, DType dtype, Shape shape);

  std::vector<std::vector<unsigned char>> bytes_;
  std::vector<CheckpointTensor> tensors_;
};

CheckpointInfo TestInfo(int64_t step);
std::map<std::string, std::string> TestFiles();

// Saves TestModel(value) as `step`, on UnsyncedFiles.
void SaveTestModel(const std::string& checkpoints, int64_t step, int value);

// Which value LoadNewestCheckpoint finds, and in `step` which step. Anything
// but a whole state of one of `values` fails the test.
int LoadedValue(const std::string& checkpoints, const std::vector<int>& values,
                int64_t* step);

}  // namespace cubit

#endif  // CUBIT_TESTS_PARALLEL_CHECKPOINT_TESTING_H_
