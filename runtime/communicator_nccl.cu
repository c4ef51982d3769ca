// SPDX-License-Identifier: Apache-2.0

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include <nccl.h>

#include "runtime/check.h"
#include "runtime/communicator_nccl.h"
#include "runtime/cuda_check.h"
#include "runtime/device.h"
#include "runtime/dtype.h"
#include "runtime/status_macros.h"
#include "runtime/tensor.h"

namespace cubit {
namespace {

using Clock = std::chrono::steady_clock;
using Kind = OperationKind;

// What a barrier sums.
constexpr int64_t kBarrierBytes = 256;

ncclDataType_t NcclType(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return ncclFloat32;
    case DType::kFloat64:
      return ncclFloat64;
    case DType::kBFloat16:
      return ncclBfloat16;
    case DType::kInt32:
      return ncclInt32;
    case DType::kInt64:
      return ncclInt64;
    case DType::kUInt8:
      return ncclUint8;
  }
  CUBIT_CHECK(false) << Name(dtype);
  return ncclUint8;
}

ncclRedOp_t NcclOp(ReduceOp op) {
  return op == ReduceOp::kSum ? ncclSum : ncclMax;
}

absl::Status NcclError(ncclResult_t result, ncclComm_t comm,
                       const std::string& prefix) {
  return absl::UnavailableError(
      absl::StrCat(prefix, "NCCL: ", ncclGetErrorString(result), ": ",
                   ncclGetLastError(comm)));
}

class NcclCommunicator : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> host, ncclComm_t comm,
                   void* barrier, const NcclOptions& options)
      : Communicator(host->name(), host->rank(), host->size()),
        host_(std::move(host)),
        options_(options),
        barrier_(barrier),
        comm_(comm) {
    recorder().SetRefresh([this] { Refresh(); });
  }

  ~NcclCommunicator() override {
    recorder().SetRefresh(nullptr);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      // Destroying would wait for the others.
      if (comm_ != nullptr && status_.ok()) ncclCommDestroy(comm_);
      if (comm_ != nullptr && !status_.ok()) ncclCommAbort(comm_);
    }
    FreeDeviceBytes(barrier_, kBarrierBytes);
  }

  absl::Status Health() override {
    Refresh();
    return status();
  }
  void Abort(const absl::Status& reason) override {
    CUBIT_CHECK(!reason.ok());
    host_->Abort(reason);
    Refresh();
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
  // Queued on a stream and not yet known to be done.
  struct InFlight {
    Event done;
    std::vector<int64_t> records;
    std::string what;  // for an error
    Clock::time_point start;
  };

  absl::Status status() {
    const std::lock_guard<std::mutex> lock(status_mutex_);
    return status_;
  }
  void SetStatus(const absl::Status& reason) {
    const std::lock_guard<std::mutex> lock(status_mutex_);
    if (status_.ok()) status_ = reason;
  }
  // Of this rank's NCCL calls: fails the group on all ranks.
  absl::Status Fail(const absl::Status& reason);
  // Finishes records whose work is done and looks for failures; any thread.
  void Refresh();
  absl::Status FindFailure();
  void Track(std::vector<int64_t> records, std::string what, Stream& stream);

  ncclResult_t Enqueue(const CollectiveCall& call, cudaStream_t stream);
  ncclResult_t EnqueueAllToAll(const CollectiveCall& call, cudaStream_t stream);
  ncclResult_t EnqueueMessages(const std::vector<OutgoingMessage>& sends,
                               const std::vector<IncomingMessage>& receives,
                               cudaStream_t stream);
  absl::Status CopyToSelf(const std::vector<OutgoingMessage>& sends,
                          const std::vector<IncomingMessage>& receives,
                          Stream& stream);

  const std::unique_ptr<Communicator> host_;
  const NcclOptions options_;
  void* const barrier_;

  std::mutex status_mutex_;
  absl::Status status_;

  // Held while NCCL is called; Refresh passes by if it is.
  std::mutex mutex_;
  ncclComm_t comm_;  // null once aborted
  std::deque<InFlight> in_flight_;
  std::vector<Event> events_;  // to be used again
};

absl::Status NcclCommunicator::Fail(const absl::Status& reason) {
  SetStatus(reason);
  host_->Abort(reason);
  if (comm_ != nullptr) ncclCommAbort(std::exchange(comm_, nullptr));
  return status();
}

absl::Status NcclCommunicator::FindFailure() {
  CUBIT_RETURN_IF_ERROR(host_->Health());
  ncclResult_t result = ncclSuccess;
  if (comm_ != nullptr) ncclCommGetAsyncError(comm_, &result);
  if (result != ncclSuccess && result != ncclInProgress) {
    return NcclError(
        result, comm_,
        absl::StrCat("group \"", name(), "\", rank ", rank(), ": "));
  }
  if (!in_flight_.empty() && Clock::now() - in_flight_.front().start >
                                 absl::ToChronoNanoseconds(options_.timeout)) {
    return absl::DeadlineExceededError(absl::StrCat(
        in_flight_.front().what, "has not finished; gave up after ",
        absl::FormatDuration(options_.timeout)));
  }
  return absl::OkStatus();
}

void NcclCommunicator::Refresh() {
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (!lock.owns_lock()) return;
  while (!in_flight_.empty() && in_flight_.front().done.Reached()) {
    InFlight& first = in_flight_.front();
    // What an abort ended is not done.
    const bool ok = status().ok();
    for (const int64_t record : first.records) recorder().Finish(record, ok);
    events_.push_back(std::move(first.done));
    in_flight_.pop_front();
  }
  if (!status().ok()) return;
  const absl::Status failure = FindFailure();
  if (!failure.ok()) Fail(failure).IgnoreError();
}

void NcclCommunicator::Track(std::vector<int64_t> records, std::string what,
                             Stream& stream) {
  InFlight work;
  if (!events_.empty()) {
    work.done = std::move(events_.back());
    events_.pop_back();
  }
  work.done.Record(stream);
  work.records = std::move(records);
  work.what = std::move(what);
  work.start = Clock::now();
  in_flight_.push_back(std::move(work));
}

ncclResult_t NcclCommunicator::EnqueueAllToAll(const CollectiveCall& call,
                                               cudaStream_t stream) {
  const int64_t n = call.input.num_elements() / size();
  const int64_t bytes = n * SizeOf(call.input.dtype());
  if (n == 0) return ncclSuccess;
  const ncclDataType_t type = NcclType(call.input.dtype());
  const char* const in = static_cast<const char*>(call.input.raw());
  char* const out = static_cast<char*>(call.output.raw());
  ncclResult_t result = ncclGroupStart();
  for (int q = 0; q < size() && result == ncclSuccess; ++q) {
    result = ncclSend(in + q * bytes, n, type, q, comm_, stream);
    if (result == ncclSuccess) {
      result = ncclRecv(out + q * bytes, n, type, q, comm_, stream);
    }
  }
  const ncclResult_t end = ncclGroupEnd();
  return result == ncclSuccess ? end : result;
}

ncclResult_t NcclCommunicator::Enqueue(const CollectiveCall& call,
                                       cudaStream_t stream) {
  const void* const in = call.input.raw();
  void* const out = call.output.raw();
  const ncclDataType_t type = NcclType(call.input.dtype());
  const ncclRedOp_t op = NcclOp(call.reduce_op);
  switch (call.kind) {
    case Kind::kAllReduce:
      return ncclAllReduce(in, out, call.input.num_elements(), type, op, comm_,
                           stream);
    case Kind::kAllGather:
      return ncclAllGather(in, out, call.input.num_elements(), type, comm_,
                           stream);
    case Kind::kReduceScatter:
      return ncclReduceScatter(in, out, call.output.num_elements(), type, op,
                               comm_, stream);
    case Kind::kAllToAll:
      return EnqueueAllToAll(call, stream);
    case Kind::kBroadcast:
      return ncclBroadcast(in, out, call.input.num_elements(), type, call.root,
                           comm_, stream);
    case Kind::kBarrier:
      return ncclAllReduce(barrier_, barrier_, 1, ncclInt32, ncclSum, comm_,
                           stream);
    default:
      CUBIT_CHECK(false) << Name(call.kind);
      return ncclInvalidUsage;
  }
}

absl::Status NcclCommunicator::RunCollective(const CollectiveCall& call,
                                             Stream& stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  CUBIT_RETURN_IF_ERROR(status());
  const std::string prefix = Prefix(call.kind, call.sequence);
  const ncclResult_t result = Enqueue(call, CudaStream(stream));
  if (result != ncclSuccess) return Fail(NcclError(result, comm_, prefix));
  Track({call.record}, prefix, stream);
  return absl::OkStatus();
}

ncclResult_t NcclCommunicator::EnqueueMessages(
    const std::vector<OutgoingMessage>& sends,
    const std::vector<IncomingMessage>& receives, cudaStream_t stream) {
  ncclResult_t result = ncclGroupStart();
  for (const OutgoingMessage& m : sends) {
    if (m.to == rank() || m.data.size_bytes() == 0) continue;
    if (result != ncclSuccess) break;
    result = ncclSend(m.data.raw(), m.data.size_bytes(), ncclUint8, m.to, comm_,
                      stream);
  }
  for (const IncomingMessage& m : receives) {
    if (m.from == rank() || m.data.size_bytes() == 0) continue;
    if (result != ncclSuccess) break;
    result = ncclRecv(m.data.raw(), m.data.size_bytes(), ncclUint8, m.from,
                      comm_, stream);
  }
  const ncclResult_t end = ncclGroupEnd();
  return result == ncclSuccess ? end : result;
}

absl::Status NcclCommunicator::CopyToSelf(
    const std::vector<OutgoingMessage>& sends,
    const std::vector<IncomingMessage>& receives, Stream& stream) {
  auto receive = receives.begin();
  for (const OutgoingMessage& m : sends) {
    if (m.to != rank()) continue;
    while (receive->from != rank()) ++receive;
    const Tensor& to = receive->data;
    ++receive;
    if (m.data.dtype() != to.dtype() || m.data.shape() != to.shape()) {
      return absl::InvalidArgumentError(absl::StrCat(
          Prefix(Kind::kSend, m.sequence), "sent ", Name(m.data.dtype()), " ",
          m.data.shape().ToString(), ", the receiver expects ",
          Name(to.dtype()), " ", to.shape().ToString()));
    }
    if (m.data.size_bytes() == 0) continue;
    CopyOnDevice(to.raw(), m.data.raw(), m.data.size_bytes(), stream);
  }
  return absl::OkStatus();
}

absl::Status NcclCommunicator::RunExchange(
    std::vector<OutgoingMessage>& sends, std::vector<IncomingMessage>& receives,
    Stream& stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  CUBIT_RETURN_IF_ERROR(status());
  std::string what =
      absl::StrCat("group \"", name(), "\", rank ", rank(), ": ");
  std::vector<int64_t> records;
  for (const OutgoingMessage& m : sends) {
    records.push_back(m.record);
    absl::StrAppend(&what, "Send #", m.sequence, " to rank ", m.to, " ");
  }
  for (const IncomingMessage& m : receives) {
    records.push_back(m.record);
    absl::StrAppend(&what, "Recv #", m.sequence, " from rank ", m.from, " ");
  }
  const absl::Status copied = CopyToSelf(sends, receives, stream);
  if (!copied.ok()) return Fail(copied);
  const ncclResult_t result =
      EnqueueMessages(sends, receives, CudaStream(stream));
  if (result != ncclSuccess) return Fail(NcclError(result, comm_, what));
  Track(std::move(records), std::move(what), stream);
  return absl::OkStatus();
}

// `host` is the new group's; null for a rank that is in none.
absl::StatusOr<std::unique_ptr<Communicator>> Adopt(
    std::unique_ptr<Communicator> host, ncclComm_t comm,
    const NcclOptions& options) {
  int rank = -1;
  ncclCommUserRank(comm, &rank);
  CUBIT_CHECK_EQ(rank, host->rank());
  CUBIT_ASSIGN_OR_RETURN(void* const barrier,
                         AllocateDeviceBytes(kBarrierBytes));
  return std::unique_ptr<Communicator>(std::make_unique<NcclCommunicator>(
      std::move(host), comm, barrier, options));
}

absl::StatusOr<std::unique_ptr<Communicator>> NcclCommunicator::RunSplit(
    const CollectiveCall& call) {
  // Compares the calls, too.
  CUBIT_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> host,
                         host_->Split(call.color, call.key, call.name));
  const std::lock_guard<std::mutex> lock(mutex_);
  CUBIT_RETURN_IF_ERROR(status());
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  ncclComm_t child = nullptr;
  const ncclResult_t result =
      ncclCommSplit(comm_, call.color < 0 ? NCCL_SPLIT_NOCOLOR : call.color,
                    call.key, &child, &config);
  if (result != ncclSuccess) {
    return Fail(NcclError(result, comm_, Prefix(call.kind, call.sequence)));
  }
  if (host == nullptr) return std::unique_ptr<Communicator>();
  return Adopt(std::move(host), child, options_);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MakeNcclCommunicator(
    std::unique_ptr<Communicator> host, const NcclOptions& options) {
  setenv("NCCL_NVLS_ENABLE", "0", /*overwrite=*/0);
  ncclUniqueId id = {};
  ncclResult_t result = ncclSuccess;
  if (host->rank() == 0) result = ncclGetUniqueId(&id);
  if (result != ncclSuccess) {
    const absl::Status error = NcclError(result, nullptr, "");
    host->Abort(error);
    return error;
  }
  Stream stream;
  CUBIT_RETURN_IF_ERROR(host->Broadcast(
      Tensor(id.internal, DType::kUInt8, {NCCL_UNIQUE_ID_BYTES}), 0, stream));
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  ncclComm_t comm = nullptr;
  result =
      ncclCommInitRankConfig(&comm, host->size(), id, host->rank(), &config);
  if (result != ncclSuccess) {
    const absl::Status error =
        NcclError(result, comm, absl::StrCat("group \"", host->name(), "\": "));
    host->Abort(error);
    return error;
  }
  return Adopt(std::move(host), comm, options);
}

}  // namespace cubit
