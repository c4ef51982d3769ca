// SPDX-License-Identifier: Apache-2.0
//
// What processes of one MPI world tell each other about their groups outside of
// any operation: that a group has failed, that a rank has left. Internal to
// communicator_mpi.cc.
//
// Groups are no MPI communicators but numbers, which are tags of messages on
// one duplicate of MPI_COMM_WORLD. So making a group needs no call of MPI that
// could block, and what a failed group left behind is never taken for a message
// of another. Notices travel on a second duplicate, and whoever polls reads
// them for all groups of the process.

#ifndef CUBIT_RUNTIME_MPI_CONTROL_H_
#define CUBIT_RUNTIME_MPI_CONTROL_H_

#include <atomic>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include <mpi.h>

namespace cubit {

// Unavailable, with MPI's own words, unless `code` is MPI_SUCCESS.
absl::Status MpiStatus(int code, absl::string_view what);

// What a rank had done in a group when it left it.
struct MpiFarewell {
  int64_t collectives = 0;
  int64_t sent = 0;      // messages to the rank that is told
  int64_t received = 0;  // from that rank
};

// A group as one of its processes knows it.
struct MpiGroup {
  int64_t id = 0;  // the same on all ranks, of no other group
  std::string name;
  std::vector<int> world_ranks;
  int rank = 0;
  absl::Duration timeout = absl::Minutes(10);  // MpiOptions
  int64_t block_bytes = int64_t{16} << 20;

  int size() const { return static_cast<int>(world_ranks.size()); }
  int collective_tag() const { return static_cast<int>(2 * id); }
  int message_tag() const { return static_cast<int>(2 * id + 1); }

  // Guarded by MpiControl.
  absl::Status status;
  std::vector<std::optional<MpiFarewell>> left;
  std::vector<std::weak_ptr<MpiGroup>> children;
};

// Thread-safe. MPI must be initialised with MPI_THREAD_MULTIPLE.
class MpiControl {
 public:
  using Buffer = std::shared_ptr<char[]>;

  MpiControl();  // a collective of all processes
  ~MpiControl();
  MpiControl(const MpiControl&) = delete;
  MpiControl& operator=(const MpiControl&) = delete;

  MPI_Comm data() const { return data_; }
  int rank() const { return rank_; }
  int size() const { return size_; }
  int num_groups() const;

  // A number for a group that no other process of the world uses, not 0. CHECK:
  // there are fewer than 2^14 of this process.
  int64_t NewGroupId();
  void Add(const std::shared_ptr<MpiGroup>& group, MpiGroup* parent);
  // `farewells` are for the ranks of the group, in order.
  void Remove(const MpiGroup& group, const std::vector<MpiFarewell>& farewells);

  // Reads the notices that have come.
  void Poll();
  absl::Status StatusOf(const MpiGroup& group) const;
  // Of each rank of the group, if it has left; empty while all are there.
  std::vector<std::optional<MpiFarewell>> Farewells(
      const MpiGroup& group) const;
  // Fails the group and those below it, here and on its other ranks, unless it
  // has failed before.
  void Fail(MpiGroup& group, const absl::Status& reason);

  // An operation that MPI cannot take back, and the memory it uses until then.
  void Keep(MPI_Request request, Buffer memory);

  // Waits, at most for `timeout`, until all processes are here.
  bool Meet(absl::Duration timeout);

 private:
  struct Notice;
  struct Kept {
    MPI_Request request;
    Buffer memory;
  };

  static void FailLocked(MpiGroup& group, const absl::Status& reason);
  void Apply(const Notice& notice);
  static void ApplyTo(MpiGroup& group, const Notice& notice);
  void Send(const Notice& notice, int world_rank);

  MPI_Comm data_ = MPI_COMM_NULL;
  MPI_Comm control_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 0;
  std::atomic<int64_t> num_ids_{1};

  std::mutex poll_mutex_;  // one thread reads notices at a time
  mutable std::mutex mutex_;
  std::map<int64_t, std::shared_ptr<MpiGroup>> groups_;
  std::set<int64_t> removed_;
  // Of groups that other ranks made a moment before this one.
  std::map<int64_t, std::vector<Notice>> early_;
  std::list<Kept> kept_;
};

}  // namespace cubit

#endif  // CUBIT_RUNTIME_MPI_CONTROL_H_
