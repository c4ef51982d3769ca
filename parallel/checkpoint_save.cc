// SPDX-License-Identifier: Apache-2.0
//
// The writing half of checkpoint.h: every rank writes what it owns, rank 0 the
// manifest, and commits.

#include <algorithm>
#include <cstddef>
#include <set>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "parallel/agreement.h"
#include "parallel/checkpoint.h"
#include "parallel/checkpoint_folders.h"
#include "parallel/checkpoint_manifest.h"
#include "parallel/safetensors.h"
#include "runtime/check.h"
#include "runtime/device.h"
#include "runtime/digest.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

std::string SliceKey(const std::string& name, const ShardSpec& spec) {
  if (spec.is_whole()) return name;
  return absl::StrCat(name, "@", spec.dim, ":", spec.begin);
}

// One save, as one rank sees it.
struct SaveJob {
  FileSystem& files;
  const std::string& checkpoints;
  std::string folder;  // of the step
  std::string temporary;
  Communicator* control;  // null: alone

  bool alone() const { return control == nullptr || control->size() == 1; }
  bool first() const { return alone() || control->rank() == 0; }

  std::string DataFileName(size_t index) const {
    if (alone()) return absl::StrFormat("model-%05d.safetensors", index + 1);
    return absl::StrFormat("rank-%05d-%05d.safetensors", control->rank(),
                           index + 1);
  }
};

// Tensors of one rank in the order of its data files, with their place in the
// manifest.
struct SavePlan {
  CheckpointManifest manifest;
  std::vector<std::vector<const CheckpointTensor*>> files;
  // Of each tensor of `files`: its entry and slice in the manifest.
  std::vector<std::vector<std::pair<size_t, size_t>>> places;
};

// Tensors by name, with the slices that each of them has been given.
class TensorTable {
 public:
  explicit TensorTable(std::vector<ManifestTensor>* entries)
      : entries_(entries) {}

  // CHECK: slices of one tensor agree about it.
  ManifestTensor& Entry(const std::string& name, DType dtype, Shape shape) {
    const auto [place, added] = index_.emplace(name, entries_->size());
    if (added) entries_->push_back({name, dtype, shape, {}});
    ManifestTensor& entry = (*entries_)[place->second];
    CUBIT_CHECK(entry.dtype == dtype) << name;
    CUBIT_CHECK(entry.shape == shape) << name;
    return entry;
  }

 private:
  std::vector<ManifestTensor>* entries_;
  absl::flat_hash_map<std::string, size_t> index_;
};

void SortSlices(std::vector<ManifestTensor>* entries) {
  for (ManifestTensor& entry : *entries) {
    std::sort(entry.slices.begin(), entry.slices.end(),
              [](const ManifestSlice& a, const ManifestSlice& b) {
                return a.begin < b.begin;
              });
  }
}

void CheckWhole(const std::vector<ManifestTensor>& entries) {
  for (const ManifestTensor& entry : entries) {
    const std::string problem = CoverageProblem(entry.shape, entry.slices);
    CUBIT_CHECK(problem.empty()) << entry.name << ": " << problem;
  }
}

// One entry for each name that this rank writes slices of.
void PlanTensors(const std::vector<CheckpointTensor>& tensors,
                 std::vector<ManifestTensor>* entries) {
  TensorTable table(entries);
  for (const CheckpointTensor& tensor : tensors) {
    if (!tensor.owner) continue;
    const ShardSpec& spec = tensor.spec;
    CUBIT_CHECK(tensor.data.shape() == spec.local_shape()) << tensor.name;
    CUBIT_CHECK(tensor.pieces.empty()) << tensor.name << " is in pieces";
    ManifestSlice slice;
    slice.key = SliceKey(tensor.name, spec);
    slice.dim = spec.is_whole() ? 0 : spec.dim;
    slice.begin = spec.begin;
    slice.count = spec.is_whole() && spec.global_shape.rank() > 0
                      ? spec.global_shape[0]
                      : spec.count;
    table.Entry(tensor.name, tensor.data.dtype(), spec.global_shape)
        .slices.push_back(slice);
  }
  SortSlices(entries);
}

SavePlan PlanSave(const std::vector<CheckpointTensor>& tensors,
                  const CheckpointOptions& options) {
  SavePlan plan;
  PlanTensors(tensors, &plan.manifest.tensors);
  absl::flat_hash_map<std::string, std::pair<size_t, size_t>> places;
  for (size_t i = 0; i < plan.manifest.tensors.size(); ++i) {
    const auto& slices = plan.manifest.tensors[i].slices;
    for (size_t j = 0; j < slices.size(); ++j) places[slices[j].key] = {i, j};
  }
  int64_t bytes = 0;
  for (const CheckpointTensor& tensor : tensors) {
    if (!tensor.owner) continue;
    const int64_t size = tensor.data.size_bytes();
    if (plan.files.empty() || bytes + size > options.max_file_bytes) {
      plan.files.emplace_back();
      plan.places.emplace_back();
      bytes = 0;
    }
    bytes += size;
    plan.files.back().push_back(&tensor);
    plan.places.back().push_back(places.at(SliceKey(tensor.name, tensor.spec)));
  }
  return plan;
}

// The bytes of a tensor, in host memory until the next call.
const void* OnHost(const CheckpointTensor& tensor, std::vector<char>* host,
                   Stream& stream) {
  if (tensor.on_host) return tensor.data.raw();
  const int64_t bytes = tensor.data.size_bytes();
  host->resize(static_cast<size_t>(bytes));
  CopyToHost(host->data(), tensor.data.raw(), bytes, stream);
  stream.Synchronize();
  return host->data();
}

// Writes data file `index` and enters its digests into the manifest.
absl::Status WriteDataFile(const SaveJob& job, size_t index, SavePlan* plan) {
  const std::string name = job.DataFileName(index);
  std::vector<SafetensorsEntry> entries;
  for (const CheckpointTensor* tensor : plan->files[index]) {
    SafetensorsEntry entry;
    entry.name = SliceKey(tensor->name, tensor->spec);
    entry.dtype = tensor->data.dtype();
    entry.shape = tensor->data.shape();
    entries.push_back(std::move(entry));
  }
  CUBIT_ASSIGN_OR_RETURN(
      SafetensorsWriter writer,
      SafetensorsWriter::Create(job.files, JoinPath(job.temporary, name),
                                entries, {}));
  Stream stream;
  std::vector<char> host;
  for (size_t i = 0; i < plan->files[index].size(); ++i) {
    const CheckpointTensor& tensor = *plan->files[index][i];
    const auto [entry, slice] = plan->places[index][i];
    ManifestSlice& place = plan->manifest.tensors[entry].slices[slice];
    place.file = name;
    const void* data = OnHost(tensor, &host, stream);
    place.xxh3_128 =
        Xxh3_128Hex(data, static_cast<size_t>(tensor.data.size_bytes()));
    CUBIT_RETURN_IF_ERROR(writer.Append(
        ConstTensor(data, tensor.data.dtype(), tensor.data.shape())));
  }
  CUBIT_RETURN_IF_ERROR(writer.Finish());
  plan->manifest.data_files.push_back(
      {name, writer.size_bytes(), writer.header_xxh3_128()});
  return absl::OkStatus();
}

absl::Status WriteDurably(FileSystem& files, const std::string& path,
                          const std::string& contents) {
  CUBIT_ASSIGN_OR_RETURN(auto file, files.Create(path));
  CUBIT_RETURN_IF_ERROR(
      file->Append(contents.data(), static_cast<int64_t>(contents.size())));
  CUBIT_RETURN_IF_ERROR(file->Sync());
  return file->Close();
}

// Writes extra files, in subfolders where their names say so.
absl::Status WriteExtraFiles(
    FileSystem& files, const std::string& folder,
    const std::map<std::string, std::string>& extra_files,
    CheckpointManifest* manifest) {
  std::set<std::string> subfolders;
  for (const auto& [name, contents] : extra_files) {
    const std::string problem = TensorNameProblem(name);
    CUBIT_CHECK(problem.empty()) << "file " << name << " " << problem;
    CUBIT_CHECK(name != kManifestName && !absl::EndsWith(name, ".safetensors"))
        << "file " << name << " has a name of the checkpoint's own";
    const std::string path = JoinPath(folder, name);
    if (absl::StrContains(name, '/')) {
      CUBIT_RETURN_IF_ERROR(files.CreateFolders(FolderOf(path)));
      for (std::string sub = FolderOf(name); sub != "."; sub = FolderOf(sub)) {
        subfolders.insert(sub);
      }
    }
    CUBIT_RETURN_IF_ERROR(WriteDurably(files, path, contents));
    manifest->extra_files.push_back(
        {name, static_cast<int64_t>(contents.size()),
         Xxh3_128Hex(contents.data(), contents.size())});
  }
  for (const std::string& sub : subfolders) {
    CUBIT_RETURN_IF_ERROR(files.SyncFolder(JoinPath(folder, sub)));
  }
  return absl::OkStatus();
}

// Texts and file names come from users; the manifest is JSON and holds UTF-8.
absl::Status CheckText(const CheckpointInfo& info,
                       const std::map<std::string, std::string>& extra_files) {
  std::map<std::string, std::string> texts = info.state;
  texts["configuration"] = info.config;
  for (const auto& [name, contents] : extra_files) texts[name] = "";
  for (const auto& [name, text] : texts) {
    if (IsUtf8(name) && IsUtf8(text)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("the text of \"", absl::CHexEscape(name),
                     "\" or this name is not UTF-8; rename it"));
  }
  return absl::OkStatus();
}

// Rank 0: makes an empty temporary folder.
absl::Status Prepare(const SaveJob& job, const CheckpointInfo& info,
                     const std::map<std::string, std::string>& extra_files) {
  CUBIT_RETURN_IF_ERROR(CheckText(info, extra_files));
  const bool is_first = !job.files.Exists(job.checkpoints);
  CUBIT_RETURN_IF_ERROR(job.files.CreateFolders(job.checkpoints));
  if (is_first) {
    CUBIT_RETURN_IF_ERROR(job.files.SyncFolder(FolderOf(job.checkpoints)));
  }
  CUBIT_RETURN_IF_ERROR(FinishReplacement(job.files, job.folder));
  CUBIT_RETURN_IF_ERROR(job.files.Remove(job.temporary));
  return job.files.CreateFolders(job.temporary);
}

absl::Status NotShared(const std::string& path, absl::string_view owner) {
  return absl::FailedPreconditionError(absl::StrCat(
      path, " is not seen here as ", owner,
      " wrote it: the folder of checkpoints must be on a file system that all "
      "nodes share"));
}

// Every rank: its data files, durable.
absl::Status WriteDataFiles(const SaveJob& job, SavePlan* plan) {
  if (!job.first() && !job.files.Exists(job.temporary)) {
    return NotShared(job.temporary, "rank 0");
  }
  for (size_t i = 0; i < plan->files.size(); ++i) {
    CUBIT_RETURN_IF_ERROR(WriteDataFile(job, i, plan));
  }
  return job.alone() ? absl::OkStatus() : job.files.SyncFolder(job.temporary);
}

// Makes rank 0's manifest that of all ranks.
absl::Status GatherManifest(const SaveJob& job, CheckpointManifest* manifest) {
  if (job.alone()) return absl::OkStatus();
  CUBIT_ASSIGN_OR_RETURN(
      const std::vector<std::string> texts,
      GatherTexts(job.control, SerializeManifest(*manifest)));
  if (!job.first()) return absl::OkStatus();
  manifest->tensors.clear();
  manifest->data_files.clear();
  TensorTable table(&manifest->tensors);
  for (const std::string& text : texts) {
    CUBIT_ASSIGN_OR_RETURN(const CheckpointManifest part,
                           ParseManifestPart(text));
    for (const ManifestTensor& tensor : part.tensors) {
      ManifestTensor& entry =
          table.Entry(tensor.name, tensor.dtype, tensor.shape);
      entry.slices.insert(entry.slices.end(), tensor.slices.begin(),
                          tensor.slices.end());
    }
    manifest->data_files.insert(manifest->data_files.end(),
                                part.data_files.begin(), part.data_files.end());
  }
  SortSlices(&manifest->tensors);
  CheckWhole(manifest->tensors);
  for (const ManifestFile& file : manifest->data_files) {
    const std::string path = JoinPath(job.temporary, file.name);
    const auto size = job.files.FileSize(path);
    if (!size.ok() || *size != file.size_bytes) {
      return NotShared(path, "another rank");
    }
  }
  return absl::OkStatus();
}

// Rank 0: everything else of a step, durable.
absl::Status WriteManifest(
    const SaveJob& job, const std::map<std::string, std::string>& extra_files,
    CheckpointManifest* manifest) {
  CUBIT_RETURN_IF_ERROR(
      WriteExtraFiles(job.files, job.temporary, extra_files, manifest));
  CUBIT_RETURN_IF_ERROR(WriteDurably(job.files,
                                     JoinPath(job.temporary, kManifestName),
                                     SerializeManifest(*manifest)));
  return job.files.SyncFolder(job.temporary);
}

// The one atomic act: a rename, made durable.
absl::Status Commit(FileSystem& files, const std::string& checkpoints,
                    const std::string& temporary, const std::string& folder) {
  const std::string replaced = absl::StrCat(folder, kReplaced);
  const bool replaces = files.Exists(folder);
  if (replaces) CUBIT_RETURN_IF_ERROR(files.Rename(folder, replaced));
  absl::Status renamed = files.Rename(temporary, folder);
  if (!renamed.ok()) {
    // Where this fails too, readers still find the step by its other name.
    if (replaces) files.Rename(replaced, folder).IgnoreError();
    return renamed;
  }
  CUBIT_RETURN_IF_ERROR(files.SyncFolder(checkpoints));
  return replaces ? files.Remove(replaced) : absl::OkStatus();
}

// All ranks together; the same result on each.
absl::Status SaveAll(const SaveJob& job,
                     const std::map<std::string, std::string>& extra_files,
                     SavePlan* plan) {
  CUBIT_RETURN_IF_ERROR(Agree(
      job.control, job.first() ? Prepare(job, plan->manifest.info, extra_files)
                               : absl::OkStatus()));
  CUBIT_RETURN_IF_ERROR(Agree(job.control, WriteDataFiles(job, plan)));
  absl::Status status = GatherManifest(job, &plan->manifest);
  if (status.ok() && job.first()) {
    status = WriteManifest(job, extra_files, &plan->manifest);
    if (status.ok()) {
      status = Commit(job.files, job.checkpoints, job.temporary, job.folder);
    }
    if (status.ok()) {
      status = WriteFileAtomically(
          job.files, JoinPath(job.checkpoints, "latest"),
          absl::StrCat(StepName(plan->manifest.info.step), "\n"));
    }
  }
  return Agree(job.control, status);
}

}  // namespace

// The parameters are those of the header.
// NOLINTNEXTLINE(readability-function-size)
absl::Status SaveCheckpoint(
    FileSystem& files, const std::string& checkpoints,
    const CheckpointInfo& info, const std::vector<CheckpointTensor>& tensors,
    const std::map<std::string, std::string>& extra_files,
    const CheckpointOptions& options, Communicator* control) {
  CUBIT_CHECK_GE(info.step, 0);
  const std::string folder = CheckpointFolder(checkpoints, info.step);
  const SaveJob job = {files, checkpoints, folder,
                       absl::StrCat(folder, kTemporary), control};
  SavePlan plan = PlanSave(tensors, options);
  if (job.first()) plan.manifest.info = info;
  if (job.alone()) CheckWhole(plan.manifest.tensors);
  const absl::Status status = SaveAll(job, extra_files, &plan);
  if (status.ok()) return absl::OkStatus();
  if (job.first()) files.Remove(job.temporary).IgnoreError();
  return absl::Status(
      status.code(),
      absl::StrCat("saving the checkpoint of step ", info.step,
                   " failed: ", status.message(),
                   ". The earlier checkpoints are as they were"));
}

}  // namespace cubit
