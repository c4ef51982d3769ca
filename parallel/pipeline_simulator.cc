// SPDX-License-Identifier: Apache-2.0

#include "parallel/pipeline_simulator.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"

#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

using Kind = PipelineActionKind;

// A message as its sender or its receiver sees it.
struct Posted {
  PipelineAction action;
  int64_t feeds = 0;  // the model part whose input it is
  double time = 0;    // at which it was posted
};

// The messages from one rank to another: number k that is sent is number k that
// is received.
struct Channel {
  std::vector<Posted> sends;
  std::vector<Posted> receives;
};

using ChannelKey = std::pair<int, int>;  // from, to

struct PostedMessage {
  ChannelKey channel;
  bool send = false;
  bool local = false;  // the output of another chunk of the same rank
  size_t number = 0;
  PipelineAction action;
};

using Key = std::pair<int64_t, int>;  // micro-batch, chunk

struct Rank {
  size_t next = 0;  // action
  double clock = 0;
  double busy = 0;
  std::vector<PostedMessage> batch;  // in which it waits
  // Inputs of forwards and of backwards that were posted and not yet used.
  std::map<Key, PostedMessage> activations;
  std::map<Key, PostedMessage> gradients;
  std::set<Key> forward_done;
  std::set<Key> backward_done;
};

class Simulator {
 public:
  Simulator(const std::vector<std::vector<PipelineAction>>& programs,
            const PipelineShape& shape, const PipelineTimes& times,
            MessageMode mode)
      : programs_(programs),
        shape_(shape),
        times_(times),
        mode_(mode),
        ranks_(programs.size()) {
    run_.max_live_activations.resize(programs.size());
    run_.timeline.resize(programs.size());
  }

  absl::StatusOr<PipelineRun> Run();

 private:
  // Does what rank r can do now; sets `progress` if that was anything.
  absl::Status Advance(int r, bool* progress);
  // Sets `done` unless the input is still on its way.
  absl::Status Compute(int r, const PipelineAction& action, bool* done);
  // Takes the input of `action` and waits for it.
  absl::Status TakeInput(int r, const PipelineAction& action, bool* arrived);
  void Finish(int r, const PipelineAction& action);
  absl::Status Post(int r, const PipelineAction& action);
  // Posts the messages that come next, if any.
  absl::Status PostBatch(int r);
  // Ends the batch in which rank r waits, if its messages have arrived.
  absl::Status TryEndBatch(int r, bool* ended);
  absl::Status CheckMatch(const PostedMessage& message) const;
  absl::Status CheckFinished() const;
  absl::Status Error(int r, const PipelineAction& action,
                     absl::string_view text) const {
    return absl::FailedPreconditionError(
        absl::StrCat("rank ", r, ", ", action.ToString(), ": ", text));
  }
  int64_t Part(int r, int chunk) const {
    return int64_t{chunk} * shape_.pp_size + r;
  }
  double Duration(int r, const PipelineAction& action) const {
    const bool forward = action.kind == Kind::kForward;
    const std::vector<double>& parts =
        forward ? times_.part_forward : times_.part_backward;
    if (!parts.empty()) {
      return parts[static_cast<size_t>(Part(r, action.chunk))];
    }
    return forward ? times_.forward : times_.backward;
  }
  Rank& At(int r) { return ranks_[static_cast<size_t>(r)]; }

  const std::vector<std::vector<PipelineAction>>& programs_;
  const PipelineShape shape_;
  const PipelineTimes times_;
  const MessageMode mode_;
  std::vector<Rank> ranks_;
  std::map<ChannelKey, Channel> channels_;
  PipelineRun run_;
};

absl::Status Simulator::TakeInput(int r, const PipelineAction& action,
                                  bool* arrived) {
  Rank& rank = At(r);
  const bool forward = action.kind == Kind::kForward;
  auto& inputs = forward ? rank.activations : rank.gradients;
  const auto input = inputs.find({action.micro_batch, action.chunk});
  if (input == inputs.end()) return Error(r, action, "its input is missing");
  const PostedMessage& message = input->second;
  if (!message.local) {
    const Channel& channel = channels_.at(message.channel);
    *arrived = channel.sends.size() > message.number;
    if (!*arrived) return absl::OkStatus();
    CUBIT_RETURN_IF_ERROR(CheckMatch(message));
    // A batch that waited has counted the message already.
    const double on_its_way =
        mode_ == MessageMode::kAsynchronous ? times_.message : 0;
    rank.clock =
        std::max(rank.clock, channel.sends[message.number].time + on_its_way);
  }
  inputs.erase(input);
  return absl::OkStatus();
}

absl::Status Simulator::Compute(int r, const PipelineAction& action,
                                bool* done) {
  Rank& rank = At(r);
  const bool forward = action.kind == Kind::kForward;
  const Key key = {action.micro_batch, action.chunk};
  const int64_t last = int64_t{shape_.pp_size} * shape_.num_chunks - 1;
  auto& finished = forward ? rank.forward_done : rank.backward_done;
  if (finished.count(key) > 0) return Error(r, action, "runs twice");
  if (!forward && rank.forward_done.count(key) == 0) {
    return Error(r, action, "its forward has not run");
  }
  *done = true;
  if (Part(r, action.chunk) != (forward ? 0 : last)) {
    CUBIT_RETURN_IF_ERROR(TakeInput(r, action, done));
    if (!*done) return absl::OkStatus();
  }
  finished.insert(key);
  Finish(r, action);
  return absl::OkStatus();
}

void Simulator::Finish(int r, const PipelineAction& action) {
  Rank& rank = At(r);
  const bool forward = action.kind == Kind::kForward;
  const int next = action.chunk + (forward ? 1 : -1);
  if (shape_.pp_size == 1 && next >= 0 && next < shape_.num_chunks) {
    PostedMessage message;
    message.local = true;
    auto& inputs = forward ? rank.activations : rank.gradients;
    inputs[{action.micro_batch, next}] = message;
  }
  const double duration = Duration(r, action);
  run_.timeline[static_cast<size_t>(r)].push_back(
      {action, rank.clock, rank.clock + duration});
  rank.clock += duration;
  rank.busy += duration;
  int64_t& live = run_.max_live_activations[static_cast<size_t>(r)];
  live = std::max(live, static_cast<int64_t>(rank.forward_done.size() -
                                             rank.backward_done.size()));
}

absl::Status Simulator::Post(int r, const PipelineAction& action) {
  Rank& rank = At(r);
  const bool activation = action.kind == Kind::kSendActivation ||
                          action.kind == Kind::kRecvActivation;
  if (action.peer < 0 || action.peer >= shape_.pp_size || action.peer == r) {
    return Error(r, action, "the peer is no other rank");
  }
  Posted posted;
  posted.action = action;
  posted.feeds = Part(r, action.chunk);
  posted.time = rank.clock;
  PostedMessage message;
  message.action = action;
  message.send = action.is_send();
  if (message.send) {
    const auto& done = activation ? rank.forward_done : rank.backward_done;
    if (done.count({action.micro_batch, action.chunk}) == 0) {
      return Error(r, action, "it has not been computed");
    }
    posted.feeds += activation ? 1 : -1;
    message.channel = {r, action.peer};
  } else {
    message.channel = {action.peer, r};
  }
  Channel& channel = channels_[message.channel];
  auto& list = message.send ? channel.sends : channel.receives;
  message.number = list.size();
  list.push_back(posted);
  rank.batch.push_back(message);
  return absl::OkStatus();
}

absl::Status Simulator::CheckMatch(const PostedMessage& message) const {
  const Channel& channel = channels_.at(message.channel);
  const Posted& sent = channel.sends[message.number];
  const Posted& wanted = channel.receives[message.number];
  const bool both_activations = sent.action.kind == Kind::kSendActivation &&
                                wanted.action.kind == Kind::kRecvActivation;
  const bool both_gradients = sent.action.kind == Kind::kSendGradient &&
                              wanted.action.kind == Kind::kRecvGradient;
  if ((both_activations || both_gradients) &&
      sent.action.micro_batch == wanted.action.micro_batch &&
      sent.feeds == wanted.feeds) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat("rank ", message.channel.first, " does ",
                   sent.action.ToString(), " where rank ",
                   message.channel.second, " does ", wanted.action.ToString()));
}

absl::Status Simulator::TryEndBatch(int r, bool* ended) {
  Rank& rank = At(r);
  *ended = false;
  double end = rank.clock;
  for (const PostedMessage& message : rank.batch) {
    const Channel& channel = channels_.at(message.channel);
    const auto& other = message.send ? channel.receives : channel.sends;
    if (mode_ == MessageMode::kAsynchronous) continue;
    if (other.size() <= message.number) return absl::OkStatus();
    CUBIT_RETURN_IF_ERROR(CheckMatch(message));
    end = std::max(end, other[message.number].time);
  }
  for (const PostedMessage& message : rank.batch) {
    if (message.send) continue;
    auto& inputs = message.action.kind == Kind::kRecvActivation
                       ? rank.activations
                       : rank.gradients;
    inputs[{message.action.micro_batch, message.action.chunk}] = message;
  }
  rank.clock = mode_ == MessageMode::kAsynchronous ? end : end + times_.message;
  rank.batch.clear();
  *ended = true;
  return absl::OkStatus();
}

absl::Status Simulator::PostBatch(int r) {
  Rank& rank = At(r);
  const auto& program = programs_[static_cast<size_t>(r)];
  while (rank.next < program.size() && program[rank.next].is_message()) {
    CUBIT_RETURN_IF_ERROR(Post(r, program[rank.next++]));
  }
  return absl::OkStatus();
}

absl::Status Simulator::Advance(int r, bool* progress) {
  Rank& rank = At(r);
  const auto& program = programs_[static_cast<size_t>(r)];
  while (true) {
    if (!rank.batch.empty()) {
      bool ended = false;
      CUBIT_RETURN_IF_ERROR(TryEndBatch(r, &ended));
      if (!ended) return absl::OkStatus();
      *progress = true;
    }
    if (rank.next == program.size()) return absl::OkStatus();
    CUBIT_RETURN_IF_ERROR(PostBatch(r));
    if (rank.batch.empty()) {
      bool done = false;
      CUBIT_RETURN_IF_ERROR(Compute(r, program[rank.next], &done));
      if (!done) return absl::OkStatus();
      ++rank.next;
    }
    *progress = true;
  }
}

absl::Status Simulator::CheckFinished() const {
  std::vector<std::string> stuck;
  for (size_t r = 0; r < ranks_.size(); ++r) {
    const Rank& rank = ranks_[r];
    if (rank.batch.empty() && rank.next == programs_[r].size()) continue;
    std::vector<std::string> messages;
    if (rank.batch.empty()) {
      messages.push_back(
          absl::StrCat("the input of ", programs_[r][rank.next].ToString()));
    }
    for (const PostedMessage& message : rank.batch) {
      messages.push_back(message.action.ToString());
    }
    stuck.push_back(
        absl::StrCat("rank ", r, " waits in ", absl::StrJoin(messages, ", ")));
  }
  if (!stuck.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("deadlock: ", absl::StrJoin(stuck, "; ")));
  }
  for (const auto& [key, channel] : channels_) {
    if (channel.sends.size() != channel.receives.size()) {
      return absl::FailedPreconditionError(
          absl::StrCat("rank ", key.first, " sends rank ", key.second, " ",
                       channel.sends.size(), " messages, which receives ",
                       channel.receives.size()));
    }
  }
  const auto wanted = static_cast<size_t>(shape_.num_micro_batches) *
                      static_cast<size_t>(shape_.num_chunks);
  for (size_t r = 0; r < ranks_.size(); ++r) {
    if (ranks_[r].forward_done.size() != wanted ||
        ranks_[r].backward_done.size() != wanted) {
      return absl::FailedPreconditionError(
          absl::StrCat("rank ", r, " ran ", ranks_[r].forward_done.size(),
                       " forwards and ", ranks_[r].backward_done.size(),
                       " backwards, wanted ", wanted, " of each"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<PipelineRun> Simulator::Run() {
  bool progress = true;
  while (progress) {
    progress = false;
    for (int r = 0; r < shape_.pp_size; ++r) {
      CUBIT_RETURN_IF_ERROR(Advance(r, &progress));
    }
  }
  CUBIT_RETURN_IF_ERROR(CheckFinished());
  double busy = 0;
  for (const Rank& rank : ranks_) {
    run_.makespan = std::max(run_.makespan, rank.clock);
    busy += rank.busy;
  }
  run_.bubble_fraction =
      1 - busy / (static_cast<double>(ranks_.size()) * run_.makespan);
  return std::move(run_);
}

}  // namespace

absl::StatusOr<PipelineRun> SimulatePipeline(
    const std::vector<std::vector<PipelineAction>>& ranks,
    const PipelineShape& shape, const PipelineTimes& times, MessageMode mode) {
  if (ranks.size() != static_cast<size_t>(shape.pp_size)) {
    return absl::FailedPreconditionError(absl::StrCat(
        ranks.size(), " lists of actions, wanted ", shape.pp_size));
  }
  for (size_t r = 0; r < ranks.size(); ++r) {
    for (const PipelineAction& action : ranks[r]) {
      if (action.chunk < 0 || action.chunk >= shape.num_chunks ||
          action.micro_batch < 0 ||
          action.micro_batch >= shape.num_micro_batches) {
        return absl::FailedPreconditionError(
            absl::StrCat("rank ", r, ", ", action.ToString(),
                         ": no such micro-batch or chunk"));
      }
    }
  }
  if (!times.part_forward.empty() || !times.part_backward.empty()) {
    const size_t parts = static_cast<size_t>(shape.pp_size) *
                         static_cast<size_t>(shape.num_chunks);
    CUBIT_CHECK_EQ(times.part_forward.size(), parts);
    CUBIT_CHECK_EQ(times.part_backward.size(), parts);
  }
  return Simulator(ranks, shape, times, mode).Run();
}

std::string DrawPipeline(const PipelineRun& run) {
  std::string picture;
  for (size_t r = 0; r < run.timeline.size(); ++r) {
    std::string row(3 * static_cast<size_t>(std::lround(run.makespan)), ' ');
    for (size_t t = 0; t < row.size(); t += 3) row[t + 1] = '.';
    for (const SimulatedAction& done : run.timeline[r]) {
      const bool forward = done.action.kind == Kind::kForward;
      const char digit = static_cast<char>('0' + done.action.micro_batch % 10);
      for (auto t = std::lround(done.start); t < std::lround(done.end); ++t) {
        const auto at = 3 * static_cast<size_t>(t);
        row[at] = forward ? ' ' : '[';
        row[at + 1] = digit;
        row[at + 2] = forward ? ' ' : ']';
      }
    }
    absl::StrAppend(&picture, "rank ", r, " |", row, "|\n");
  }
  return picture;
}

}  // namespace cubit
