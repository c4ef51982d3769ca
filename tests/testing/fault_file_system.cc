// SPDX-License-Identifier: Apache-2.0

#include "tests/testing/fault_file_system.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {

// Forwards to a file of the base, after asking for faults.
class FaultWritableFile : public WritableFile {
 public:
  FaultWritableFile(FaultFileSystem* files, std::unique_ptr<WritableFile> base,
                    std::string path)
      : files_(files), base_(std::move(base)), path_(std::move(path)) {}

  absl::Status Append(const void* data, int64_t bytes) override {
    return files_->AppendTo(*base_, path_, data, bytes);
  }
  absl::Status Sync() override { return files_->SyncOf(path_); }
  absl::Status Close() override { return files_->CloseOf(*base_, path_); }

 private:
  FaultFileSystem* files_;
  std::unique_ptr<WritableFile> base_;
  std::string path_;
};

FaultFileSystem::FaultFileSystem(FileSystem* base, FaultPlan plan)
    : base_(base), plan_(std::move(plan)) {
  CUBIT_CHECK(!plan_.error.ok()) << "a fault needs an error";
}

FaultFileSystem::~FaultFileSystem() = default;

int64_t FaultFileSystem::calls() const {
  absl::MutexLock lock(&mutex_);
  return calls_;
}

bool FaultFileSystem::fault_happened() const {
  absl::MutexLock lock(&mutex_);
  return !failed_call_.empty();
}

std::string FaultFileSystem::failed_call() const {
  absl::MutexLock lock(&mutex_);
  return failed_call_;
}

absl::Status FaultFileSystem::Count(bool mutating, const std::string& operation,
                                    const std::string& path) {
  absl::MutexLock lock(&mutex_);
  const bool stopped = plan_.crash && !failed_call_.empty();
  const bool counted = mutating || plan_.calls == FaultPlan::Calls::kAll;
  if (counted) ++calls_;
  const bool fails = counted && calls_ == plan_.fail_at;
  if (!stopped && !fails) return absl::OkStatus();
  if (fails) failed_call_ = absl::StrCat(operation, " ", path);
  if (fails && plan_.crash) LoseUnsynced();
  return absl::Status(
      plan_.error.code(),
      absl::StrCat(path, ": cannot ", operation, ": ", plan_.error.message()));
}

void FaultFileSystem::LoseUnsynced() {
  for (const auto& [path, written] : written_) {
    if (written.synced_bytes == written.bytes || !base_->Exists(path)) continue;
    std::string kept(static_cast<size_t>(written.synced_bytes), '\0');
    CUBIT_CHECK_OK(base_->Read(path, 0, written.synced_bytes, kept.data()));
    auto file = base_->Create(path);
    CUBIT_CHECK_OK(file);
    CUBIT_CHECK_OK((*file)->Append(kept.data(), written.synced_bytes));
    CUBIT_CHECK_OK((*file)->Close());
  }
}

absl::StatusOr<std::unique_ptr<WritableFile>> FaultFileSystem::Create(
    const std::string& path) {
  CUBIT_RETURN_IF_ERROR(Count(true, "create", path));
  CUBIT_ASSIGN_OR_RETURN(auto file, base_->Create(path));
  absl::MutexLock lock(&mutex_);
  written_[path] = Written();
  return std::make_unique<FaultWritableFile>(this, std::move(file), path);
}

absl::Status FaultFileSystem::AppendTo(WritableFile& file,
                                       const std::string& path,
                                       const void* data, int64_t bytes) {
  const absl::Status fault = Count(true, "append", path);
  if (!fault.ok() && (plan_.crash || !plan_.torn_append)) return fault;
  const int64_t written = fault.ok() ? bytes : bytes / 2;
  CUBIT_RETURN_IF_ERROR(file.Append(data, written));
  absl::MutexLock lock(&mutex_);
  written_[path].bytes += written;
  return fault;
}

absl::Status FaultFileSystem::SyncOf(const std::string& path) {
  CUBIT_RETURN_IF_ERROR(Count(true, "sync", path));
  absl::MutexLock lock(&mutex_);
  Written& written = written_[path];
  written.synced_bytes = written.bytes;
  return absl::OkStatus();
}

absl::Status FaultFileSystem::CloseOf(WritableFile& file,
                                      const std::string& path) {
  CUBIT_RETURN_IF_ERROR(Count(true, "close", path));
  return file.Close();
}

absl::Status FaultFileSystem::Read(const std::string& path, int64_t offset,
                                   int64_t bytes, void* data) {
  CUBIT_RETURN_IF_ERROR(Count(false, "read", path));
  return base_->Read(path, offset, bytes, data);
}

absl::StatusOr<int64_t> FaultFileSystem::FileSize(const std::string& path) {
  CUBIT_RETURN_IF_ERROR(Count(false, "open", path));
  return base_->FileSize(path);
}

bool FaultFileSystem::Exists(const std::string& path) {
  return base_->Exists(path);
}

absl::Status FaultFileSystem::CreateFolders(const std::string& path) {
  CUBIT_RETURN_IF_ERROR(Count(true, "create folder", path));
  return base_->CreateFolders(path);
}

absl::StatusOr<std::vector<std::string>> FaultFileSystem::List(
    const std::string& path) {
  CUBIT_RETURN_IF_ERROR(Count(false, "list", path));
  return base_->List(path);
}

absl::Status FaultFileSystem::Rename(const std::string& from,
                                     const std::string& to) {
  CUBIT_RETURN_IF_ERROR(Count(true, "rename", from));
  CUBIT_RETURN_IF_ERROR(base_->Rename(from, to));
  // Files keep their record under the new name, those in a folder too.
  absl::MutexLock lock(&mutex_);
  std::map<std::string, Written> moved;
  for (auto entry = written_.begin(); entry != written_.end();) {
    if (entry->first == from || absl::StartsWith(entry->first, from + "/")) {
      moved[to + entry->first.substr(from.size())] = entry->second;
      entry = written_.erase(entry);
    } else {
      ++entry;
    }
  }
  for (const auto& [path, written] : moved) written_[path] = written;
  return absl::OkStatus();
}

absl::Status FaultFileSystem::Remove(const std::string& path) {
  CUBIT_RETURN_IF_ERROR(Count(true, "remove", path));
  CUBIT_RETURN_IF_ERROR(base_->Remove(path));
  absl::MutexLock lock(&mutex_);
  for (auto entry = written_.begin(); entry != written_.end();) {
    const bool gone =
        entry->first == path || absl::StartsWith(entry->first, path + "/");
    entry = gone ? written_.erase(entry) : std::next(entry);
  }
  return absl::OkStatus();
}

absl::Status FaultFileSystem::SyncFolder(const std::string& path) {
  return Count(true, "sync folder", path);
}

}  // namespace cubit
