// SPDX-License-Identifier: Apache-2.0

#include "parallel/wavefront_runner.h"

#include <vector>

#include "runtime/check.h"

namespace cubit {
namespace {

class Runner {
 public:
  Runner(const WavefrontSchedule& schedule, CommunicationLane& lane,
         const WavefrontObserver& observer, Stream& stream, WavefrontWork* work)
      : schedule_(schedule),
        lane_(lane),
        observer_(observer),
        stream_(stream),
        work_(work) {}

  absl::Status Run() {
    const auto& program = schedule_.ranks[static_cast<size_t>(lane_.rank())];
    if (observer_.trace != nullptr) {
      wavefront_ = observer_.trace->Begin(lane_.rank());
    }
    PostUpTo(program.initial_posts);
    for (const WavefrontStep& step : program.steps) {
      Tell(&step.action);
      if (!HasArrived(step.needs)) break;
      Compute(step.action);
      PostUpTo(step.posts);
    }
    // The tensors are the lane's until it is through with them.
    if (!tickets_.empty()) lane_.Wait(tickets_.back(), stream_);
    Tell(nullptr);
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

  void Tell(const WavefrontAction* action) const {
    if (observer_.watch != nullptr) observer_.watch(action);
  }

  void Compute(const WavefrontAction& action) {
    WavefrontTrace* const trace = observer_.trace;
    if (trace == nullptr) {
      work_->Compute(action);
      return;
    }
    const double start = trace->Now();
    work_->Compute(action);
    trace->Record({lane_.rank(), action, start, trace->Now(), wavefront_});
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
  const WavefrontObserver& observer_;
  Stream& stream_;
  WavefrontWork* const work_;
  std::vector<CommunicationLane::Ticket> tickets_;  // of messages posted
  int64_t arrived_ = 0;
  int64_t wavefront_ = 0;  // of the trace
};

}  // namespace

absl::Status RunWavefront(const WavefrontSchedule& schedule,
                          CommunicationLane& lane,
                          const WavefrontObserver* observer, Stream& stream,
                          WavefrontWork* work) {
  CUBIT_CHECK_EQ(schedule.shape.cp_size, lane.size());
  const WavefrontObserver nobody;
  return Runner(schedule, lane, observer == nullptr ? nobody : *observer,
                stream, work)
      .Run();
}

}  // namespace cubit
