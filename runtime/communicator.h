// SPDX-License-Identifier: Apache-2.0
//
// A group of ranks that exchange tensors. Implementations differ in what a rank
// is (communicator_single.h: the only one; communicator_threads.h: a thread of
// this process; communicator_mpi.h: a process; communicator_nccl.h: a GPU) and
// pass one conformance suite (tests/runtime/communicator_suite.h).
//
// Order. Every operation is ordered on the stream that it is given, like a
// kernel. On the CPU it has happened when the call returns; elsewhere the call
// only enqueues, no host waits inside a step, and an error that comes to light
// later is found in Health(). All ranks of a group call the same collectives in
// the same order; messages from one rank to another arrive in the order in
// which they were sent, and there are no tags.
//
// Send waits for its Recv. A program must not rely on room between the two:
// messages that cross go through Exchange.
//
// Sums are deterministic: every rank gets the same bits, and gets them again in
// a repetition of the same calls, whoever arrives first. Where the ranks meet
// on the host the terms are added in the order of the ranks.
//
// Errors are sticky. A wrong call, a dead peer, a passed time limit or Abort
// fails the group for all of its ranks: calls that wait return, later calls
// return the first error, which names group, operation, sequence number and the
// ranks concerned. Outputs are then undefined. InvalidArgument: a wrong call
// (where the ranks meet on the host, also calls that differ between ranks;
// elsewhere those pass the time limit). DeadlineExceeded: the limit passed.
// Unavailable: a rank is gone.
//
// Threads: one thread at a time calls the operations of one object; Health,
// Abort and RecentOperations may be called from any.

#ifndef CUBIT_RUNTIME_COMMUNICATOR_H_
#define CUBIT_RUNTIME_COMMUNICATOR_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// Max of a NaN and a number is either of the two.
enum class ReduceOp { kSum, kMax };

enum class OperationKind {
  kAllReduce,
  kAllGather,
  kReduceScatter,
  kAllToAll,
  kBroadcast,
  kBarrier,
  kSplit,
  kSend,
  kRecv
};
// "AllReduce", ...
absl::string_view Name(OperationKind kind);

// What a rank did or waits for: an entry of the flight recorder.
struct OperationRecord {
  enum class State { kPending, kDone, kFailed };

  std::string group;
  OperationKind kind = OperationKind::kBarrier;
  // Collectives: number within the group, the same on every rank, from 0.
  // Send and Recv: number of the message from this sender to this receiver.
  int64_t sequence = 0;
  int peer = -1;  // Send and Recv
  int64_t bytes = 0;
  State state = State::kPending;
  std::chrono::steady_clock::time_point start;

  // "AllReduce #7 of 4096 bytes (pending)", "Send #2 to rank 1 ...".
  std::string ToString() const;
};

// The last operations of one rank in one group. Thread-safe; the watchdog may
// keep it longer than its communicator.
class FlightRecorder {
 public:
  static constexpr size_t kCapacity = 64;

  FlightRecorder(std::string group, int rank, int size)
      : group_(std::move(group)), rank_(rank), size_(size) {}

  const std::string& group() const { return group_; }
  int rank() const { return rank_; }  // in the group
  int size() const { return size_; }

  // Returns the number by which Finish knows the record.
  int64_t Begin(OperationRecord record);
  // Does nothing if the record has been overwritten or is finished.
  void Finish(int64_t number, bool ok);
  // Called before records are read: where operations end by themselves it
  // finishes those that have. Null: none; not called after that.
  void SetRefresh(std::function<void()> refresh);
  // Oldest first.
  std::vector<OperationRecord> Records() const;
  // Of the newest record; "no operation yet" if there is none.
  std::string Last() const;

 private:
  void Refresh() const;

  const std::string group_;
  const int rank_;
  const int size_;
  mutable std::mutex refresh_mutex_;  // before mutex_
  std::function<void()> refresh_;
  mutable std::mutex mutex_;
  int64_t begun_ = 0;
  std::deque<OperationRecord> records_;  // numbers begun_ - size .. begun_ - 1
};

// One call of a collective as its rank sees it.
struct CollectiveCall {
  OperationKind kind = OperationKind::kBarrier;
  ReduceOp reduce_op = ReduceOp::kSum;
  int root = -1;  // Broadcast
  ConstTensor input;
  Tensor output;
  // Split: this rank's color and key, and the name of its new group.
  int color = 0;
  int key = 0;
  std::string name;

  // Filled in by Communicator.
  int64_t sequence = 0;
  int64_t record = 0;  // for FlightRecorder::Finish

  // "AllReduce(sum, F32 [2, 3])".
  std::string ToString() const;
};

struct OutgoingMessage {
  ConstTensor data;
  int to = 0;
  int64_t sequence = 0;  // filled in by Communicator
  int64_t record = 0;
};

struct IncomingMessage {
  Tensor data;
  int from = 0;
  int64_t sequence = 0;  // filled in by Communicator
  int64_t record = 0;
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  const std::string& name() const { return name_; }
  int rank() const { return rank_; }
  int size() const { return size_; }

  // Reductions take F32, F64, I64 and BF16 (where the ranks meet on the host,
  // its terms are added in fp32 and rounded once); the others move bytes of any
  // dtype.
  // `input` and `output` do not overlap, but for the in-place forms named here.
  // n is any number of elements, also 0.

  // output = reduction of all inputs. Equal shapes; `input` may be `output`.
  absl::Status AllReduce(const ConstTensor& input, const Tensor& output,
                         ReduceOp op, Stream& stream);
  // input n, output size * n elements: part q is rank q's input. `input` may be
  // part `rank` of `output`.
  absl::Status AllGather(const ConstTensor& input, const Tensor& output,
                         Stream& stream);
  // input size * n, output n elements: the reduction of all ranks' parts
  // `rank`. `output` may be part `rank` of `input`.
  absl::Status ReduceScatter(const ConstTensor& input, const Tensor& output,
                             ReduceOp op, Stream& stream);
  // input and output size * n elements: part q of the output is part `rank` of
  // rank q's input. Never in place.
  absl::Status AllToAll(const ConstTensor& input, const Tensor& output,
                        Stream& stream);
  // x of every rank becomes x of rank `root`.
  absl::Status Broadcast(const Tensor& x, int root, Stream& stream);
  // What follows on the stream begins after every rank has reached this.
  absl::Status Barrier(Stream& stream);

  // One message to or from another rank, of equal dtype and shape there.
  absl::Status Send(const ConstTensor& x, int to, Stream& stream);
  absl::Status Recv(const Tensor& x, int from, Stream& stream);
  // All messages at once, in any order that makes progress; done when all are.
  // A rank may write to itself if it receives the message in the same call.
  absl::Status Exchange(std::vector<OutgoingMessage> sends,
                        std::vector<IncomingMessage> receives, Stream& stream);

  // A collective: ranks with the same `color` form a new group called `name`
  // (the same on all of them), ordered by `key`, then by rank here. Null for a
  // negative color. Waits on the host; for set-up.
  absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int key,
                                                      absl::string_view name);

  // The first error of the group that this process knows of.
  virtual absl::Status Health() = 0;
  // Fails this group and all that were split from it, on every rank, with
  // `reason` (not OK). The first reason stays.
  virtual void Abort(const absl::Status& reason) = 0;

  std::vector<OperationRecord> RecentOperations() const {
    return recorder_->Records();
  }
  const std::shared_ptr<FlightRecorder>& flight_recorder() const {
    return recorder_;
  }

 protected:
  Communicator(std::string name, int rank, int size);

  // The implementation's part, after the call was found right on this rank.
  // Finishes call.record in recorder() when the operation is done; a record of
  // a call that returns an error is finished by the caller.
  virtual absl::Status RunCollective(const CollectiveCall& call,
                                     Stream& stream) = 0;
  virtual absl::Status RunExchange(std::vector<OutgoingMessage>& sends,
                                   std::vector<IncomingMessage>& receives,
                                   Stream& stream) = 0;
  virtual absl::StatusOr<std::unique_ptr<Communicator>> RunSplit(
      const CollectiveCall& call) = 0;

  // "group "tp", rank 2, AllReduce #7: ".
  std::string Prefix(OperationKind kind, int64_t sequence) const;
  // Collectives that this rank has called, and messages to and from `peer`.
  int64_t num_collectives() const { return next_collective_; }
  int64_t num_sent(int peer) const {
    return next_send_[static_cast<size_t>(peer)];
  }
  int64_t num_received(int peer) const {
    return next_recv_[static_cast<size_t>(peer)];
  }
  FlightRecorder& recorder() { return *recorder_; }

 private:
  absl::Status Collective(CollectiveCall call, Stream& stream);
  absl::Status CheckCollective(const CollectiveCall& call) const;
  absl::Status CheckExchange(const std::vector<OutgoingMessage>& sends,
                             const std::vector<IncomingMessage>& receives);
  void Number(CollectiveCall& call);
  void Number(std::vector<OutgoingMessage>& sends,
              std::vector<IncomingMessage>& receives);

  const std::string name_;
  const int rank_;
  const int size_;
  const std::shared_ptr<FlightRecorder> recorder_;
  int64_t next_collective_ = 0;
  std::vector<int64_t> next_send_;  // per receiver
  std::vector<int64_t> next_recv_;  // per sender
};

}  // namespace cubit

#endif  // CUBIT_RUNTIME_COMMUNICATOR_H_
