// SPDX-License-Identifier: Apache-2.0
//
// The reading half of checkpoint.h: verify, intersect slices, fall back.

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

#include "parallel/agreement.h"
#include "parallel/checkpoint.h"
#include "parallel/checkpoint_folders.h"
#include "parallel/checkpoint_manifest.h"
#include "parallel/safetensors.h"
#include "runtime/check.h"
#include "runtime/device.h"
#include "runtime/digest.h"
#include "runtime/logging.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

// Bytes read at a time: large enough for a disk, small beside any model.
constexpr int64_t kPieceBytes = 8 << 20;
constexpr size_t kMaxListedProblems = 5;

// Part of a global tensor, by its corners; unused dims have extent 1.
struct Box {
  std::array<int64_t, Shape::kMaxRank> begin = {};
  std::array<int64_t, Shape::kMaxRank> end = {1, 1, 1, 1};

  int64_t extent(size_t i) const { return end[i] - begin[i]; }
};

Box BoxOf(const Shape& shape, int dim, int64_t begin, int64_t count) {
  Box box;
  for (int i = 0; i < shape.rank(); ++i) {
    const size_t d = static_cast<size_t>(i);
    box.begin[d] = i == dim ? begin : 0;
    box.end[d] = i == dim ? begin + count : shape[i];
  }
  return box;
}

// Position of a global index in the contiguous elements of a box.
int64_t Position(const Box& box,
                 const std::array<int64_t, Shape::kMaxRank>& index) {
  int64_t position = 0;
  for (size_t i = 0; i < index.size(); ++i) {
    position = position * box.extent(i) + index[i] - box.begin[i];
  }
  return position;
}

// Copies what `source` and `target` have in common, row by row of the last dim.
void CopyIntersection(const Box& source_box, const char* source,
                      const Box& target_box, char* target,
                      int64_t element_bytes) {
  Box common;
  for (size_t i = 0; i < common.begin.size(); ++i) {
    common.begin[i] = std::max(source_box.begin[i], target_box.begin[i]);
    common.end[i] = std::min(source_box.end[i], target_box.end[i]);
    if (common.begin[i] >= common.end[i]) return;
  }
  const size_t bytes = static_cast<size_t>(common.extent(3) * element_bytes);
  std::array<int64_t, Shape::kMaxRank> at = common.begin;
  for (at[0] = common.begin[0]; at[0] < common.end[0]; ++at[0]) {
    for (at[1] = common.begin[1]; at[1] < common.end[1]; ++at[1]) {
      for (at[2] = common.begin[2]; at[2] < common.end[2]; ++at[2]) {
        std::memcpy(target + Position(target_box, at) * element_bytes,
                    source + Position(source_box, at) * element_bytes, bytes);
      }
    }
  }
}

// The same, with unused dims first, so that rows of the last dim are long.
Box AlignedToLastDim(const Box& box, int rank) {
  Box aligned;
  const size_t shift = static_cast<size_t>(Shape::kMaxRank - rank);
  for (size_t i = 0; i < static_cast<size_t>(rank); ++i) {
    aligned.begin[i + shift] = box.begin[i];
    aligned.end[i + shift] = box.end[i];
  }
  return aligned;
}

bool IsFirst(Communicator* control) {
  return control == nullptr || control->rank() == 0;
}

absl::Status AsDamage(const absl::Status& status) {
  // A file that is gone, too large or cannot be read is as bad as a damaged
  // one.
  if (absl::IsNotFound(status) || absl::IsUnavailable(status) ||
      absl::IsInvalidArgument(status)) {
    return absl::DataLossError(status.message());
  }
  return status;
}

absl::StatusOr<std::string> ReadManifestText(FileSystem& files,
                                             const std::string& folder) {
  if (!files.Exists(folder)) {
    return absl::NotFoundError(
        absl::StrCat(folder, ": there is no such checkpoint"));
  }
  auto text =
      ReadFile(files, JoinPath(folder, kManifestName), kMaxManifestBytes);
  if (!text.ok()) return AsDamage(text.status());
  return text;
}

// Rank 0 reads it for all.
absl::StatusOr<CheckpointManifest> ReadManifest(FileSystem& files,
                                                const std::string& folder,
                                                Communicator* control) {
  absl::StatusOr<std::string> text = std::string();
  if (IsFirst(control)) text = ReadManifestText(files, folder);
  CUBIT_RETURN_IF_ERROR(Agree(control, text.status()));
  CUBIT_ASSIGN_OR_RETURN(const std::string shared,
                         BroadcastText(control, *text, 0));
  auto manifest = ParseManifest(shared);
  if (!manifest.ok()) {
    return absl::Status(manifest.status().code(),
                        absl::StrCat(JoinPath(folder, kManifestName), ": ",
                                     manifest.status().message()));
  }
  manifest->info.folder = folder;
  return manifest;
}

// One step's folder, opened for reading tensors.
class Reader {
 public:
  Reader(FileSystem& files, std::string folder, CheckpointManifest manifest)
      : files_(files),
        folder_(std::move(folder)),
        manifest_(std::move(manifest)) {
    for (const ManifestTensor& tensor : manifest_.tensors) {
      tensors_[tensor.name] = &tensor;
    }
  }

  // Every file of the manifest is there with its size, extra files with their
  // contents, and no data file besides.
  absl::Status CheckFiles() {
    absl::flat_hash_set<std::string> known;
    for (const ManifestFile& file : manifest_.data_files) {
      known.insert(file.name);
      CUBIT_RETURN_IF_ERROR(CheckSize(file));
    }
    for (const ManifestFile& file : manifest_.extra_files) {
      CUBIT_RETURN_IF_ERROR(CheckSize(file));
      const auto contents =
          ReadFile(files_, PathOf(file.name), file.size_bytes);
      if (!contents.ok()) return AsDamage(contents.status());
      CUBIT_RETURN_IF_ERROR(CheckDigest(
          PathOf(file.name), Xxh3_128Hex(contents->data(), contents->size()),
          file.xxh3_128));
    }
    const auto names = files_.List(folder_);
    if (!names.ok()) return AsDamage(names.status());
    for (const std::string& name : *names) {
      if (absl::EndsWith(name, ".safetensors") && !known.contains(name)) {
        return absl::DataLossError(
            absl::StrCat(PathOf(name),
                         ": is not in the manifest; this folder holds files "
                         "of different checkpoints"));
      }
    }
    return absl::OkStatus();
  }

  // Every tensor exists with its dtype and global shape.
  absl::Status CheckTensors(const std::vector<CheckpointTensor>& wanted) {
    std::vector<std::string> problems;
    for (const CheckpointTensor& tensor : wanted) {
      CUBIT_CHECK(tensor.data.shape() == tensor.spec.local_shape())
          << tensor.name;
      const auto found = tensors_.find(tensor.name);
      if (found == tensors_.end()) {
        problems.push_back(absl::StrCat(tensor.name, " is not in it"));
        continue;
      }
      const ManifestTensor& saved = *found->second;
      if (saved.shape != tensor.spec.global_shape ||
          saved.dtype != tensor.data.dtype()) {
        problems.push_back(absl::StrCat(
            tensor.name, " is ", saved.shape.ToString(), " ", Name(saved.dtype),
            " in it, ", tensor.spec.global_shape.ToString(), " ",
            Name(tensor.data.dtype()), " in this model"));
      }
    }
    if (problems.empty()) return absl::OkStatus();
    const size_t count = problems.size();
    if (count > kMaxListedProblems) problems.resize(kMaxListedProblems);
    return absl::InvalidArgumentError(absl::StrCat(
        folder_,
        ": a checkpoint of another model: ", absl::StrJoin(problems, "; "),
        count > problems.size()
            ? absl::StrCat("; and ", count - problems.size(), " more tensors")
            : "",
        ". Use the configuration that the checkpoint was saved with"));
  }

  absl::Status Fill(const CheckpointTensor& wanted) {
    const ManifestTensor& saved = *tensors_.at(wanted.name);
    const Box target = BoxOf(wanted.spec.global_shape, wanted.spec.dim,
                             wanted.spec.begin, wanted.spec.count);
    host_.resize(static_cast<size_t>(wanted.data.size_bytes()));
    const Tensor host(host_.data(), wanted.data.dtype(), wanted.data.shape());
    for (const ManifestSlice& slice : saved.slices) {
      const Box source =
          BoxOf(saved.shape, slice.dim, slice.begin, slice.count);
      const bool equal =
          source.begin == target.begin && source.end == target.end;
      if (!equal && !Overlap(source, target)) continue;
      CUBIT_ASSIGN_OR_RETURN(const SafetensorsEntry* entry,
                             FindEntry(saved, slice));
      Xxh3_128Stream digest;
      const std::string path = PathOf(slice.file);
      CUBIT_RETURN_IF_ERROR(
          equal ? ReadWhole(path, *entry, host, &digest)
                : ReadPart(path, *entry, source, target, host, &digest));
      CUBIT_RETURN_IF_ERROR(
          CheckDigest(absl::StrCat(path, ": tensor ", wanted.name),
                      digest.Hex(), slice.xxh3_128));
    }
    Deliver(wanted);
    return absl::OkStatus();
  }

  const CheckpointInfo& info() const { return manifest_.info; }

 private:
  // Hands over what `host_` holds.
  void Deliver(const CheckpointTensor& wanted) {
    const auto copy = [&](const Tensor& target, int64_t begin) {
      const char* source = host_.data() + begin * SizeOf(target.dtype());
      CUBIT_CHECK_LE(begin + target.num_elements(), wanted.data.num_elements());
      if (target.num_elements() == 0) return;
      if (wanted.on_host) {
        std::memcpy(target.raw(), source,
                    static_cast<size_t>(target.size_bytes()));
      } else {
        CopyToDevice(target.raw(), source, target.size_bytes(), stream_);
      }
    };
    if (wanted.pieces.empty()) copy(wanted.data, 0);
    for (const CheckpointPiece& piece : wanted.pieces) {
      copy(piece.data, piece.begin);
    }
    stream_.Synchronize();  // `host_` is used again
  }

  using Entries = absl::flat_hash_map<std::string, SafetensorsEntry>;

  static bool Overlap(const Box& a, const Box& b) {
    for (size_t i = 0; i < a.begin.size(); ++i) {
      if (std::max(a.begin[i], b.begin[i]) >= std::min(a.end[i], b.end[i])) {
        return false;
      }
    }
    return true;
  }

  std::string PathOf(const std::string& name) const {
    return JoinPath(folder_, name);
  }

  static absl::Status CheckDigest(const std::string& what,
                                  const std::string& found,
                                  const std::string& wanted) {
    if (found == wanted) return absl::OkStatus();
    return absl::DataLossError(
        absl::StrCat(what, ": is damaged: its digest is ", found,
                     ", the manifest says ", wanted));
  }

  absl::Status CheckSize(const ManifestFile& file) {
    const auto size = files_.FileSize(PathOf(file.name));
    if (!size.ok()) return AsDamage(size.status());
    if (*size == file.size_bytes) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat(PathOf(file.name), ": has ", *size,
                                            " bytes, the manifest says ",
                                            file.size_bytes));
  }

  // The verified header of a data file, read once.
  absl::StatusOr<const Entries*> Header(const std::string& name) {
    const auto known = headers_.find(name);
    if (known != headers_.end()) return known->second.get();
    const std::string path = PathOf(name);
    auto header = ReadSafetensorsHeader(files_, path);
    if (!header.ok()) return AsDamage(header.status());
    const uint64_t length = header->json.size();
    Xxh3_128Stream digest;
    digest.Update(&length, sizeof(length));
    digest.Update(header->json.data(), header->json.size());
    for (const ManifestFile& file : manifest_.data_files) {
      if (file.name != name) continue;
      CUBIT_RETURN_IF_ERROR(CheckDigest(absl::StrCat(path, ": header"),
                                        digest.Hex(), file.xxh3_128));
    }
    auto entries = std::make_unique<Entries>();
    for (SafetensorsEntry& entry : header->entries) {
      const std::string key = entry.name;
      (*entries)[key] = std::move(entry);
    }
    return headers_.emplace(name, std::move(entries)).first->second.get();
  }

  absl::StatusOr<const SafetensorsEntry*> FindEntry(
      const ManifestTensor& saved, const ManifestSlice& slice) {
    CUBIT_ASSIGN_OR_RETURN(const Entries* entries, Header(slice.file));
    const auto entry = entries->find(slice.key);
    if (entry == entries->end() || entry->second.dtype != saved.dtype ||
        entry->second.shape != SliceShape(saved.shape, slice)) {
      return absl::DataLossError(
          absl::StrCat(PathOf(slice.file), ": tensor ", slice.key,
                       " is not there as the manifest says"));
    }
    return &entry->second;
  }

  absl::Status ReadWhole(const std::string& path, const SafetensorsEntry& entry,
                         const Tensor& target, Xxh3_128Stream* digest) {
    char* data = static_cast<char*>(target.raw());
    for (int64_t at = 0; at < entry.size_bytes; at += kPieceBytes) {
      const int64_t bytes = std::min(kPieceBytes, entry.size_bytes - at);
      CUBIT_RETURN_IF_ERROR(
          AsDamage(files_.Read(path, entry.offset + at, bytes, data + at)));
      digest->Update(data + at, static_cast<size_t>(bytes));
    }
    return absl::OkStatus();
  }

  // Reads a slice some rows of its first dim at a time and keeps what is
  // wanted; all of it goes through the digest.
  absl::Status ReadPart(const std::string& path, const SafetensorsEntry& entry,
                        const Box& source, const Box& target,
                        const Tensor& tensor, Xxh3_128Stream* digest) {
    const int rank = tensor.shape().rank();
    const int64_t element_bytes = SizeOf(tensor.dtype());
    const int64_t row_bytes = entry.size_bytes / source.extent(0);
    const int64_t step = std::max<int64_t>(1, kPieceBytes / row_bytes);
    std::vector<char> rows(
        static_cast<size_t>(std::min(step, source.extent(0)) * row_bytes));
    for (int64_t row = 0; row < source.extent(0); row += step) {
      Box piece = source;
      piece.begin[0] = source.begin[0] + row;
      piece.end[0] = std::min(piece.begin[0] + step, source.end[0]);
      const int64_t bytes = piece.extent(0) * row_bytes;
      CUBIT_RETURN_IF_ERROR(AsDamage(files_.Read(
          path, entry.offset + row * row_bytes, bytes, rows.data())));
      digest->Update(rows.data(), static_cast<size_t>(bytes));
      CopyIntersection(AlignedToLastDim(piece, rank), rows.data(),
                       AlignedToLastDim(target, rank),
                       static_cast<char*>(tensor.raw()), element_bytes);
    }
    return absl::OkStatus();
  }

  FileSystem& files_;
  const std::string folder_;
  const CheckpointManifest manifest_;
  absl::flat_hash_map<std::string, const ManifestTensor*> tensors_;
  absl::flat_hash_map<std::string, std::unique_ptr<Entries>> headers_;
  Stream stream_;
  std::vector<char> host_;  // the tensor that is being read
};

absl::Status FillAll(Reader& reader,
                     const std::vector<CheckpointTensor>& tensors) {
  CUBIT_RETURN_IF_ERROR(reader.CheckFiles());
  CUBIT_RETURN_IF_ERROR(reader.CheckTensors(tensors));
  for (const CheckpointTensor& tensor : tensors) {
    CUBIT_RETURN_IF_ERROR(reader.Fill(tensor));
  }
  return absl::OkStatus();
}

absl::StatusOr<CheckpointInfo> LoadFolder(
    FileSystem& files, const std::string& folder,
    const std::vector<CheckpointTensor>& tensors, Communicator* control) {
  CUBIT_ASSIGN_OR_RETURN(CheckpointManifest manifest,
                         ReadManifest(files, folder, control));
  Reader reader(files, folder, std::move(manifest));
  CUBIT_RETURN_IF_ERROR(Agree(control, FillAll(reader, tensors)));
  return reader.info();
}

// LoadFolder of a step, which may still have the name that a replacement gave
// it.
absl::StatusOr<CheckpointInfo> LoadStep(
    FileSystem& files, const std::string& checkpoints, int64_t step,
    const std::vector<CheckpointTensor>& tensors, Communicator* control) {
  std::string folder = CheckpointFolder(checkpoints, step);
  const bool renamed = IsFirst(control) && !files.Exists(folder);
  CUBIT_ASSIGN_OR_RETURN(
      const std::string suffix,
      BroadcastText(control, renamed ? std::string(kReplaced) : "", 0));
  folder += suffix;
  CUBIT_ASSIGN_OR_RETURN(CheckpointInfo info,
                         LoadFolder(files, folder, tensors, control));
  if (info.step == step) return info;
  return absl::DataLossError(absl::StrCat(folder, ": holds step ", info.step,
                                          ", its name says ", step));
}

// The steps that rank 0 sees, newest first.
absl::StatusOr<std::vector<int64_t>> StepsToTry(FileSystem& files,
                                                const std::string& checkpoints,
                                                Communicator* control) {
  std::vector<int64_t> steps;
  if (IsFirst(control)) steps = ListCheckpoints(files, checkpoints);
  std::reverse(steps.begin(), steps.end());
  CUBIT_ASSIGN_OR_RETURN(const std::string text,
                         BroadcastText(control, absl::StrJoin(steps, " "), 0));
  steps.clear();
  for (absl::string_view word : absl::StrSplit(text, ' ', absl::SkipEmpty())) {
    int64_t step = 0;
    CUBIT_CHECK(absl::SimpleAtoi(word, &step)) << text;
    steps.push_back(step);
  }
  return steps;
}

}  // namespace

absl::StatusOr<CheckpointInfo> ReadCheckpointInfo(FileSystem& files,
                                                  const std::string& folder) {
  CUBIT_ASSIGN_OR_RETURN(CheckpointManifest manifest,
                         ReadManifest(files, folder, nullptr));
  return manifest.info;
}

absl::Status LoadCheckpoint(FileSystem& files, const std::string& folder,
                            const std::vector<CheckpointTensor>& tensors,
                            Communicator* control) {
  return LoadFolder(files, folder, tensors, control).status();
}

absl::StatusOr<CheckpointInfo> LoadNewestCheckpoint(
    FileSystem& files, const std::string& checkpoints,
    const std::vector<CheckpointTensor>& tensors, Communicator* control) {
  CUBIT_ASSIGN_OR_RETURN(const std::vector<int64_t> steps,
                         StepsToTry(files, checkpoints, control));
  absl::Status newest = absl::OkStatus();
  for (int64_t step : steps) {
    auto info = LoadStep(files, checkpoints, step, tensors, control);
    if (info.ok()) return info;
    // Damage, a foreign version or a step that was just pruned leave the others
    // to try; a checkpoint of another model, or one that may not be read, is
    // the user's to settle.
    const absl::Status& status = info.status();
    if (!absl::IsDataLoss(status) && !absl::IsFailedPrecondition(status) &&
        !absl::IsNotFound(status)) {
      return status;
    }
    if (IsFirst(control)) {
      LogWarning(absl::StrCat("checkpoint of step ", step, " cannot be used: ",
                              status.message(), ". Trying the one before."));
    }
    if (newest.ok()) newest = status;
  }
  if (newest.ok()) {
    return absl::NotFoundError(
        absl::StrCat(checkpoints, ": no checkpoint there"));
  }
  return absl::DataLossError(absl::StrCat(
      checkpoints, ": none of ", steps.size(),
      " checkpoints can be used; of the newest: ", newest.message()));
}

}  // namespace cubit
