// SPDX-License-Identifier: Apache-2.0
//
// The sends and receives of one operation of communicator_mpi.cc, and the one
// place where its rank waits: Complete() polls them, the notices of other ranks
// and the clock.
//
// What is sent is first copied to `staging`: MPI cannot take back a send, so
// when a group fails, its sends and their memory are kept for the process.
// Receives can be taken back, unless their message is on its way, which is then
// awaited.

#ifndef CUBIT_RUNTIME_MPI_TRANSFERS_H_
#define CUBIT_RUNTIME_MPI_TRANSFERS_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include <mpi.h>

#include "runtime/communicator.h"
#include "runtime/mpi_control.h"

namespace cubit {

// Memory that grows and is handed out piece by piece. Pieces are valid until
// the next Reserve.
class MpiScratch {
 public:
  // Forgets what was taken; contents stay if `bytes` are no more than before.
  void Reserve(int64_t bytes);
  char* Take(int64_t bytes);
  char* TakeCopy(const void* data, int64_t bytes);
  // The memory is now another's; the next Reserve gets new one.
  MpiControl::Buffer Release();

 private:
  MpiControl::Buffer memory_;
  int64_t capacity_ = 0;
  int64_t used_ = 0;
};

// What a send or receive is for.
struct MpiPurpose {
  OperationKind kind = OperationKind::kBarrier;
  int64_t sequence = 0;
  int peer = 0;     // in the group
  size_t lane = 0;  // the caller's, of messages
};

class MpiTransfers {
 public:
  // Called when a receive is done; may call Receive.
  using OnReceived = std::function<absl::Status(const MpiPurpose&)>;

  MpiTransfers(MpiControl* control, std::shared_ptr<MpiGroup> group);

  MpiControl& control() { return control_; }
  MpiGroup& group() { return *group_; }
  const std::shared_ptr<MpiGroup>& shared_group() const { return group_; }
  int rank() const { return group_->rank; }
  int size() const { return group_->size(); }
  // Ranks other than this one, i from 0 to size - 2. The next one is first, so
  // that not all begin with rank 0.
  int Other(int i) const { return (rank() + 1 + i) % size(); }

  MpiScratch& staging() { return staging_; }  // what is sent
  // What is received and is no output.
  MpiScratch& landing() { return landing_; }

  // The time limit of the operation runs from here.
  void Begin();
  // `data` is in staging(). A message (kSend) waits for its receiver.
  absl::Status Send(const MpiPurpose& purpose, const char* data, int64_t bytes);
  absl::Status Receive(const MpiPurpose& purpose, char* data, int64_t bytes);
  // Until all are done. DeadlineExceeded, Unavailable (a rank has left), or the
  // group's error.
  absl::Status Complete(const OnReceived& on_received = nullptr);
  // Of the operation: passes OK on; else fails the group, gets rid of what is
  // under way and returns the group's first error.
  absl::Status End(const absl::Status& status);

 private:
  struct Pending {
    MPI_Request request;
    MpiPurpose purpose;
    bool incoming;
  };

  absl::Status Post(int code, const Pending& pending);
  absl::Status TestAll(const OnReceived& on_received, bool* all, bool* any);
  absl::Status CheckPeers() const;
  std::string DescribeWait() const;
  void Drain();

  MpiControl& control_;
  const std::shared_ptr<MpiGroup> group_;
  std::chrono::steady_clock::time_point deadline_;
  std::vector<Pending> pending_;
  MpiScratch staging_;
  MpiScratch landing_;
};

}  // namespace cubit

#endif  // CUBIT_RUNTIME_MPI_TRANSFERS_H_
