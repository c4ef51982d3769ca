// SPDX-License-Identifier: Apache-2.0
//
// Carries out this rank's part of a wavefront solve (wavefront_schedule.h).

#ifndef CUBIT_PARALLEL_WAVEFRONT_RUNNER_H_
#define CUBIT_PARALLEL_WAVEFRONT_RUNNER_H_

#include <functional>

#include "absl/status/status.h"

#include "parallel/wavefront_schedule.h"
#include "parallel/wavefront_trace.h"
#include "runtime/communication_lane.h"
#include "runtime/communicator.h"
#include "runtime/device.h"

namespace cubit {

// What actions and messages mean, on tensors.
class WavefrontWork {
 public:
  virtual ~WavefrontWork() = default;

  // Runs the action on the stream of RunWavefront. What it reads of other ranks
  // has arrived.
  virtual void Compute(const WavefrontAction& action) = 0;
  // Runs the message's collectives, on the lane, beside Compute of other
  // actions.
  virtual absl::Status Communicate(const WavefrontMessage& message,
                                   Communicator& communicator,
                                   Stream& stream) = 0;
};

// Who wants to know of a rank's wavefronts.
struct WavefrontObserver {
  WavefrontTrace* trace = nullptr;  // null while nobody asks
  // Told of each action before it waits for its inputs, and null at the end of
  // the wavefront; may be empty.
  std::function<void(const WavefrontAction*)> watch;
};

// Runs the steps of rank lane.rank() in their order. A message is posted to the
// lane as soon as this rank has added its part and has posted the messages
// before it; so a rank posts what it receives ahead of time, and what it sends
// when it is there. Whoever posts to the lane meanwhile does so in an order
// that is the same on all ranks.
//
// Returns the lane's error, after it was stopped for all ranks. Nobody waits
// then: the rest of the actions is left out. What the work wrote is whole for
// `stream` when this returns OK. `observer` may be null. CHECK: the schedule is
// of as many ranks as the lane.
absl::Status RunWavefront(const WavefrontSchedule& schedule,
                          CommunicationLane& lane,
                          const WavefrontObserver* observer, Stream& stream,
                          WavefrontWork* work);

}  // namespace cubit

#endif  // CUBIT_PARALLEL_WAVEFRONT_RUNNER_H_
