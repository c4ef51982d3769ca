// SPDX-License-Identifier: Apache-2.0
//
// The manifest of a checkpoint: which tensors there are, where their slices
// lie, and the digest of every byte. Internal to checkpoint.h.
//
// It is JSON, so that any tool can read it:
//   {"xxh3_128":"<digest of BODY>","manifest":BODY}
// The frame around digest and BODY is fixed, byte for byte, so that no bit of
// the file can change unseen.

#ifndef CUBIT_PARALLEL_CHECKPOINT_MANIFEST_H_
#define CUBIT_PARALLEL_CHECKPOINT_MANIFEST_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "parallel/checkpoint.h"
#include "runtime/dtype.h"
#include "runtime/tensor.h"

namespace cubit {

constexpr int64_t kCheckpointFormatVersion = 1;
constexpr char kManifestName[] = "manifest.json";
constexpr int64_t kMaxManifestBytes = 1 << 28;

// Indices [begin, begin + count) along `dim` of a tensor, stored as the tensor
// `key` of a safetensors file. A tensor of rank 0 has dim 0 and count 1.
struct ManifestSlice {
  std::string file;
  std::string key;
  int dim = 0;
  int64_t begin = 0;
  int64_t count = 0;
  std::string xxh3_128;  // of its bytes
};

// Its slices cut one dim, ascend and cover the tensor exactly. Several ranks
// may have written them, each in files of its own.
struct ManifestTensor {
  std::string name;
  DType dtype = DType::kFloat32;
  Shape shape;  // global
  std::vector<ManifestSlice> slices;
};

struct ManifestFile {
  std::string name;  // relative to the step's folder
  int64_t size_bytes = 0;
  // Of the header of a data file, whose tensors have their own; of the whole
  // of an extra file.
  std::string xxh3_128;
};

struct CheckpointManifest {
  CheckpointInfo info;  // without `folder`
  std::vector<ManifestTensor> tensors;
  std::vector<ManifestFile> data_files;
  std::vector<ManifestFile> extra_files;
};

// CHECK: all text is UTF-8, as JSON wants it.
std::string SerializeManifest(const CheckpointManifest& manifest);

// The reverse. Errors: DataLoss for damage and for anything a writer of this
// version cannot have written; FailedPrecondition for another format version.
absl::StatusOr<CheckpointManifest> ParseManifest(absl::string_view text);

// What one of several ranks wrote: tensors need not be whole.
absl::StatusOr<CheckpointManifest> ParseManifestPart(absl::string_view text);

bool IsUtf8(const std::string& text);

// Local shape of a slice of a tensor of `shape`.
Shape SliceShape(const Shape& shape, const ManifestSlice& slice);

// "": `slices` cover `shape` exactly, as ManifestTensor says; else the problem.
std::string CoverageProblem(const Shape& shape,
                            const std::vector<ManifestSlice>& slices);

}  // namespace cubit

#endif  // CUBIT_PARALLEL_CHECKPOINT_MANIFEST_H_
