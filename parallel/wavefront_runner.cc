// SPDX-License-Identifier: Apache-2.0

#include "parallel/wavefront_runner.h"

#include <vector>

#include "runtime/check.h"

namespace cubit {
namespace {

class Runner {
 public:
  Runner(const WavefrontSchedule& schedule, CommunicationLane& lane,
         WavefrontTrace* trace, Stream& stream, WavefrontWork* work)
      : schedule_(schedule),
        lane_(lane),
        trace_(trace),
        stream_(stream),
        work_(work) {}

  absl::Status Run() {
    const auto& program = schedule_.ranks[static_cast<size_t>(lane_.rank())];
    PostUpTo(program.initial_posts);
    for (const WavefrontStep& step : program.steps) {
      if (!HasArrived(step.needs)) break;
      Compute(step.action);
      PostUpTo(step.posts);
    }
    // The tensors are the lane's until it is through with them.
    if (!tickets_.empty()) lane_.Wait(tickets_.back(), stream_);
    absl::Status status = lane_.status();
    if (!status.ok()) lane_.Abort(status);
    return status;
  }

 private:
  // Waits for messages [0, needs); false if the lane failed.
  bool HasArrived(int64_t needs) {
    if (needs <= arrived_) return true;
    lane_.Wait(tickets_[static_cast<size_t>(needs - 1)], stream_);
    arrived_ = needs;
    return lane_.status().ok();
  }

  void Compute(const WavefrontAction& action) {
    if (trace_ == nullptr) {
      work_->Compute(action);
      return;
    }
    const double start = trace_->Now();
    work_->Compute(action);
    trace_->Record({lane_.rank(), action, start, trace_->Now()});
  }

  void PostUpTo(int64_t posts) {
    while (static_cast<int64_t>(tickets_.size()) < posts) {
      const WavefrontMessage& message = schedule_.messages[tickets_.size()];
      WavefrontWork* const work = work_;
      tickets_.push_back(lane_.Post(
          stream_,
          [work, &message](Communicator& communicator, Stream& stream) {
            return work->Communicate(message, communicator, stream);
          }));
    }
  }

  const WavefrontSchedule& schedule_;
  CommunicationLane& lane_;
  WavefrontTrace* const trace_;
  Stream& stream_;
  WavefrontWork* const work_;
  std::vector<CommunicationLane::Ticket> tickets_;  // of messages posted
  int64_t arrived_ = 0;
};

}  // namespace

absl::Status RunWavefront(const WavefrontSchedule& schedule,
                          CommunicationLane& lane, WavefrontTrace* trace,
                          Stream& stream, WavefrontWork* work) {
  CUBIT_CHECK_EQ(schedule.shape.cp_size, lane.size());
  return Runner(schedule, lane, trace, stream, work).Run();
}

}  // namespace cubit
