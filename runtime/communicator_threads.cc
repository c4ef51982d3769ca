// SPDX-License-Identifier: Apache-2.0
//
// The ranks of a group share one ThreadGroup. Whatever is in it is guarded by
// its mutex; elements of tensors are copied and summed without it, by each rank
// for its own outputs, straight from the others' memory.
//
// A collective passes three meetings. At the first the calls are compared, so
// that beyond it every rank knows where all inputs and outputs are. Between the
// first and the second, ranks read inputs; between the second and the third,
// they read finished outputs (AllReduce); after the third nobody looks at
// another's memory, so a rank may return and free its own.
//
// A rank that leaves early, with an error, must not free memory that another
// still reads. So every piece of such work is announced (`working`), none
// begins in a failed group, and nobody returns an error before `working` is 0.

#include "runtime/communicator_threads.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

#include "runtime/check.h"
#include "runtime/collective_phases.h"
#include "runtime/device.h"
#include "runtime/dtype.h"

namespace cubit {
namespace {

using Clock = std::chrono::steady_clock;
using Lock = std::unique_lock<std::mutex>;

// A message whose sender waits in Exchange, which owns it.
struct PostedSend {
  const OutgoingMessage* message = nullptr;
  bool done = false;
};

struct RankState {
  CollectiveCall call;   // of the collective that it is in
  int64_t meetings = 0;  // reached so far
  bool left = false;
  std::shared_ptr<FlightRecorder> recorder;
};

struct ThreadGroup {
  ThreadGroup(std::string group_name, int size, absl::Duration limit)
      : name(std::move(group_name)),
        timeout(limit),
        ranks(static_cast<size_t>(size)) {}

  int size() const { return static_cast<int>(ranks.size()); }

  // The first failure stays. Children fail too; locks are taken from parent to
  // child only.
  void Fail(const absl::Status& reason) {
    std::vector<std::shared_ptr<ThreadGroup>> below;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!status.ok()) return;
      status = reason;
      for (const auto& child : children) {
        if (auto group = child.lock()) below.push_back(std::move(group));
      }
    }
    changed.notify_all();
    for (const auto& group : below) group->Fail(reason);
  }

  const std::string name;
  const absl::Duration timeout;

  std::mutex mutex;
  std::condition_variable changed;
  absl::Status status;
  int working = 0;  // ranks that read or write tensors
  std::vector<RankState> ranks;
  // Sends that no Recv has taken yet, by (sender, receiver).
  std::map<std::pair<int, int>, std::deque<PostedSend*>> posted;
  std::vector<std::weak_ptr<ThreadGroup>> children;
  // Of the Split in progress, by color.
  std::map<int, std::shared_ptr<ThreadGroup>> split;
};

void CopyMessage(const ConstTensor& from, const Tensor& to) {
  if (from.size_bytes() == 0) return;
  std::memcpy(to.raw(), from.raw(), static_cast<size_t>(from.size_bytes()));
}

class ThreadCommunicator : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<ThreadGroup> group, int rank)
      : Communicator(group->name, rank, group->size()),
        group_(std::move(group)) {
    const Lock lock(group_->mutex);
    me().recorder = flight_recorder();
  }

  ~ThreadCommunicator() override {
    {
      const Lock lock(group_->mutex);
      me().left = true;
    }
    group_->changed.notify_all();
  }

  absl::Status Health() override {
    const Lock lock(group_->mutex);
    return group_->status;
  }

  void Abort(const absl::Status& reason) override {
    CUBIT_CHECK(!reason.ok());
    group_->Fail(reason);
  }

 protected:
  absl::Status RunCollective(const CollectiveCall& call,
                             Stream& stream) override;
  absl::Status RunExchange(std::vector<OutgoingMessage>& sends,
                           std::vector<IncomingMessage>& receives,
                           Stream& stream) override;
  absl::StatusOr<std::unique_ptr<Communicator>> RunSplit(
      const CollectiveCall& call) override;

 private:
  RankState& me() { return group_->ranks[static_cast<size_t>(rank())]; }

  Clock::time_point Deadline() const {
    // A year stands for "no limit": later points overflow the clock.
    return Clock::now() + absl::ToChronoNanoseconds(
                              std::min(group_->timeout, absl::Hours(24 * 365)));
  }

  // Waits until `ready` or failure. `missing` (called under the lock) names the
  // ranks that are waited for; one that left fails the group, and so does the
  // deadline, with `describe`'s text.
  absl::Status Wait(Lock& lock, Clock::time_point deadline,
                    const std::function<std::vector<int>()>& missing,
                    const std::function<std::string()>& describe);
  // Fails the group and waits until nobody works; returns the group's error.
  absl::Status Leave(Lock& lock, const absl::Status& reason);
  // Does `work` without the lock, unless the group has failed.
  absl::Status Work(Lock& lock, const std::function<void()>& work);
  // The next meeting of this collective.
  absl::Status Meet(Lock& lock, const CollectiveCall& call,
                    Clock::time_point deadline);
  // The first meeting; returns the calls of all ranks.
  absl::StatusOr<std::vector<CollectiveCall>> Open(Lock& lock,
                                                   const CollectiveCall& call,
                                                   Clock::time_point deadline);
  std::string DescribeMeeting(const CollectiveCall& call,
                              const std::vector<int>& missing) const;

  // Takes what has arrived for `receives`; sets `progress` if anything had.
  absl::Status TakeMessages(Lock& lock,
                            const std::vector<IncomingMessage>& receives,
                            std::vector<bool>& taken, bool* progress);
  absl::Status Transfer(Lock& lock, PostedSend& send,
                        const IncomingMessage& receive);
  absl::Status FinishExchange(Lock& lock, const std::deque<PostedSend>& posted,
                              const std::vector<IncomingMessage>& receives);

  const std::shared_ptr<ThreadGroup> group_;
};

absl::Status ThreadCommunicator::Leave(Lock& lock, const absl::Status& reason) {
  lock.unlock();
  group_->Fail(reason);  // does nothing if it has failed
  lock.lock();
  group_->changed.wait(lock, [this] { return group_->working == 0; });
  return group_->status;
}

absl::Status ThreadCommunicator::Work(Lock& lock,
                                      const std::function<void()>& work) {
  if (!group_->status.ok()) return group_->status;
  ++group_->working;
  lock.unlock();
  work();
  lock.lock();
  if (--group_->working == 0) group_->changed.notify_all();
  return absl::OkStatus();
}

absl::Status ThreadCommunicator::Wait(
    Lock& lock, Clock::time_point deadline,
    const std::function<std::vector<int>()>& missing,
    const std::function<std::string()>& describe) {
  while (true) {
    if (!group_->status.ok()) return group_->status;
    const std::vector<int> ranks = missing();
    if (ranks.empty()) return absl::OkStatus();
    for (const int q : ranks) {
      if (!group_->ranks[static_cast<size_t>(q)].left) continue;
      return absl::UnavailableError(
          absl::StrCat(describe(), "; rank ", q,
                       " has left the group and cannot arrive: look for its "
                       "error"));
    }
    if (Clock::now() >= deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat(describe(), "; gave up after ",
                       absl::FormatDuration(group_->timeout)));
    }
    group_->changed.wait_until(lock, deadline);
  }
}

std::string ThreadCommunicator::DescribeMeeting(
    const CollectiveCall& call, const std::vector<int>& missing) const {
  std::vector<int> arrived;
  std::vector<std::string> last;
  for (int q = 0; q < size(); ++q) {
    if (std::find(missing.begin(), missing.end(), q) == missing.end()) {
      arrived.push_back(q);
    } else {
      last.push_back(
          absl::StrCat("rank ", q, ": ",
                       group_->ranks[static_cast<size_t>(q)].recorder->Last()));
    }
  }
  return absl::StrFormat("%s%s: arrived: ranks %s; not arrived: ranks %s (%s)",
                         Prefix(call.kind, call.sequence), call.ToString(),
                         JoinRanks(arrived), JoinRanks(missing),
                         absl::StrJoin(last, "; "));
}

absl::Status ThreadCommunicator::Meet(Lock& lock, const CollectiveCall& call,
                                      Clock::time_point deadline) {
  const int64_t meeting = ++me().meetings;
  const auto missing = [this, meeting] {
    std::vector<int> ranks;
    for (int q = 0; q < size(); ++q) {
      const RankState& state = group_->ranks[static_cast<size_t>(q)];
      if (state.meetings < meeting) ranks.push_back(q);
    }
    return ranks;
  };
  if (missing().empty()) group_->changed.notify_all();
  return Wait(lock, deadline, missing,
              [&] { return DescribeMeeting(call, missing()); });
}

absl::StatusOr<std::vector<CollectiveCall>> ThreadCommunicator::Open(
    Lock& lock, const CollectiveCall& call, Clock::time_point deadline) {
  me().call = call;
  absl::Status status = Meet(lock, call, deadline);
  if (!status.ok()) return status;
  std::vector<CollectiveCall> calls;
  calls.reserve(group_->ranks.size());
  for (const RankState& state : group_->ranks) calls.push_back(state.call);
  status = CompareCalls(calls, name());
  if (!status.ok()) return status;
  return calls;
}

absl::Status ThreadCommunicator::RunCollective(const CollectiveCall& call,
                                               Stream& stream) {
  CUBIT_CHECK(stream.native() == nullptr) << "threads need the CPU back end";
  Lock lock(group_->mutex);
  const Clock::time_point deadline = Deadline();
  auto calls = Open(lock, call, deadline);
  if (!calls.ok()) return Leave(lock, calls.status());
  absl::Status status = Work(lock, [&] { ReadInputs(*calls, rank()); });
  if (status.ok()) status = Meet(lock, call, deadline);
  if (status.ok()) {
    status = Work(lock, [&] { ReadOutputs(*calls, rank()); });
  }
  if (status.ok()) status = Meet(lock, call, deadline);
  if (!status.ok()) return Leave(lock, status);
  recorder().Finish(call.record, true);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Communicator>> ThreadCommunicator::RunSplit(
    const CollectiveCall& call) {
  Lock lock(group_->mutex);
  const Clock::time_point deadline = Deadline();
  auto calls = Open(lock, call, deadline);
  if (!calls.ok()) return Leave(lock, calls.status());
  const absl::StatusOr<SplitMembers> members =
      MembersOf(*calls, rank(), Prefix(call.kind, call.sequence));
  if (!members.ok()) return Leave(lock, members.status());
  std::shared_ptr<ThreadGroup> child;
  if (call.color >= 0) {
    std::shared_ptr<ThreadGroup>& shared = group_->split[call.color];
    if (shared == nullptr) {
      shared = std::make_shared<ThreadGroup>(
          call.name, static_cast<int>(members->ranks.size()), group_->timeout);
      group_->children.push_back(shared);
    }
    child = shared;
  }
  // Constructed before any rank goes on: members have recorders then.
  std::unique_ptr<Communicator> result;
  if (child != nullptr) {
    result = std::make_unique<ThreadCommunicator>(child, members->rank);
  }
  absl::Status status = Meet(lock, call, deadline);
  if (status.ok()) {
    group_->split.clear();
    status = Meet(lock, call, deadline);
  }
  if (!status.ok()) {
    status = Leave(lock, status);
    lock.unlock();  // `result` locks the child alone
    return status;
  }
  return result;
}

absl::Status ThreadCommunicator::Transfer(Lock& lock, PostedSend& send,
                                          const IncomingMessage& receive) {
  const OutgoingMessage& message = *send.message;
  const ConstTensor& from = message.data;
  const Tensor& to = receive.data;
  if (from.dtype() != to.dtype() || from.shape() != to.shape()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "group \"%s\", message #%d from rank %d to rank %d: sent %s, the "
        "receiver expects %s",
        name(), message.sequence, receive.from, rank(), DescribeTensor(from),
        DescribeTensor(to)));
  }
  absl::Status status = Work(lock, [&] { CopyMessage(from, to); });
  if (status.ok()) send.done = true;
  return status;
}

absl::Status ThreadCommunicator::TakeMessages(
    Lock& lock, const std::vector<IncomingMessage>& receives,
    std::vector<bool>& taken, bool* progress) {
  *progress = false;
  std::vector<bool> blocked(static_cast<size_t>(size()));
  for (size_t i = 0; i < receives.size(); ++i) {
    const size_t from = static_cast<size_t>(receives[i].from);
    if (taken[i] || blocked[from]) continue;
    // Senders of a failed group may be gone, and what they posted with them.
    if (!group_->status.ok()) return group_->status;
    auto& queue = group_->posted[{receives[i].from, rank()}];
    if (queue.empty()) {
      blocked[from] = true;  // later ones of this sender keep their order
      continue;
    }
    PostedSend* const send = queue.front();
    queue.pop_front();
    absl::Status status = Transfer(lock, *send, receives[i]);
    if (!status.ok()) return status;
    recorder().Finish(receives[i].record, true);
    taken[i] = true;
    *progress = true;
    group_->changed.notify_all();
  }
  return absl::OkStatus();
}

absl::Status ThreadCommunicator::FinishExchange(
    Lock& lock, const std::deque<PostedSend>& posted,
    const std::vector<IncomingMessage>& receives) {
  const Clock::time_point deadline = Deadline();
  std::vector<bool> taken(receives.size());
  // Ranks whose message or Recv is missing; empty as well if there is work.
  bool done = false;
  std::vector<std::string> waiting;
  const auto missing = [&] {
    std::vector<int> ranks;
    waiting.clear();
    done = true;
    bool arrived = false;
    for (size_t i = 0; i < receives.size(); ++i) {
      if (taken[i]) continue;
      done = false;
      arrived |= !group_->posted[{receives[i].from, rank()}].empty();
      ranks.push_back(receives[i].from);
      waiting.push_back(absl::StrCat("Recv #", receives[i].sequence,
                                     " from rank ", receives[i].from));
    }
    for (const PostedSend& send : posted) {
      if (send.done) continue;
      done = false;
      ranks.push_back(send.message->to);
      waiting.push_back(absl::StrCat("Send #", send.message->sequence,
                                     " to rank ", send.message->to));
    }
    if (arrived) ranks.clear();
    return ranks;
  };
  const auto describe = [&] {
    std::vector<int> ranks = missing();
    std::sort(ranks.begin(), ranks.end());
    ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
    std::string text = absl::StrFormat(
        "group \"%s\", rank %d of %d waits in %s; not arrived:", name(), rank(),
        size(), absl::StrJoin(waiting, ", "));
    for (const int q : ranks) {
      absl::StrAppend(&text, " rank ", q, " (",
                      group_->ranks[static_cast<size_t>(q)].recorder->Last(),
                      ")");
    }
    return text;
  };
  while (true) {
    bool progress = true;
    while (progress) {
      absl::Status status = TakeMessages(lock, receives, taken, &progress);
      if (!status.ok()) return status;
    }
    absl::Status status = Wait(lock, deadline, missing, describe);
    if (!status.ok() || done) return status;
  }
}

absl::Status ThreadCommunicator::RunExchange(
    std::vector<OutgoingMessage>& sends, std::vector<IncomingMessage>& receives,
    Stream& stream) {
  CUBIT_CHECK(stream.native() == nullptr) << "threads need the CPU back end";
  Lock lock(group_->mutex);
  std::deque<PostedSend> posted;  // addresses stay
  for (const OutgoingMessage& message : sends) {
    posted.push_back({&message, false});
    group_->posted[{rank(), message.to}].push_back(&posted.back());
  }
  group_->changed.notify_all();
  absl::Status status = FinishExchange(lock, posted, receives);
  // A failed group takes no more messages, so what is still posted is inert.
  if (!status.ok()) return Leave(lock, status);
  for (const OutgoingMessage& m : sends) recorder().Finish(m.record, true);
  return absl::OkStatus();
}

}  // namespace

std::vector<std::unique_ptr<Communicator>> MakeThreadCommunicators(
    absl::string_view name, int size, absl::Duration timeout) {
  CUBIT_CHECK_GE(size, 1);
  CUBIT_CHECK(timeout > absl::ZeroDuration());
  const auto group =
      std::make_shared<ThreadGroup>(std::string(name), size, timeout);
  std::vector<std::unique_ptr<Communicator>> ranks;
  ranks.reserve(static_cast<size_t>(size));
  for (int q = 0; q < size; ++q) {
    ranks.push_back(std::make_unique<ThreadCommunicator>(group, q));
  }
  return ranks;
}

}  // namespace cubit
