// SPDX-License-Identifier: Apache-2.0
//
// Checkpoints that know no layout: named tensors with global shapes, saved as
// safetensors files with a manifest. A step is committed by one rename after
// everything is durable; a reader trusts only committed steps and checks every
// hash. docs/checkpoints.md has the protocol.

#ifndef CUBIT_PARALLEL_CHECKPOINT_H_
#define CUBIT_PARALLEL_CHECKPOINT_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "parallel/shard_spec.h"
#include "runtime/communicator.h"
#include "runtime/file_system.h"
#include "runtime/tensor.h"

namespace cubit {

// Elements of a tensor's local part, flattened, from `begin` on.
struct CheckpointPiece {
  int64_t begin = 0;
  Tensor data;  // [n]
};

// One tensor to save or load, in device memory, on which no work is pending.
// Its name is its identity.
struct CheckpointTensor {
  std::string name;  // "model.layers.0.mixer.q_proj.weight", "adamw.m/..."
  ShardSpec spec;
  Tensor data;  // local_shape() of the spec
  // Whether this rank writes the slice; of the ranks that hold it, one does.
  bool owner = true;
  bool on_host = false;  // `data` is in host memory
  // If any, loading fills these instead of `data`, which is a shape alone.
  // Saving takes none.
  std::vector<CheckpointPiece> pieces = {};
};

// What a checkpoint says of itself, beside the tensors.
struct CheckpointInfo {
  int64_t step = 0;
  int64_t tokens = 0;    // seen so far
  int64_t position = 0;  // next sample in the order of samples
  std::string config;    // resolved configuration, text proto
  std::string folder;    // where it was found (filled by loading)
  // Further state as text, e.g. "skipped_steps" -> "0".
  std::map<std::string, std::string> state;
};

struct CheckpointOptions {
  // A data file holds at most this, or one tensor: none is ever split.
  int64_t max_file_bytes = int64_t{2} << 30;
};

// Writes CHECKPOINTS/step_00001000 (zero-padded to 8) and then the text file
// CHECKPOINTS/latest. `extra_files` (tokenizer files, config.textproto) are
// written into the step's folder under their relative names and hashed like the
// rest. Several tensors of one name are slices of one, cut along one dim, that
// together are the whole (CHECK). A step that exists already is replaced. On
// any error the earlier checkpoints are untouched and the temporary folder is
// removed where that is still possible.
//
// With `control`, a collective of its ranks (it moves host memory, and its
// limit of time must allow for the writing): each writes the tensors that it
// owns into files of its own; `info` and `extra_files` are rank 0's, and so is
// the commit. All ranks get the same result; one that fails fails all.
// FailedPrecondition if the ranks do not see one file system.
absl::Status SaveCheckpoint(
    FileSystem& files, const std::string& checkpoints,
    const CheckpointInfo& info, const std::vector<CheckpointTensor>& tensors,
    const std::map<std::string, std::string>& extra_files,
    const CheckpointOptions& options = CheckpointOptions(),
    Communicator* control = nullptr);

// Committed steps below CHECKPOINTS, ascending. Never reads tensor data; an
// unreadable or missing folder gives an empty list.
std::vector<int64_t> ListCheckpoints(FileSystem& files,
                                     const std::string& checkpoints);

// The folder of one step.
std::string CheckpointFolder(const std::string& checkpoints, int64_t step);

// Reads and verifies the manifest of one step's folder.
absl::StatusOr<CheckpointInfo> ReadCheckpointInfo(FileSystem& files,
                                                  const std::string& folder);

// Fills every tensor of `tensors` from one step's folder, intersecting slices,
// after checking the hash of each. Errors name file and tensor: damage
// (DataLoss), a tensor that is missing or has another global shape
// (InvalidArgument: a checkpoint of another model).
//
// With `control`, a collective of its ranks, each of which names what it wants;
// rank 0 reads the manifest for all. The result is the same on every rank, but
// for the tensors: the error of one is the error of all.
absl::Status LoadCheckpoint(FileSystem& files, const std::string& folder,
                            const std::vector<CheckpointTensor>& tensors,
                            Communicator* control = nullptr);

// Loads the newest step that is whole. A damaged one is reported by a warning
// that names file and tensor, and the one before is tried; if none is left the
// error says so. `tensors` may be partly overwritten when this fails. With
// `control` as LoadCheckpoint: all ranks load the newest step that is whole for
// each of them.
absl::StatusOr<CheckpointInfo> LoadNewestCheckpoint(
    FileSystem& files, const std::string& checkpoints,
    const std::vector<CheckpointTensor>& tensors,
    Communicator* control = nullptr);

// Keeps the newest `keep_last` steps and every step divisible by `keep_every`
// (0: none besides), and removes the rest by renaming each first. Leftovers of
// interrupted saves and removals are cleaned up too. One rank calls this, while
// none saves.
absl::Status PruneCheckpoints(FileSystem& files, const std::string& checkpoints,
                              int64_t keep_last, int64_t keep_every);

}  // namespace cubit

#endif  // CUBIT_PARALLEL_CHECKPOINT_H_
