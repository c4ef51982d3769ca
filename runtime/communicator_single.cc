// SPDX-License-Identifier: Apache-2.0

#include "runtime/communicator_single.h"

#include <cstddef>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

#include "runtime/check.h"
#include "runtime/device.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

void Copy(const ConstTensor& from, const Tensor& to, Stream& stream) {
  if (from.size_bytes() == 0 || from.raw() == to.raw()) return;
  CopyOnDevice(to.raw(), from.raw(), from.size_bytes(), stream);
}

// The error of a communicator and of those split from it, which hold a link to
// it: an Abort is seen below, never above.
struct Failure {
  explicit Failure(std::shared_ptr<Failure> above) : parent(std::move(above)) {}

  absl::Status Get() {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!status.ok()) return status;
    }
    return parent == nullptr ? absl::OkStatus() : parent->Get();
  }
  void Set(const absl::Status& reason) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (status.ok()) status = reason;
  }

  const std::shared_ptr<Failure> parent;
  std::mutex mutex;
  absl::Status status;
};

class SingleCommunicator : public Communicator {
 public:
  SingleCommunicator(std::string name, std::shared_ptr<Failure> parent)
      : Communicator(std::move(name), 0, 1),
        failure_(std::make_shared<Failure>(std::move(parent))) {}

  absl::Status Health() override { return failure_->Get(); }
  void Abort(const absl::Status& reason) override {
    CUBIT_CHECK(!reason.ok());
    failure_->Set(reason);
  }

 protected:
  absl::Status RunCollective(const CollectiveCall& call,
                             Stream& stream) override {
    Copy(call.input, call.output, stream);
    recorder().Finish(call.record, true);
    return absl::OkStatus();
  }

  absl::Status RunExchange(std::vector<OutgoingMessage>& sends,
                           std::vector<IncomingMessage>& receives,
                           Stream& stream) override {
    // All messages are to this rank itself, and as many from it.
    for (size_t i = 0; i < sends.size(); ++i) {
      const ConstTensor& from = sends[i].data;
      const Tensor& to = receives[i].data;
      if (from.dtype() != to.dtype() || from.shape() != to.shape()) {
        absl::Status status = absl::InvalidArgumentError(
            absl::StrCat(Prefix(OperationKind::kSend, sends[i].sequence),
                         "rank 0 sends ", Name(from.dtype()), " ",
                         from.shape().ToString(), ", rank 0 receives ",
                         Name(to.dtype()), " ", to.shape().ToString()));
        Abort(status);
        return status;
      }
      Copy(from, to, stream);
      recorder().Finish(sends[i].record, true);
      recorder().Finish(receives[i].record, true);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<Communicator>> RunSplit(
      const CollectiveCall& call) override {
    std::unique_ptr<Communicator> group;
    if (call.color >= 0) {
      group = std::make_unique<SingleCommunicator>(call.name, failure_);
    }
    return group;
  }

 private:
  const std::shared_ptr<Failure> failure_;
};

}  // namespace

std::unique_ptr<Communicator> MakeSingleCommunicator(absl::string_view name) {
  return std::make_unique<SingleCommunicator>(std::string(name), nullptr);
}

}  // namespace cubit
