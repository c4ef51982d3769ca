// SPDX-License-Identifier: Apache-2.0
//
// Communication beside computation: a queue of operations on a communicator of
// its own, in order, that the computing stream need not wait for. On CUDA the
// lane is a stream; where a stream runs each call before it returns, it is a
// thread.

#ifndef CUBIT_RUNTIME_COMMUNICATION_LANE_H_
#define CUBIT_RUNTIME_COMMUNICATION_LANE_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"

#include "runtime/communicator.h"
#include "runtime/device.h"

namespace cubit {

class CommunicationLane {
 public:
  using Work = std::function<absl::Status(Communicator&, Stream&)>;
  // Numbers of posted work, from 0, in order.
  using Ticket = int64_t;

  explicit CommunicationLane(std::unique_ptr<Communicator> communicator);
  // Waits for what was posted.
  ~CommunicationLane();
  CommunicationLane(const CommunicationLane&) = delete;
  CommunicationLane& operator=(const CommunicationLane&) = delete;

  // `work` runs after everything that `stream` holds now and after the work
  // posted before. It may call the lane's communicator and copy on the stream
  // it is given. All ranks post the same collectives in the same order. Tensors
  // that it reads must not change, and what it writes must not be read, before
  // Wait.
  Ticket Post(Stream& stream, Work work);

  // What follows on `stream` begins after that work. Where streams do not run
  // ahead, the caller waits.
  void Wait(Ticket ticket, Stream& stream);

  // Whether that work is done; does not wait. Where streams run ahead: whether
  // the device has come past it.
  bool Done(Ticket ticket) const;

  // The first error of any work. After one, later work is not run.
  absl::Status status() const;

  // Fails the lane's group (Communicator::Abort), so that nobody waits on.
  void Abort(const absl::Status& reason);

  int rank() const;
  int size() const;
  // Of its communicator, for the watchdog.
  std::shared_ptr<FlightRecorder> flight_recorder() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace cubit

#endif  // CUBIT_RUNTIME_COMMUNICATION_LANE_H_
