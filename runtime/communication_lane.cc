// SPDX-License-Identifier: Apache-2.0

#include "runtime/communication_lane.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/check.h"

namespace cubit {

// Two ways to run beside the caller. Where streams run ahead of the host
// (native() is a handle), work is issued at once on a stream of the lane's own,
// between two events. Elsewhere a thread runs it.
struct CommunicationLane::State {
  explicit State(std::unique_ptr<Communicator> c)
      : communicator(std::move(c)), runs_ahead(stream.native() != nullptr) {
    if (!runs_ahead) thread = std::thread([this] { RunQueue(); });
  }

  ~State() {
    if (runs_ahead) {
      stream.Synchronize();
      return;
    }
    {
      const std::lock_guard<std::mutex> lock(mutex);
      stopping = true;
    }
    changed.notify_all();
    thread.join();
  }

  void RunQueue() {
    std::unique_lock<std::mutex> lock(mutex);
    while (true) {
      changed.wait(lock, [this] { return stopping || !queue.empty(); });
      if (queue.empty()) return;
      const Work work = std::move(queue.front());
      queue.pop_front();
      if (first_error.ok()) {
        lock.unlock();
        const absl::Status result = work(*communicator, stream);
        lock.lock();
        if (first_error.ok()) first_error = result;
      }
      ++num_done;
      changed.notify_all();
    }
  }

  const std::unique_ptr<Communicator> communicator;
  Stream stream;
  const bool runs_ahead;

  mutable std::mutex mutex;
  std::condition_variable changed;
  absl::Status first_error;
  int64_t num_posted = 0;

  // Of the thread.
  std::deque<Work> queue;
  int64_t num_done = 0;
  bool stopping = false;
  std::thread thread;

  // Of the stream: one event for each of the last kEvents tickets; older work
  // is done when a newer one is.
  static constexpr size_t kEvents = 256;
  Event issued;  // on the caller's stream
  std::vector<Event> done{kEvents};
};

CommunicationLane::CommunicationLane(std::unique_ptr<Communicator> communicator)
    : state_(std::make_unique<State>(std::move(communicator))) {}

CommunicationLane::~CommunicationLane() = default;

CommunicationLane::Ticket CommunicationLane::Post(Stream& stream, Work work) {
  State& state = *state_;
  const std::lock_guard<std::mutex> lock(state.mutex);
  const Ticket ticket = state.num_posted++;
  if (!state.runs_ahead) {
    state.queue.push_back(std::move(work));
    state.changed.notify_all();
    return ticket;
  }
  if (state.first_error.ok()) {
    state.issued.Record(stream);
    state.stream.WaitFor(state.issued);
    state.first_error = work(*state.communicator, state.stream);
  }
  state.done[static_cast<size_t>(ticket) % State::kEvents].Record(state.stream);
  return ticket;
}

void CommunicationLane::Wait(Ticket ticket, Stream& stream) {
  State& state = *state_;
  std::unique_lock<std::mutex> lock(state.mutex);
  CUBIT_CHECK_LT(ticket, state.num_posted);
  if (!state.runs_ahead) {
    state.changed.wait(lock, [&] { return state.num_done > ticket; });
    return;
  }
  // The event of an overwritten ticket is a later one: a longer wait.
  stream.WaitFor(state.done[static_cast<size_t>(ticket) % State::kEvents]);
}

bool CommunicationLane::Done(Ticket ticket) const {
  const State& state = *state_;
  const std::lock_guard<std::mutex> lock(state.mutex);
  CUBIT_CHECK_LT(ticket, state.num_posted);
  if (!state.runs_ahead) return state.num_done > ticket;
  return state.done[static_cast<size_t>(ticket) % State::kEvents].Reached();
}

absl::Status CommunicationLane::status() const {
  {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    if (!state_->first_error.ok()) return state_->first_error;
  }
  return state_->communicator->Health();
}

void CommunicationLane::Abort(const absl::Status& reason) {
  state_->communicator->Abort(reason);
}

int CommunicationLane::rank() const { return state_->communicator->rank(); }
int CommunicationLane::size() const { return state_->communicator->size(); }
std::shared_ptr<FlightRecorder> CommunicationLane::flight_recorder() const {
  return state_->communicator->flight_recorder();
}

}  // namespace cubit
