// SPDX-License-Identifier: Apache-2.0

#include "runtime/mpi_control.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"

#include "runtime/check.h"

namespace cubit {
namespace {

// Group numbers: 15 bits for the process that made it, 14 for its count; a tag
// has one bit more. Open MPI has 31.
constexpr int kCountBits = 14;
constexpr int kMaxWorldSize = 1 << 15;

// A notice is below the size at which MPI would wait for its receiver.
constexpr size_t kMaxText = 2000;

}  // namespace

struct MpiControl::Notice {
  enum Type : int32_t { kFailed, kLeft };

  int32_t type = kFailed;
  int32_t rank = 0;  // who sends it, in the group
  int64_t group = 0;
  MpiFarewell farewell;
  int32_t code = 0;
  uint32_t text_bytes = 0;
  std::array<char, kMaxText> text;

  size_t size_bytes() const { return offsetof(Notice, text) + text_bytes; }
};

absl::Status MpiStatus(int code, absl::string_view what) {
  if (code == MPI_SUCCESS) return absl::OkStatus();
  std::array<char, MPI_MAX_ERROR_STRING> text;
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  return absl::UnavailableError(absl::StrCat(
      what,
      ": MPI: ", absl::string_view(text.data(), static_cast<size_t>(length))));
}

MpiControl::MpiControl() {
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &size_);
  CUBIT_CHECK_LE(size_, kMaxWorldSize);
  for (MPI_Comm* comm : {&data_, &control_}) {
    CUBIT_CHECK_EQ(MPI_Comm_dup(MPI_COMM_WORLD, comm), MPI_SUCCESS);
    MPI_Comm_set_errhandler(*comm, MPI_ERRORS_RETURN);
  }
}

MpiControl::~MpiControl() {
  MPI_Comm_free(&data_);
  MPI_Comm_free(&control_);
}

int MpiControl::num_groups() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int>(groups_.size());
}

int64_t MpiControl::NewGroupId() {
  const int64_t count = num_ids_++;
  CUBIT_CHECK_LT(count, int64_t{1} << kCountBits);
  return (static_cast<int64_t>(rank_) << kCountBits) + count;
}

void MpiControl::Add(const std::shared_ptr<MpiGroup>& group, MpiGroup* parent) {
  const std::lock_guard<std::mutex> lock(mutex_);
  groups_[group->id] = group;
  if (parent != nullptr) {
    parent->children.push_back(group);
    group->status = parent->status;
  }
  const auto early = early_.find(group->id);
  if (early == early_.end()) return;
  for (const Notice& notice : early->second) ApplyTo(*group, notice);
  early_.erase(early);
}

void MpiControl::Remove(const MpiGroup& group,
                        const std::vector<MpiFarewell>& farewells) {
  Notice notice;
  notice.type = Notice::kLeft;
  notice.rank = group.rank;
  notice.group = group.id;
  for (int q = 0; q < group.size(); ++q) {
    if (q == group.rank) continue;
    notice.farewell = farewells[static_cast<size_t>(q)];
    Send(notice, group.world_ranks[static_cast<size_t>(q)]);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  removed_.insert(group.id);
  groups_.erase(group.id);
}

void MpiControl::Poll() {
  const std::unique_lock<std::mutex> reader(poll_mutex_, std::try_to_lock);
  if (!reader.owns_lock()) return;
  while (true) {
    int found = 0;
    MPI_Message message;
    MPI_Status status;
    if (MPI_Improbe(MPI_ANY_SOURCE, 0, control_, &found, &message, &status) !=
            MPI_SUCCESS ||
        found == 0) {
      break;
    }
    Notice notice;
    int bytes = 0;
    MPI_Get_count(&status, MPI_BYTE, &bytes);
    CUBIT_CHECK_LE(static_cast<size_t>(bytes), sizeof(notice));
    MPI_Mrecv(&notice, bytes, MPI_BYTE, &message, MPI_STATUS_IGNORE);
    Apply(notice);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  for (auto it = kept_.begin(); it != kept_.end();) {
    int done = 0;
    MPI_Test(&it->request, &done, MPI_STATUS_IGNORE);
    it = done != 0 ? kept_.erase(it) : std::next(it);
  }
}

void MpiControl::Apply(const Notice& notice) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto group = groups_.find(notice.group);
  if (group != groups_.end()) {
    ApplyTo(*group->second, notice);
  } else if (removed_.count(notice.group) == 0) {
    early_[notice.group].push_back(notice);
  }
}

void MpiControl::ApplyTo(MpiGroup& group, const Notice& notice) {
  if (notice.type == Notice::kFailed) {
    FailLocked(group, absl::Status(static_cast<absl::StatusCode>(notice.code),
                                   absl::string_view(notice.text.data(),
                                                     notice.text_bytes)));
    return;
  }
  group.left.resize(group.world_ranks.size());
  group.left[static_cast<size_t>(notice.rank)] = notice.farewell;
}

absl::Status MpiControl::StatusOf(const MpiGroup& group) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return group.status;
}

std::vector<std::optional<MpiFarewell>> MpiControl::Farewells(
    const MpiGroup& group) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return group.left;
}

void MpiControl::FailLocked(MpiGroup& group, const absl::Status& reason) {
  if (group.status.ok()) group.status = reason;
  for (const auto& child : group.children) {
    const std::shared_ptr<MpiGroup> below = child.lock();
    if (below != nullptr && below->status.ok()) FailLocked(*below, reason);
  }
}

void MpiControl::Fail(MpiGroup& group, const absl::Status& reason) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!group.status.ok()) return;
    FailLocked(group, reason);
  }
  Notice notice;
  notice.rank = group.rank;
  notice.group = group.id;
  notice.code = static_cast<int32_t>(reason.code());
  const absl::string_view text = reason.message().substr(0, kMaxText);
  notice.text_bytes = static_cast<uint32_t>(text.size());
  std::copy(text.begin(), text.end(), notice.text.begin());
  for (const int world_rank : group.world_ranks) {
    if (world_rank != rank_) Send(notice, world_rank);
  }
}

void MpiControl::Send(const Notice& notice, int world_rank) {
  const size_t bytes = notice.size_bytes();
  Buffer memory(new char[bytes]);
  std::memcpy(memory.get(), &notice, bytes);
  MPI_Request request;
  const int code = MPI_Isend(memory.get(), static_cast<int>(bytes), MPI_BYTE,
                             world_rank, 0, control_, &request);
  // A rank that cannot be told is gone; the watchdog will say so.
  if (code == MPI_SUCCESS) Keep(request, std::move(memory));
}

void MpiControl::Keep(MPI_Request request, Buffer memory) {
  const std::lock_guard<std::mutex> lock(mutex_);
  kept_.push_back({request, std::move(memory)});
}

bool MpiControl::Meet(absl::Duration timeout) {
  MPI_Request request;
  if (MPI_Ibarrier(control_, &request) != MPI_SUCCESS) return false;
  const auto deadline =
      std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(timeout);
  while (true) {
    int done = 0;
    MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    if (done != 0) return true;
    if (std::chrono::steady_clock::now() >= deadline) return false;
    Poll();
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

}  // namespace cubit
