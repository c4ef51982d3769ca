// SPDX-License-Identifier: Apache-2.0

#include "runtime/communicator.h"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "runtime/check.h"
#include "runtime/dtype.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

using Kind = OperationKind;

absl::string_view Name(OperationRecord::State state) {
  switch (state) {
    case OperationRecord::State::kPending:
      return "pending";
    case OperationRecord::State::kDone:
      return "done";
    case OperationRecord::State::kFailed:
      return "failed";
  }
  return "?";
}

std::string Describe(const ConstTensor& x) {
  return absl::StrCat(Name(x.dtype()), " ", x.shape().ToString());
}

bool IsReduction(Kind kind) {
  return kind == Kind::kAllReduce || kind == Kind::kReduceScatter;
}

bool CanReduce(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kFloat64 ||
         dtype == DType::kBFloat16 || dtype == DType::kInt64;
}

absl::Status CheckMemory(const ConstTensor& x, absl::string_view what) {
  if (x.empty() && x.size_bytes() > 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " ", Describe(x), " points at no memory"));
  }
  return absl::OkStatus();
}

bool Overlap(const ConstTensor& a, const ConstTensor& b) {
  const auto a_begin = reinterpret_cast<uintptr_t>(a.raw());
  const auto b_begin = reinterpret_cast<uintptr_t>(b.raw());
  return a_begin < b_begin + static_cast<uintptr_t>(b.size_bytes()) &&
         b_begin < a_begin + static_cast<uintptr_t>(a.size_bytes());
}

// Whether `part` is part number `index` of `whole`.
bool IsPart(const ConstTensor& part, const ConstTensor& whole, int index) {
  return part.raw() ==
         static_cast<const char*>(whole.raw()) + index * part.size_bytes();
}

// Elements of the output for `n` of the input.
bool CountsAgree(const CollectiveCall& call, int size) {
  const int64_t in = call.input.num_elements();
  const int64_t out = call.output.num_elements();
  switch (call.kind) {
    case Kind::kAllReduce:
      return call.input.shape() == call.output.shape();
    case Kind::kAllGather:
      return out == in * size;
    case Kind::kReduceScatter:
      return in == out * size;
    case Kind::kAllToAll:
      return in == out && in % size == 0;
    default:
      return true;
  }
}

absl::string_view WantedCounts(Kind kind) {
  switch (kind) {
    case Kind::kAllReduce:
      return "equal shapes";
    case Kind::kAllGather:
      return "an output of size times the input";
    case Kind::kReduceScatter:
      return "an input of size times the output";
    default:
      return "equal numbers of elements, divisible by size";
  }
}

bool InPlaceIsRight(const CollectiveCall& call, int rank) {
  switch (call.kind) {
    case Kind::kAllReduce:
      return call.input.raw() == call.output.raw();
    case Kind::kAllGather:
      return IsPart(call.input, call.output, rank);
    case Kind::kReduceScatter:
      return IsPart(call.output, call.input, rank);
    case Kind::kBroadcast:
      return true;
    default:
      return false;
  }
}

}  // namespace

absl::string_view Name(OperationKind kind) {
  switch (kind) {
    case Kind::kAllReduce:
      return "AllReduce";
    case Kind::kAllGather:
      return "AllGather";
    case Kind::kReduceScatter:
      return "ReduceScatter";
    case Kind::kAllToAll:
      return "AllToAll";
    case Kind::kBroadcast:
      return "Broadcast";
    case Kind::kBarrier:
      return "Barrier";
    case Kind::kSplit:
      return "Split";
    case Kind::kSend:
      return "Send";
    case Kind::kRecv:
      return "Recv";
  }
  return "?";
}

std::string OperationRecord::ToString() const {
  std::string peer_text;
  if (kind == Kind::kSend) peer_text = absl::StrCat(" to rank ", peer);
  if (kind == Kind::kRecv) peer_text = absl::StrCat(" from rank ", peer);
  return absl::StrCat(Name(kind), " #", sequence, peer_text, " of ", bytes,
                      " bytes (", Name(state), ")");
}

int64_t FlightRecorder::Begin(OperationRecord record) {
  record.start = std::chrono::steady_clock::now();
  const std::lock_guard<std::mutex> lock(mutex_);
  if (records_.size() == kCapacity) records_.pop_front();
  records_.push_back(std::move(record));
  return begun_++;
}

void FlightRecorder::Finish(int64_t number, bool ok) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const int64_t first = begun_ - static_cast<int64_t>(records_.size());
  if (number < first) return;
  OperationRecord& record = records_[static_cast<size_t>(number - first)];
  if (record.state != OperationRecord::State::kPending) return;
  record.state =
      ok ? OperationRecord::State::kDone : OperationRecord::State::kFailed;
}

void FlightRecorder::SetRefresh(std::function<void()> refresh) {
  const std::lock_guard<std::mutex> lock(refresh_mutex_);
  refresh_ = std::move(refresh);
}

void FlightRecorder::Refresh() const {
  const std::lock_guard<std::mutex> lock(refresh_mutex_);
  if (refresh_ != nullptr) refresh_();
}

std::vector<OperationRecord> FlightRecorder::Records() const {
  Refresh();
  const std::lock_guard<std::mutex> lock(mutex_);
  return {records_.begin(), records_.end()};
}

std::string FlightRecorder::Last() const {
  Refresh();
  const std::lock_guard<std::mutex> lock(mutex_);
  return records_.empty() ? "no operation yet" : records_.back().ToString();
}

std::string CollectiveCall::ToString() const {
  switch (kind) {
    case Kind::kBarrier:
    case Kind::kSplit:
      return std::string(Name(kind));
    case Kind::kBroadcast:
      return absl::StrCat("Broadcast(root ", root, ", ", Describe(input), ")");
    default:
      break;
  }
  const absl::string_view op = reduce_op == ReduceOp::kSum ? "sum, " : "max, ";
  return absl::StrCat(Name(kind), "(", IsReduction(kind) ? op : "",
                      Describe(input), ")");
}

Communicator::Communicator(std::string name, int rank, int size)
    : name_(std::move(name)),
      rank_(rank),
      size_(size),
      recorder_(std::make_shared<FlightRecorder>(name_, rank, size)),
      next_send_(static_cast<size_t>(size)),
      next_recv_(static_cast<size_t>(size)) {
  CUBIT_CHECK(rank >= 0 && rank < size) << "rank " << rank << " of " << size;
}

std::string Communicator::Prefix(OperationKind kind, int64_t sequence) const {
  return absl::StrFormat("group \"%s\", rank %d of %d, %s #%d: ", name_, rank_,
                         size_, std::string(Name(kind)), sequence);
}

absl::Status Communicator::AllReduce(const ConstTensor& input,
                                     const Tensor& output, ReduceOp op,
                                     Stream& stream) {
  CollectiveCall call;
  call.kind = Kind::kAllReduce;
  call.reduce_op = op;
  call.input = input;
  call.output = output;
  return Collective(std::move(call), stream);
}

absl::Status Communicator::AllGather(const ConstTensor& input,
                                     const Tensor& output, Stream& stream) {
  CollectiveCall call;
  call.kind = Kind::kAllGather;
  call.input = input;
  call.output = output;
  return Collective(std::move(call), stream);
}

absl::Status Communicator::ReduceScatter(const ConstTensor& input,
                                         const Tensor& output, ReduceOp op,
                                         Stream& stream) {
  CollectiveCall call;
  call.kind = Kind::kReduceScatter;
  call.reduce_op = op;
  call.input = input;
  call.output = output;
  return Collective(std::move(call), stream);
}

absl::Status Communicator::AllToAll(const ConstTensor& input,
                                    const Tensor& output, Stream& stream) {
  CollectiveCall call;
  call.kind = Kind::kAllToAll;
  call.input = input;
  call.output = output;
  return Collective(std::move(call), stream);
}

absl::Status Communicator::Broadcast(const Tensor& x, int root,
                                     Stream& stream) {
  CollectiveCall call;
  call.kind = Kind::kBroadcast;
  call.root = root;
  call.input = x;
  call.output = x;
  return Collective(std::move(call), stream);
}

absl::Status Communicator::Barrier(Stream& stream) {
  CollectiveCall call;
  call.kind = Kind::kBarrier;
  return Collective(std::move(call), stream);
}

absl::Status Communicator::Send(const ConstTensor& x, int to, Stream& stream) {
  OutgoingMessage message;
  message.data = x;
  message.to = to;
  return Exchange({message}, {}, stream);
}

absl::Status Communicator::Recv(const Tensor& x, int from, Stream& stream) {
  IncomingMessage message;
  message.data = x;
  message.from = from;
  return Exchange({}, {message}, stream);
}

absl::Status Communicator::Exchange(std::vector<OutgoingMessage> sends,
                                    std::vector<IncomingMessage> receives,
                                    Stream& stream) {
  CUBIT_RETURN_IF_ERROR(Health());
  absl::Status status = CheckExchange(sends, receives);
  if (!status.ok()) {
    Abort(status);
    return status;
  }
  Number(sends, receives);
  status = RunExchange(sends, receives, stream);
  if (!status.ok()) {
    for (const OutgoingMessage& m : sends) recorder_->Finish(m.record, false);
    for (const IncomingMessage& m : receives) {
      recorder_->Finish(m.record, false);
    }
  }
  return status;
}

absl::StatusOr<std::unique_ptr<Communicator>> Communicator::Split(
    int color, int key, absl::string_view name) {
  CUBIT_RETURN_IF_ERROR(Health());
  CollectiveCall call;
  call.kind = Kind::kSplit;
  call.color = color;
  call.key = key;
  call.name = std::string(name);
  Number(call);
  auto group = RunSplit(call);
  recorder_->Finish(call.record, group.ok());
  return group;
}

absl::Status Communicator::Collective(CollectiveCall call, Stream& stream) {
  CUBIT_RETURN_IF_ERROR(Health());
  Number(call);
  absl::Status status = CheckCollective(call);
  if (status.ok()) {
    status = RunCollective(call, stream);
  } else {
    Abort(status);
  }
  if (!status.ok()) recorder_->Finish(call.record, false);
  return status;
}

// Reads only what this rank knows; what differs between ranks is found where
// they meet.
absl::Status Communicator::CheckCollective(const CollectiveCall& call) const {
  const std::string prefix = Prefix(call.kind, call.sequence);
  const auto error = [&prefix](const std::string& text) {
    return absl::InvalidArgumentError(prefix + text);
  };
  const ConstTensor output = call.output;
  if (call.kind == Kind::kBarrier) return absl::OkStatus();
  for (const ConstTensor& x : {call.input, output}) {
    const absl::Status memory = CheckMemory(x, "tensor");
    if (!memory.ok()) return error(std::string(memory.message()));
  }
  if (call.kind == Kind::kBroadcast && (call.root < 0 || call.root >= size_)) {
    return error(
        absl::StrFormat("root %d, wanted 0 to %d", call.root, size_ - 1));
  }
  if (call.input.dtype() != output.dtype()) {
    return error(absl::StrCat("input ", Describe(call.input), ", output ",
                              Describe(output), ": wanted one dtype"));
  }
  if (IsReduction(call.kind) && !CanReduce(call.input.dtype())) {
    return error(
        absl::StrCat("dtype ", Name(call.input.dtype()),
                     " cannot be reduced, wanted F32, F64, BF16 or I64"));
  }
  if (!CountsAgree(call, size_)) {
    return error(absl::StrCat("input ", Describe(call.input), ", output ",
                              Describe(output), ": wanted ",
                              WantedCounts(call.kind), " with size ", size_));
  }
  if (Overlap(call.input, output) && !InPlaceIsRight(call, rank_)) {
    return error(absl::StrCat(
        "input ", Describe(call.input), " and output ", Describe(output),
        " overlap other than in this operation's in-place form"));
  }
  return absl::OkStatus();
}

absl::Status Communicator::CheckExchange(
    const std::vector<OutgoingMessage>& sends,
    const std::vector<IncomingMessage>& receives) {
  std::vector<ConstTensor> to_self;
  std::vector<ConstTensor> from_self;
  const auto check = [this](Kind kind, const ConstTensor& data, int peer,
                            const std::vector<int64_t>& next) {
    const bool known = peer >= 0 && peer < size_;
    const std::string prefix =
        Prefix(kind, known ? next[static_cast<size_t>(peer)] : 0);
    if (!known) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "%speer %d, wanted 0 to %d", prefix, peer, size_ - 1));
    }
    const absl::Status memory = CheckMemory(data, "message");
    return memory.ok() ? memory
                       : absl::InvalidArgumentError(
                             absl::StrCat(prefix, memory.message()));
  };
  for (const OutgoingMessage& m : sends) {
    CUBIT_RETURN_IF_ERROR(check(Kind::kSend, m.data, m.to, next_send_));
    if (m.to == rank_) to_self.push_back(m.data);
  }
  for (const IncomingMessage& m : receives) {
    CUBIT_RETURN_IF_ERROR(check(Kind::kRecv, m.data, m.from, next_recv_));
    if (m.from == rank_) from_self.push_back(m.data);
  }
  if (to_self.size() != from_self.size()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s%d messages to this rank itself, %d from it: wanted as many in one "
        "Exchange",
        Prefix(Kind::kSend, next_send_[static_cast<size_t>(rank_)]),
        to_self.size(), from_self.size()));
  }
  return absl::OkStatus();
}

void Communicator::Number(CollectiveCall& call) {
  call.sequence = next_collective_++;
  OperationRecord record;
  record.group = name_;
  record.kind = call.kind;
  record.sequence = call.sequence;
  record.bytes = call.input.empty() ? 0 : call.input.size_bytes();
  call.record = recorder_->Begin(std::move(record));
}

void Communicator::Number(std::vector<OutgoingMessage>& sends,
                          std::vector<IncomingMessage>& receives) {
  const auto begin = [this](Kind kind, int peer, int64_t bytes,
                            int64_t sequence) {
    OperationRecord record;
    record.group = name_;
    record.kind = kind;
    record.sequence = sequence;
    record.peer = peer;
    record.bytes = bytes;
    return recorder_->Begin(std::move(record));
  };
  for (OutgoingMessage& m : sends) {
    m.sequence = next_send_[static_cast<size_t>(m.to)]++;
    m.record = begin(Kind::kSend, m.to, m.data.size_bytes(), m.sequence);
  }
  for (IncomingMessage& m : receives) {
    m.sequence = next_recv_[static_cast<size_t>(m.from)]++;
    m.record = begin(Kind::kRecv, m.from, m.data.size_bytes(), m.sequence);
  }
}

}  // namespace cubit
