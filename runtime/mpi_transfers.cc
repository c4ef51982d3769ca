// SPDX-License-Identifier: Apache-2.0

#include "runtime/mpi_transfers.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"

#include "runtime/check.h"
#include "runtime/collective_phases.h"
#include "runtime/logging.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

using Clock = std::chrono::steady_clock;

// How long a failed call waits for messages that are on their way to it.
constexpr std::chrono::seconds kDrainTime{2};

// Looks again at once for about as long as a small message takes, then lets
// others run first, then sleeps: ranks may share a core.
class Backoff {
 public:
  void Reset() { rounds_ = 0; }
  void Wait() {
    if (++rounds_ < 30) return;
    if (rounds_ < 100) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(60));
    }
  }

 private:
  int rounds_ = 0;
};

}  // namespace

void MpiScratch::Reserve(int64_t bytes) {
  used_ = 0;
  if (bytes <= capacity_) return;
  memory_.reset(new char[static_cast<size_t>(bytes)]);
  capacity_ = bytes;
}

char* MpiScratch::Take(int64_t bytes) {
  CUBIT_CHECK_LE(used_ + bytes, capacity_);
  char* const begin = memory_.get() + used_;
  used_ += bytes;
  return begin;
}

char* MpiScratch::TakeCopy(const void* data, int64_t bytes) {
  char* const copy = Take(bytes);
  if (bytes > 0) std::memcpy(copy, data, static_cast<size_t>(bytes));
  return copy;
}

MpiControl::Buffer MpiScratch::Release() {
  capacity_ = 0;
  used_ = 0;
  return std::move(memory_);
}

MpiTransfers::MpiTransfers(MpiControl* control, std::shared_ptr<MpiGroup> group)
    : control_(*control), group_(std::move(group)) {}

void MpiTransfers::Begin() {
  // A year stands for "no limit": later points overflow the clock.
  deadline_ = Clock::now() + absl::ToChronoNanoseconds(std::min(
                                 group_->timeout, absl::Hours(24 * 365)));
}

absl::Status MpiTransfers::Send(const MpiPurpose& purpose, const char* data,
                                int64_t bytes) {
  const bool message = purpose.kind == OperationKind::kSend;
  Pending pending{MPI_REQUEST_NULL, purpose, false};
  const int code = (message ? MPI_Issend : MPI_Isend)(
      data, static_cast<int>(bytes), MPI_BYTE,
      group_->world_ranks[static_cast<size_t>(purpose.peer)],
      message ? group_->message_tag() : group_->collective_tag(),
      control_.data(), &pending.request);
  // TestAll waits.
  return Post(code, pending);
}

absl::Status MpiTransfers::Receive(const MpiPurpose& purpose, char* data,
                                   int64_t bytes) {
  const bool message = purpose.kind == OperationKind::kRecv;
  Pending pending{MPI_REQUEST_NULL, purpose, true};
  const int code =
      MPI_Irecv(data, static_cast<int>(bytes), MPI_BYTE,
                group_->world_ranks[static_cast<size_t>(purpose.peer)],
                message ? group_->message_tag() : group_->collective_tag(),
                control_.data(), &pending.request);
  // TestAll waits.
  return Post(code, pending);
}

absl::Status MpiTransfers::Post(int code, const Pending& pending) {
  CUBIT_RETURN_IF_ERROR(
      MpiStatus(code, pending.incoming ? "MPI_Irecv" : "MPI_Isend"));
  pending_.push_back(pending);
  return absl::OkStatus();
}

absl::Status MpiTransfers::End(const absl::Status& status) {
  if (status.ok()) return status;
  control_.Fail(*group_, status);
  Drain();
  return control_.StatusOf(*group_);
}

void MpiTransfers::Drain() {
  for (Pending& p : pending_) {
    if (p.incoming && p.request != MPI_REQUEST_NULL) MPI_Cancel(&p.request);
  }
  const Clock::time_point deadline = Clock::now() + kDrainTime;
  bool receiving = true;
  while (receiving && Clock::now() < deadline) {
    receiving = false;
    for (Pending& p : pending_) {
      int done = 0;
      MPI_Test(&p.request, &done, MPI_STATUS_IGNORE);
      receiving |= p.incoming && done == 0;
    }
    control_.Poll();
  }
  if (receiving) {
    LogWarning(absl::StrCat("group \"", group_->name,
                            "\": a message that has begun does not end; its "
                            "memory may still change"));
  }
  const MpiControl::Buffer staging = staging_.Release();
  const MpiControl::Buffer landing = landing_.Release();
  for (const Pending& p : pending_) {
    if (p.request == MPI_REQUEST_NULL) continue;
    control_.Keep(p.request, p.incoming ? landing : staging);
  }
  pending_.clear();
}

absl::Status MpiTransfers::TestAll(const OnReceived& on_received, bool* all,
                                   bool* any) {
  *all = true;
  *any = false;
  // on_received appends.
  for (size_t i = 0; i < pending_.size(); ++i) {
    if (pending_[i].request == MPI_REQUEST_NULL) continue;
    int done = 0;
    CUBIT_RETURN_IF_ERROR(MpiStatus(
        MPI_Test(&pending_[i].request, &done, MPI_STATUS_IGNORE), "MPI_Test"));
    *all &= done != 0;
    *any |= done != 0;
    if (done == 0 || !pending_[i].incoming || on_received == nullptr) continue;
    const MpiPurpose purpose = pending_[i].purpose;
    CUBIT_RETURN_IF_ERROR(on_received(purpose));
  }
  return absl::OkStatus();
}

absl::Status MpiTransfers::Complete(const OnReceived& on_received) {
  Backoff backoff;
  while (true) {
    bool all = false;
    bool any = false;
    CUBIT_RETURN_IF_ERROR(TestAll(on_received, &all, &any));
    if (all) break;
    if (any) backoff.Reset();
    control_.Poll();
    CUBIT_RETURN_IF_ERROR(control_.StatusOf(*group_));
    CUBIT_RETURN_IF_ERROR(CheckPeers());
    if (Clock::now() >= deadline_) {
      return absl::DeadlineExceededError(
          absl::StrCat(DescribeWait(), "; gave up after ",
                       absl::FormatDuration(group_->timeout)));
    }
    backoff.Wait();
  }
  pending_.clear();
  return absl::OkStatus();
}

absl::Status MpiTransfers::CheckPeers() const {
  const std::vector<std::optional<MpiFarewell>> left =
      control_.Farewells(*group_);
  if (left.empty()) return absl::OkStatus();
  for (const Pending& p : pending_) {
    const std::optional<MpiFarewell>& farewell =
        left[static_cast<size_t>(p.purpose.peer)];
    if (p.request == MPI_REQUEST_NULL || !farewell.has_value()) continue;
    // A message of a rank that left after sending it is still on its way.
    const int64_t done = p.purpose.kind == OperationKind::kRecv ? farewell->sent
                         : p.purpose.kind == OperationKind::kSend
                             ? farewell->received
                             : farewell->collectives;
    if (done > p.purpose.sequence) continue;
    return absl::UnavailableError(
        absl::StrCat(DescribeWait(), "; rank ", p.purpose.peer,
                     " has left the group and cannot arrive: look for its "
                     "error"));
  }
  return absl::OkStatus();
}

std::string MpiTransfers::DescribeWait() const {
  std::vector<bool> missing(static_cast<size_t>(size()));
  std::vector<std::string> waiting;
  bool messages = false;
  for (const bool incoming : {true, false}) {
    for (const Pending& p : pending_) {
      if (p.request == MPI_REQUEST_NULL || p.incoming != incoming) continue;
      const bool message = p.purpose.kind == OperationKind::kSend ||
                           p.purpose.kind == OperationKind::kRecv;
      messages |= message;
      // A collective's sends wait for ranks that have not come to receive.
      missing[static_cast<size_t>(p.purpose.peer)] = true;
      std::string text = absl::StrFormat(
          "%s #%d%s", std::string(Name(p.purpose.kind)), p.purpose.sequence,
          message ? absl::StrCat(p.incoming ? " from" : " to", " rank ",
                                 p.purpose.peer)
                  : "");
      if (std::find(waiting.begin(), waiting.end(), text) == waiting.end()) {
        waiting.push_back(std::move(text));
      }
    }
  }
  std::vector<int> arrived;
  std::vector<int> absent;
  for (int q = 0; q < size(); ++q) {
    (missing[static_cast<size_t>(q)] ? absent : arrived).push_back(q);
  }
  return absl::StrFormat(
      "group \"%s\", rank %d of %d waits in %s: %snot arrived: ranks %s",
      group_->name, rank(), size(), absl::StrJoin(waiting, ", "),
      messages ? "" : absl::StrCat("arrived: ranks ", JoinRanks(arrived), "; "),
      JoinRanks(absent));
}

}  // namespace cubit
