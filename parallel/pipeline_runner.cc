// SPDX-License-Identifier: Apache-2.0

#include "parallel/pipeline_runner.h"

#include <algorithm>
#include <utility>

#include "runtime/check.h"
#include "runtime/memory.h"
#include "runtime/profile_range.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr int kNone = -1;

// Numbers that are in use, smallest first.
class FreeNumbers {
 public:
  int Take() {
    const auto free = std::find(taken_.begin(), taken_.end(), false);
    const auto number = free - taken_.begin();
    if (free == taken_.end()) taken_.push_back(false);
    taken_[static_cast<size_t>(number)] = true;
    return static_cast<int>(number);
  }
  void Release(int number) { taken_[static_cast<size_t>(number)] = false; }
  int size() const { return static_cast<int>(taken_.size()); }

 private:
  std::vector<bool> taken_;
};

void AddMessage(const PipelineAction& action, PipelineStage* stage,
                std::vector<OutgoingMessage>* sends,
                std::vector<IncomingMessage>* receives) {
  const int64_t micro_batch = action.micro_batch;
  const int chunk = action.chunk;
  switch (action.kind) {
    case PipelineActionKind::kSendActivation:
      sends->push_back({stage->Output(micro_batch, chunk), action.peer});
      return;
    case PipelineActionKind::kSendGradient:
      sends->push_back({stage->InputGradient(micro_batch, chunk), action.peer});
      return;
    case PipelineActionKind::kRecvActivation:
      receives->push_back({stage->Input(micro_batch, chunk), action.peer});
      return;
    case PipelineActionKind::kRecvGradient:
      receives->push_back(
          {stage->OutputGradient(micro_batch, chunk), action.peer});
      return;
    case PipelineActionKind::kForward:
    case PipelineActionKind::kBackward:
      CUBIT_CHECK(false) << action.ToString() << " is no message";
  }
}

}  // namespace

PipelineBuffers::PipelineBuffers(const std::vector<PipelineAction>& actions,
                                 const PipelineShape& shape)
    : num_micro_batches_(shape.num_micro_batches) {
  const size_t pairs = static_cast<size_t>(shape.num_chunks) *
                       static_cast<size_t>(num_micro_batches_);
  slots_.assign(pairs, kNone);
  gradients_.assign(pairs, kNone);
  std::vector<FreeNumbers> slots(static_cast<size_t>(shape.num_chunks));
  FreeNumbers gradients;
  const auto provide = [](FreeNumbers* numbers, int* number) {
    if (*number == kNone) *number = numbers->Take();
  };
  int sending = kNone;  // the gradient that the next messages take away
  for (const PipelineAction& action : actions) {
    FreeNumbers& chunk_slots = slots[static_cast<size_t>(action.chunk)];
    const size_t index = Index(action.chunk, action.micro_batch);
    if (!action.is_message() && sending != kNone) {
      gradients.Release(std::exchange(sending, kNone));
    }
    switch (action.kind) {
      case PipelineActionKind::kRecvActivation:
      case PipelineActionKind::kForward:
        provide(&chunk_slots, &slots_[index]);
        break;
      case PipelineActionKind::kRecvGradient:
        provide(&gradients, &gradients_[index]);
        break;
      case PipelineActionKind::kBackward:
        CUBIT_CHECK_NE(slots_[index], kNone) << action.ToString();
        provide(&gradients, &gradients_[index]);
        sending = gradients_[index];
        chunk_slots.Release(slots_[index]);
        break;
      case PipelineActionKind::kSendActivation:
      case PipelineActionKind::kSendGradient:
        break;
    }
  }
  for (const FreeNumbers& numbers : slots) num_slots_.push_back(numbers.size());
  num_gradients_ = gradients.size();
}

absl::Status ConnectPipeline(Communicator& pp, Stream& stream) {
  if (pp.size() == 1) return absl::OkStatus();
  constexpr int kNumNumbers = 4;
  CUBIT_ASSIGN_OR_RETURN(
      const Buffer buffer,
      Buffer::Allocate(kNumNumbers * static_cast<int64_t>(sizeof(float)),
                       MemoryCategory::kWorkspace));
  SetZero(buffer.data(), buffer.size_bytes(), stream);
  const auto number = [&buffer](int i) {
    return Tensor(static_cast<float*>(buffer.data()) + i, DType::kFloat32, {1});
  };
  const int next = (pp.rank() + 1) % pp.size();
  const int previous = (pp.rank() + pp.size() - 1) % pp.size();
  CUBIT_RETURN_IF_ERROR(pp.Exchange({{number(0), next}, {number(1), previous}},
                                    {{number(2), previous}, {number(3), next}},
                                    stream));
  stream.Synchronize();
  return pp.Health();
}

absl::Status RunPipeline(
    const std::vector<PipelineAction>& actions, PipelineStage* stage,
    Communicator& pp, Stream& stream,
    absl::FunctionRef<void(const PipelineAction& action)> watch) {
  std::vector<OutgoingMessage> sends;
  std::vector<IncomingMessage> receives;
  const auto exchange = [&] {
    if (sends.empty() && receives.empty()) return absl::OkStatus();
    // Of a stage that waits for its neighbours: the bubble too.
    const ProfileRange range("pipeline", stream);
    return pp.Exchange(std::exchange(sends, {}), std::exchange(receives, {}),
                       stream);
  };
  for (const PipelineAction& action : actions) {
    watch(action);
    if (action.is_message()) {
      AddMessage(action, stage, &sends, &receives);
      continue;
    }
    CUBIT_RETURN_IF_ERROR(exchange());
    if (action.kind == PipelineActionKind::kForward) {
      stage->Forward(action.micro_batch, action.chunk);
    } else {
      stage->Backward(action.micro_batch, action.chunk);
    }
  }
  return exchange();
}

}  // namespace cubit
