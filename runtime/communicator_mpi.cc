// SPDX-License-Identifier: Apache-2.0

#include "runtime/communicator_mpi.h"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include <mpi.h>

#include "runtime/check.h"
#include "runtime/collective_phases.h"
#include "runtime/command_line.h"
#include "runtime/device.h"
#include "runtime/dtype.h"
#include "runtime/logging.h"
#include "runtime/mpi_control.h"
#include "runtime/mpi_parts.h"
#include "runtime/mpi_transfers.h"
#include "runtime/mpi_wire.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

using Kind = OperationKind;

void Copy(const void* from, void* to, int64_t bytes) {
  if (bytes > 0 && from != to) {
    std::memcpy(to, from, static_cast<size_t>(bytes));
  }
}

// Whether all inputs travel with the descriptions.
bool IsSmall(const CollectiveCall& call) {
  return call.input.num_elements() * SizeOf(call.input.dtype()) <=
         kMpiPayloadBytes;
}

// The messages of one sender in an Exchange, one after another.
struct IncomingLane {
  int from = 0;
  std::vector<size_t> messages;  // indices
  size_t next = 0;
  int64_t offset = -1;  // bytes that have come; -1: the header is awaited
  char* header = nullptr;
};

class MpiCommunicator : public Communicator {
 public:
  MpiCommunicator(MpiControl* control, const std::shared_ptr<MpiGroup>& group)
      : Communicator(group->name, group->rank, group->size()),
        control_(*control),
        transfers_(control, group) {}

  ~MpiCommunicator() override {
    std::vector<MpiFarewell> farewells;
    farewells.reserve(static_cast<size_t>(size()));
    for (int q = 0; q < size(); ++q) {
      farewells.push_back({num_collectives(), num_sent(q), num_received(q)});
    }
    control_.Remove(group(), farewells);
  }

  absl::Status Health() override {
    control_.Poll();
    return control_.StatusOf(group());
  }
  void Abort(const absl::Status& reason) override {
    CUBIT_CHECK(!reason.ok());
    control_.Fail(group(), reason);
  }

  MpiGroup& group() { return transfers_.group(); }

 protected:
  absl::Status RunCollective(const CollectiveCall& call,
                             Stream& stream) override;
  absl::Status RunExchange(std::vector<OutgoingMessage>& sends,
                           std::vector<IncomingMessage>& receives,
                           Stream& stream) override;
  absl::StatusOr<std::unique_ptr<Communicator>> RunSplit(
      const CollectiveCall& call) override;

 private:
  MpiDescription DescriptionOf(const CollectiveCall& call);
  absl::Status Describe(const CollectiveCall& call);
  absl::StatusOr<std::vector<CollectiveCall>> Open(const CollectiveCall& call);
  absl::Status Finish(const CollectiveCall& call,
                      const std::vector<CollectiveCall>& calls);

  void MakeLanes(const std::vector<IncomingMessage>& receives);
  absl::Status PostMessages(const std::vector<OutgoingMessage>& sends,
                            const std::vector<IncomingMessage>& receives);
  absl::Status CopyToSelf(const std::vector<OutgoingMessage>& sends,
                          const std::vector<IncomingMessage>& receives);
  absl::Status PostSends(const std::vector<OutgoingMessage>& sends);
  absl::Status ReceiveNext(const std::vector<IncomingMessage>& receives,
                           size_t lane);
  absl::Status CheckMessage(int64_t sequence, int from, const Tensor& expected,
                            DType dtype, const Shape& shape) const;

  MpiControl& control_;
  MpiTransfers transfers_;

  // Of the operation in progress.
  std::vector<int64_t> proposed_ids_;  // Split: of the ranks
  std::vector<IncomingLane> lanes_;    // Exchange
};

// Collectives.

MpiDescription MpiCommunicator::DescriptionOf(const CollectiveCall& call) {
  MpiDescription mine;
  mine.kind = static_cast<int32_t>(call.kind);
  mine.reduce_op = static_cast<int32_t>(call.reduce_op);
  mine.root = call.root;
  mine.dtype = static_cast<int32_t>(call.input.dtype());
  mine.color = call.color;
  mine.key = call.key;
  mine.sequence = call.sequence;
  PutShape(call.input.shape(), mine);
  if (call.kind == Kind::kSplit) {
    CUBIT_CHECK_LE(static_cast<int64_t>(call.name.size()), kMpiPayloadBytes);
    mine.payload_bytes = static_cast<int32_t>(call.name.size());
    mine.group_id = control_.NewGroupId();
  } else if (!call.input.empty() && IsSmall(call)) {
    mine.payload_bytes = static_cast<int32_t>(call.input.size_bytes());
  }
  return mine;
}

// Sends this rank's call to all and asks for theirs.
absl::Status MpiCommunicator::Describe(const CollectiveCall& call) {
  const MpiDescription mine = DescriptionOf(call);
  const int64_t bytes = static_cast<int64_t>(sizeof(mine)) + mine.payload_bytes;
  transfers_.staging().Reserve(bytes);
  char* const slot = transfers_.staging().Take(bytes);
  Copy(&mine, slot, sizeof(mine));
  Copy(call.kind == Kind::kSplit ? call.name.data() : call.input.raw(),
       slot + sizeof(mine), mine.payload_bytes);
  transfers_.landing().Reserve(kMpiSlotBytes * size());
  for (int q = 0; q < size(); ++q) {
    char* const target = transfers_.landing().Take(kMpiSlotBytes);
    if (q == rank()) {
      Copy(slot, target, bytes);
      continue;
    }
    CUBIT_RETURN_IF_ERROR(transfers_.Receive({call.kind, call.sequence, q},
                                             target, kMpiSlotBytes));
  }
  for (int i = 0; i + 1 < size(); ++i) {
    CUBIT_RETURN_IF_ERROR(transfers_.Send(
        {call.kind, call.sequence, transfers_.Other(i)}, slot, bytes));
  }
  return absl::OkStatus();
}

// The calls of all ranks, which are the same. Their inputs are here if they
// were small; the output is that of this rank alone.
absl::StatusOr<std::vector<CollectiveCall>> MpiCommunicator::Open(
    const CollectiveCall& call) {
  CUBIT_RETURN_IF_ERROR(Describe(call));
  CUBIT_RETURN_IF_ERROR(transfers_.Complete());
  std::vector<CollectiveCall> calls(static_cast<size_t>(size()));
  proposed_ids_.assign(calls.size(), 0);
  transfers_.landing().Reserve(0);  // from its beginning
  for (size_t q = 0; q < calls.size(); ++q) {
    const char* const slot = transfers_.landing().Take(kMpiSlotBytes);
    MpiDescription theirs;
    std::memcpy(&theirs, slot, sizeof(theirs));
    const char* const payload = slot + sizeof(theirs);
    CollectiveCall& other = calls[q];
    other.kind = static_cast<Kind>(theirs.kind);
    other.reduce_op = static_cast<ReduceOp>(theirs.reduce_op);
    other.root = theirs.root;
    other.color = theirs.color;
    other.key = theirs.key;
    other.sequence = theirs.sequence;
    other.input = ConstTensor(payload, static_cast<DType>(theirs.dtype),
                              GetShape(theirs));
    if (other.kind == Kind::kSplit) {
      other.name.assign(payload, static_cast<size_t>(theirs.payload_bytes));
    }
    proposed_ids_[q] = theirs.group_id;
  }
  calls[static_cast<size_t>(rank())] = call;
  CUBIT_RETURN_IF_ERROR(CompareCalls(calls, name()));
  return calls;
}

// What follows when every rank has arrived.
absl::Status MpiCommunicator::Finish(const CollectiveCall& call,
                                     const std::vector<CollectiveCall>& calls) {
  if (call.kind == Kind::kBarrier) return absl::OkStatus();
  if (!IsSmall(call)) return MoveParts(call, transfers_);
  if (call.kind != Kind::kAllReduce) {
    ReadInputs(calls, rank());
    return absl::OkStatus();
  }
  std::vector<const void*> inputs;
  inputs.reserve(calls.size());
  for (const CollectiveCall& c : calls) inputs.push_back(c.input.raw());
  ReduceInOrder(inputs, call.input.dtype(), call.reduce_op,
                call.input.num_elements(), call.output.raw());
  return absl::OkStatus();
}

absl::Status MpiCommunicator::RunCollective(const CollectiveCall& call,
                                            Stream& stream) {
  if (stream.native() != nullptr) stream.Synchronize();
  transfers_.Begin();
  const auto calls = Open(call);
  CUBIT_RETURN_IF_ERROR(
      transfers_.End(calls.ok() ? Finish(call, *calls) : calls.status()));
  recorder().Finish(call.record, true);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Communicator>> MpiCommunicator::RunSplit(
    const CollectiveCall& call) {
  transfers_.Begin();
  const auto calls = Open(call);
  CUBIT_RETURN_IF_ERROR(transfers_.End(calls.status()));
  const auto members =
      MembersOf(*calls, rank(), Prefix(call.kind, call.sequence));
  CUBIT_RETURN_IF_ERROR(transfers_.End(members.status()));
  std::unique_ptr<Communicator> result;
  if (call.color < 0) return result;
  MpiGroup& parent = transfers_.group();
  auto child = std::make_shared<MpiGroup>();
  child->id = proposed_ids_[static_cast<size_t>(members->ranks[0])];
  child->name = call.name;
  child->rank = members->rank;
  child->timeout = parent.timeout;
  child->block_bytes = parent.block_bytes;
  for (const int q : members->ranks) {
    child->world_ranks.push_back(parent.world_ranks[static_cast<size_t>(q)]);
  }
  control_.Add(child, &parent);
  result = std::make_unique<MpiCommunicator>(&control_, child);
  return result;
}

// Messages.

absl::Status MpiCommunicator::CheckMessage(int64_t sequence, int from,
                                           const Tensor& expected, DType dtype,
                                           const Shape& shape) const {
  if (expected.dtype() == dtype && expected.shape() == shape) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrFormat(
      "group \"%s\", message #%d from rank %d to rank %d: sent %s %s, the "
      "receiver expects %s",
      name(), sequence, from, rank(), std::string(Name(dtype)),
      shape.ToString(), DescribeTensor(expected)));
}

absl::Status MpiCommunicator::CopyToSelf(
    const std::vector<OutgoingMessage>& sends,
    const std::vector<IncomingMessage>& receives) {
  auto receive = receives.begin();
  for (const OutgoingMessage& m : sends) {
    if (m.to != rank()) continue;
    while (receive->from != rank()) ++receive;
    CUBIT_RETURN_IF_ERROR(CheckMessage(m.sequence, rank(), receive->data,
                                       m.data.dtype(), m.data.shape()));
    Copy(m.data.raw(), receive->data.raw(), m.data.size_bytes());
    recorder().Finish(receive->record, true);
    ++receive;
  }
  return absl::OkStatus();
}

absl::Status MpiCommunicator::PostSends(
    const std::vector<OutgoingMessage>& sends) {
  int64_t total = 0;
  for (const OutgoingMessage& m : sends) {
    if (m.to != rank()) total += kMpiHeaderBytes + m.data.size_bytes();
  }
  MpiScratch& staging = transfers_.staging();
  staging.Reserve(total);
  for (const OutgoingMessage& m : sends) {
    if (m.to == rank()) continue;
    const MpiPurpose purpose = {Kind::kSend, m.sequence, m.to};
    MpiMessageHeader header;
    header.dtype = static_cast<int32_t>(m.data.dtype());
    PutShape(m.data.shape(), header);
    CUBIT_RETURN_IF_ERROR(transfers_.Send(
        purpose, staging.TakeCopy(&header, kMpiHeaderBytes), kMpiHeaderBytes));
    const int64_t bytes = m.data.size_bytes();
    const char* const data = staging.TakeCopy(m.data.raw(), bytes);
    const int64_t block = transfers_.group().block_bytes;
    for (int64_t begin = 0; begin < bytes; begin += block) {
      CUBIT_RETURN_IF_ERROR(transfers_.Send(purpose, data + begin,
                                            std::min(block, bytes - begin)));
    }
  }
  return absl::OkStatus();
}

// Goes on with the messages of one sender after a piece of them has come.
absl::Status MpiCommunicator::ReceiveNext(
    const std::vector<IncomingMessage>& receives, size_t index) {
  IncomingLane& lane = lanes_[index];
  while (lane.next < lane.messages.size()) {
    const IncomingMessage& message = receives[lane.messages[lane.next]];
    const MpiPurpose purpose = {Kind::kRecv, message.sequence, lane.from,
                                index};
    if (lane.offset < 0) {
      return transfers_.Receive(purpose, lane.header, kMpiHeaderBytes);
    }
    if (lane.offset == 0) {
      MpiMessageHeader header;
      std::memcpy(&header, lane.header, sizeof(header));
      CUBIT_RETURN_IF_ERROR(
          CheckMessage(message.sequence, lane.from, message.data,
                       static_cast<DType>(header.dtype), GetShape(header)));
    }
    const int64_t left = message.data.size_bytes() - lane.offset;
    if (left > 0) {
      return transfers_.Receive(
          purpose, static_cast<char*>(message.data.raw()) + lane.offset,
          std::min(transfers_.group().block_bytes, left));
    }
    recorder().Finish(message.record, true);
    ++lane.next;
    lane.offset = -1;
  }
  return absl::OkStatus();
}

void MpiCommunicator::MakeLanes(const std::vector<IncomingMessage>& receives) {
  lanes_.clear();
  for (size_t i = 0; i < receives.size(); ++i) {
    const int from = receives[i].from;
    if (from == rank()) continue;
    auto lane =
        std::find_if(lanes_.begin(), lanes_.end(),
                     [from](const IncomingLane& l) { return l.from == from; });
    if (lane == lanes_.end()) {
      lane = lanes_.emplace(lane);
      lane->from = from;
    }
    lane->messages.push_back(i);
  }
}

absl::Status MpiCommunicator::PostMessages(
    const std::vector<OutgoingMessage>& sends,
    const std::vector<IncomingMessage>& receives) {
  CUBIT_RETURN_IF_ERROR(CopyToSelf(sends, receives));
  MakeLanes(receives);
  transfers_.landing().Reserve(static_cast<int64_t>(lanes_.size()) *
                               kMpiHeaderBytes);
  for (size_t i = 0; i < lanes_.size(); ++i) {
    lanes_[i].header = transfers_.landing().Take(kMpiHeaderBytes);
    CUBIT_RETURN_IF_ERROR(ReceiveNext(receives, i));
  }
  return PostSends(sends);
}

absl::Status MpiCommunicator::RunExchange(
    std::vector<OutgoingMessage>& sends, std::vector<IncomingMessage>& receives,
    Stream& stream) {
  if (stream.native() != nullptr) stream.Synchronize();
  transfers_.Begin();
  absl::Status status = PostMessages(sends, receives);
  if (status.ok()) {
    status = transfers_.Complete([&](const MpiPurpose& piece) {
      IncomingLane& lane = lanes_[piece.lane];
      lane.offset =
          lane.offset < 0 ? 0 : lane.offset + transfers_.group().block_bytes;
      return ReceiveNext(receives, piece.lane);
    });
  }
  CUBIT_RETURN_IF_ERROR(transfers_.End(status));
  for (const OutgoingMessage& m : sends) recorder().Finish(m.record, true);
  return absl::OkStatus();
}

}  // namespace

struct MpiSession::State {
  MpiControl control;
  std::unique_ptr<Communicator> root;  // of which all groups are split
};

bool MpiSession::StartedByMpi() {
  if (std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr) return true;
  if (std::getenv("PMI_SIZE") != nullptr) return true;
  // An interactive shell of Slurm is a step too, of one task.
  const char* const tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  int count = 0;
  return tasks != nullptr && absl::SimpleAtoi(tasks, &count) && count > 1;
}

absl::StatusOr<std::unique_ptr<MpiSession>> MpiSession::Start() {
  int provided = 0;
  CUBIT_RETURN_IF_ERROR(MpiStatus(
      MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided),
      "MPI_Init_thread"));
  if (provided != MPI_THREAD_MULTIPLE) {
    return absl::FailedPreconditionError(
        "this MPI was built without support for threads "
        "(MPI_THREAD_MULTIPLE); Debian's libopenmpi-dev has it");
  }
  auto state = std::make_unique<State>();
  auto group = std::make_shared<MpiGroup>();
  group->id = 0;  // which NewGroupId does not give
  group->name = "mpi";
  group->rank = state->control.rank();
  for (int q = 0; q < state->control.size(); ++q) {
    group->world_ranks.push_back(q);
  }
  state->control.Add(group, nullptr);
  state->root = std::make_unique<MpiCommunicator>(&state->control, group);
  return std::unique_ptr<MpiSession>(new MpiSession(std::move(state)));
}

MpiSession::MpiSession(std::unique_ptr<State> state)
    : state_(std::move(state)) {}

MpiSession::~MpiSession() {
  CUBIT_CHECK_EQ(state_->control.num_groups(), 1)
      << "communicators outlive their session";
  state_->root.reset();
  if (!state_->control.Meet(absl::Seconds(30))) {
    LogError(
        "other ranks did not end within 30s of this one; ending without "
        "them");
    std::_Exit(kExitFailed);
  }
  state_.reset();
  MPI_Finalize();
}

int MpiSession::rank() const { return state_->control.rank(); }
int MpiSession::size() const { return state_->control.size(); }

absl::StatusOr<std::unique_ptr<Communicator>> MpiSession::MakeCommunicator(
    absl::string_view name, const MpiOptions& options) {
  CUBIT_CHECK(options.timeout > absl::ZeroDuration());
  CUBIT_CHECK(options.block_bytes >= 1 && options.block_bytes <= int64_t{1}
                                                                     << 30);
  CUBIT_ASSIGN_OR_RETURN(auto communicator, state_->root->Split(0, 0, name));
  MpiGroup& group = static_cast<MpiCommunicator&>(*communicator).group();
  group.timeout = options.timeout;
  group.block_bytes = options.block_bytes;
  return communicator;
}

}  // namespace cubit
