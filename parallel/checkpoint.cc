// SPDX-License-Identifier: Apache-2.0

#include "parallel/checkpoint.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

#include "parallel/checkpoint_manifest.h"
#include "parallel/safetensors.h"
#include "runtime/check.h"
#include "runtime/device.h"
#include "runtime/digest.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr absl::string_view kStepPrefix = "step_";
constexpr absl::string_view kTemporary = ".tmp";      // not yet committed
constexpr absl::string_view kDeleting = ".deleting";  // no longer
// A committed step that gives way to a new one of the same number; it counts
// until the new one stands.
constexpr absl::string_view kReplaced = ".replaced";

// The step of "step_00001000"; -1 for any other name.
int64_t StepOf(absl::string_view name) {
  int64_t step = -1;
  if (!absl::ConsumePrefix(&name, kStepPrefix) || name.size() < 8 ||
      !absl::SimpleAtoi(name, &step) || step < 0 ||
      absl::StrFormat("%08d", step) != name) {
    return -1;
  }
  return step;
}

std::string SliceKey(const std::string& name, const ShardSpec& spec) {
  if (spec.is_whole()) return name;
  return absl::StrCat(name, "@", spec.dim, ":", spec.begin);
}

// Tensors in the order of the data files, with their place in the manifest.
struct SavePlan {
  CheckpointManifest manifest;
  std::vector<std::vector<const CheckpointTensor*>> files;
  // Of each tensor of `files`: its entry and slice in the manifest.
  std::vector<std::vector<std::pair<size_t, size_t>>> places;
};

std::string DataFileName(size_t index) {
  return absl::StrFormat("model-%05d.safetensors", index + 1);
}

// One entry per name with its slices in order. CHECK: the slices are whole.
void PlanTensors(const std::vector<CheckpointTensor>& tensors,
                 std::vector<ManifestTensor>* entries) {
  absl::flat_hash_map<std::string, size_t> index;
  for (const CheckpointTensor& tensor : tensors) {
    const ShardSpec& spec = tensor.spec;
    CUBIT_CHECK(tensor.data.shape() == spec.local_shape()) << tensor.name;
    const auto [place, added] = index.emplace(tensor.name, entries->size());
    if (added) {
      entries->push_back(
          {tensor.name, tensor.data.dtype(), spec.global_shape, {}});
    }
    ManifestTensor& entry = (*entries)[place->second];
    CUBIT_CHECK(entry.dtype == tensor.data.dtype()) << tensor.name;
    CUBIT_CHECK(entry.shape == spec.global_shape) << tensor.name;
    ManifestSlice slice;
    slice.key = SliceKey(tensor.name, spec);
    slice.dim = spec.is_whole() ? 0 : spec.dim;
    slice.begin = spec.begin;
    slice.count = spec.is_whole() && spec.global_shape.rank() > 0
                      ? spec.global_shape[0]
                      : spec.count;
    entry.slices.push_back(slice);
  }
  for (ManifestTensor& entry : *entries) {
    std::sort(entry.slices.begin(), entry.slices.end(),
              [](const ManifestSlice& a, const ManifestSlice& b) {
                return a.begin < b.begin;
              });
    const std::string problem = CoverageProblem(entry.shape, entry.slices);
    CUBIT_CHECK(problem.empty()) << entry.name << ": " << problem;
  }
}

SavePlan PlanSave(const CheckpointInfo& info,
                  const std::vector<CheckpointTensor>& tensors,
                  const CheckpointOptions& options) {
  SavePlan plan;
  plan.manifest.info = info;
  PlanTensors(tensors, &plan.manifest.tensors);
  absl::flat_hash_map<std::string, std::pair<size_t, size_t>> places;
  for (size_t i = 0; i < plan.manifest.tensors.size(); ++i) {
    const auto& slices = plan.manifest.tensors[i].slices;
    for (size_t j = 0; j < slices.size(); ++j) places[slices[j].key] = {i, j};
  }
  int64_t bytes = 0;
  for (const CheckpointTensor& tensor : tensors) {
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

// Writes data file `index` and enters its digests into the manifest.
absl::Status WriteDataFile(FileSystem& files, const std::string& folder,
                           size_t index, SavePlan* plan) {
  const std::string name = DataFileName(index);
  std::vector<SafetensorsEntry> entries;
  for (size_t i = 0; i < plan->files[index].size(); ++i) {
    const CheckpointTensor& tensor = *plan->files[index][i];
    SafetensorsEntry entry;
    entry.name = SliceKey(tensor.name, tensor.spec);
    entry.dtype = tensor.data.dtype();
    entry.shape = tensor.data.shape();
    entries.push_back(std::move(entry));
  }
  CUBIT_ASSIGN_OR_RETURN(
      SafetensorsWriter writer,
      SafetensorsWriter::Create(files, JoinPath(folder, name), entries, {}));
  Stream stream;
  std::vector<char> host;
  for (size_t i = 0; i < plan->files[index].size(); ++i) {
    const CheckpointTensor& tensor = *plan->files[index][i];
    const auto [entry, slice] = plan->places[index][i];
    ManifestSlice& place = plan->manifest.tensors[entry].slices[slice];
    place.file = name;
    const int64_t bytes = tensor.data.size_bytes();
    host.resize(static_cast<size_t>(bytes));
    CopyToHost(host.data(), tensor.data.raw(), bytes, stream);
    stream.Synchronize();
    place.xxh3_128 = Xxh3_128Hex(host.data(), host.size());
    CUBIT_RETURN_IF_ERROR(writer.Append(
        ConstTensor(host.data(), tensor.data.dtype(), tensor.data.shape())));
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
    return absl::InvalidArgumentError(absl::StrCat(
        "cannot save the checkpoint of step ", info.step, ": the text of \"",
        absl::CHexEscape(name), "\" or this name is not UTF-8; rename it"));
  }
  return absl::OkStatus();
}

// Everything of a step, durable, in its temporary folder.
absl::Status WriteStep(FileSystem& files, const std::string& folder,
                       const std::map<std::string, std::string>& extra_files,
                       SavePlan* plan) {
  CUBIT_RETURN_IF_ERROR(files.CreateFolders(folder));
  for (size_t i = 0; i < plan->files.size(); ++i) {
    CUBIT_RETURN_IF_ERROR(WriteDataFile(files, folder, i, plan));
  }
  CUBIT_RETURN_IF_ERROR(
      WriteExtraFiles(files, folder, extra_files, &plan->manifest));
  CUBIT_RETURN_IF_ERROR(WriteDurably(files, JoinPath(folder, kManifestName),
                                     SerializeManifest(plan->manifest)));
  return files.SyncFolder(folder);
}

// Ends a replacement that was interrupted: the replaced step goes if the new
// one stands, and comes back if it does not.
absl::Status FinishReplacement(FileSystem& files, const std::string& folder) {
  const std::string replaced = absl::StrCat(folder, kReplaced);
  if (!files.Exists(replaced)) return absl::OkStatus();
  return files.Exists(folder) ? files.Remove(replaced)
                              : files.Rename(replaced, folder);
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

absl::Status RemoveStep(FileSystem& files, const std::string& folder) {
  const std::string deleting = absl::StrCat(folder, kDeleting);
  CUBIT_RETURN_IF_ERROR(files.Remove(deleting));
  CUBIT_RETURN_IF_ERROR(files.Rename(folder, deleting));
  return files.Remove(deleting);
}

// Removes what interrupted saves and removals left behind.
absl::Status RemoveLeftovers(FileSystem& files,
                             const std::string& checkpoints) {
  CUBIT_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                         files.List(checkpoints));
  for (absl::string_view name : names) {
    absl::string_view step = name;
    if (absl::ConsumeSuffix(&step, kReplaced) && StepOf(step) >= 0) {
      CUBIT_RETURN_IF_ERROR(
          FinishReplacement(files, JoinPath(checkpoints, step)));
      continue;
    }
    const bool leftover = absl::ConsumeSuffix(&step, kTemporary) ||
                          absl::ConsumeSuffix(&step, kDeleting);
    if (leftover && StepOf(step) >= 0) {
      CUBIT_RETURN_IF_ERROR(files.Remove(JoinPath(checkpoints, name)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string CheckpointFolder(const std::string& checkpoints, int64_t step) {
  return JoinPath(checkpoints, absl::StrFormat("%s%08d", kStepPrefix, step));
}

absl::Status SaveCheckpoint(
    FileSystem& files, const std::string& checkpoints,
    const CheckpointInfo& info, const std::vector<CheckpointTensor>& tensors,
    const std::map<std::string, std::string>& extra_files,
    const CheckpointOptions& options) {
  CUBIT_CHECK_GE(info.step, 0);
  CUBIT_RETURN_IF_ERROR(CheckText(info, extra_files));
  SavePlan plan = PlanSave(info, tensors, options);
  const std::string folder = CheckpointFolder(checkpoints, info.step);
  const std::string temporary = absl::StrCat(folder, kTemporary);
  const bool is_first = !files.Exists(checkpoints);
  CUBIT_RETURN_IF_ERROR(files.CreateFolders(checkpoints));
  if (is_first) CUBIT_RETURN_IF_ERROR(files.SyncFolder(FolderOf(checkpoints)));
  CUBIT_RETURN_IF_ERROR(FinishReplacement(files, folder));
  CUBIT_RETURN_IF_ERROR(files.Remove(temporary));
  absl::Status status = WriteStep(files, temporary, extra_files, &plan);
  if (status.ok()) status = Commit(files, checkpoints, temporary, folder);
  if (!status.ok()) files.Remove(temporary).IgnoreError();
  if (status.ok()) {
    status = WriteFileAtomically(
        files, JoinPath(checkpoints, "latest"),
        absl::StrFormat("%s%08d\n", kStepPrefix, info.step));
  }
  if (status.ok()) return status;
  return absl::Status(
      status.code(),
      absl::StrCat("saving the checkpoint of step ", info.step,
                   " failed: ", status.message(),
                   ". The earlier checkpoints are as they were"));
}

std::vector<int64_t> ListCheckpoints(FileSystem& files,
                                     const std::string& checkpoints) {
  const auto names = files.List(checkpoints);
  if (!names.ok()) return {};
  std::set<int64_t> steps;
  for (absl::string_view name : *names) {
    absl::ConsumeSuffix(&name, kReplaced);
    const int64_t step = StepOf(name);
    if (step >= 0) steps.insert(step);
  }
  return std::vector<int64_t>(steps.begin(), steps.end());
}

absl::Status PruneCheckpoints(FileSystem& files, const std::string& checkpoints,
                              int64_t keep_last, int64_t keep_every) {
  CUBIT_CHECK_GE(keep_last, 1);
  CUBIT_CHECK_GE(keep_every, 0);
  if (!files.Exists(checkpoints)) return absl::OkStatus();
  CUBIT_RETURN_IF_ERROR(RemoveLeftovers(files, checkpoints));
  const std::vector<int64_t> steps = ListCheckpoints(files, checkpoints);
  const int64_t count = static_cast<int64_t>(steps.size());
  for (int64_t i = 0; i < count - keep_last; ++i) {
    const int64_t step = steps[static_cast<size_t>(i)];
    if (keep_every > 0 && step % keep_every == 0) continue;
    CUBIT_RETURN_IF_ERROR(
        RemoveStep(files, CheckpointFolder(checkpoints, step)));
  }
  return absl::OkStatus();
}

}  // namespace cubit
