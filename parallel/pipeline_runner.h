// SPDX-License-Identifier: Apache-2.0
//
// Runs one rank's part of a pipeline schedule: walks its actions, computes, and
// exchanges what lies between two computations as one batch of messages
// (pipeline_schedule.h). Which memory holds what is settled before a run
// (PipelineBuffers), so nothing is allocated in a step.

#ifndef CUBIT_PARALLEL_PIPELINE_RUNNER_H_
#define CUBIT_PARALLEL_PIPELINE_RUNNER_H_

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

#include "parallel/pipeline_schedule.h"
#include "runtime/communicator.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// Memory that the actions of one rank use, by number. Activations of a
// micro-batch live in a chunk's slot from its input's arrival (or its forward)
// to its backward; the gradient of a chunk's output lives from its arrival (or
// its backward), becomes the gradient of the chunk's input in place, and ends
// when that is sent.
class PipelineBuffers {
 public:
  // CHECK: `actions` are one rank's of MakePipeline for `shape`.
  PipelineBuffers(const std::vector<PipelineAction>& actions,
                  const PipelineShape& shape);

  // Slots of a chunk, and the slot of a micro-batch in it.
  int num_slots(int chunk) const {
    return num_slots_[static_cast<size_t>(chunk)];
  }
  int slot(int chunk, int64_t micro_batch) const {
    return slots_[Index(chunk, micro_batch)];
  }
  int num_gradients() const { return num_gradients_; }
  int gradient(int chunk, int64_t micro_batch) const {
    return gradients_[Index(chunk, micro_batch)];
  }

 private:
  size_t Index(int chunk, int64_t micro_batch) const {
    return static_cast<size_t>(chunk * num_micro_batches_ + micro_batch);
  }

  int64_t num_micro_batches_;
  std::vector<int> num_slots_;
  std::vector<int> slots_;
  int num_gradients_ = 0;
  std::vector<int> gradients_;
};

// What a rank computes, and the tensors of its messages.
class PipelineStage {
 public:
  virtual ~PipelineStage() = default;

  virtual void Forward(int64_t micro_batch, int chunk) = 0;
  virtual void Backward(int64_t micro_batch, int chunk) = 0;

  // Of a chunk: its input, where it is received; its output, as it is sent; the
  // gradient of its output, where it is received, and of its input, as sent.
  virtual Tensor Input(int64_t micro_batch, int chunk) = 0;
  virtual ConstTensor Output(int64_t micro_batch, int chunk) = 0;
  virtual Tensor OutputGradient(int64_t micro_batch, int chunk) = 0;
  virtual ConstTensor InputGradient(int64_t micro_batch, int chunk) = 0;
};

// A number to and from both neighbours in the ring of `pp`, on every rank
// before the first RunPipeline; waits for it. NCCL connects two ranks at the
// first message of each direction, and both wait for that on the host. In a
// step a rank could wait so for one whose host waits too: CUDA loads a kernel
// at its first use, behind the receive that is under way, whose message the
// first rank would send next.
absl::Status ConnectPipeline(Communicator& pp, Stream& stream);

// `pp` connects the stages; the actions' peers are its ranks. `watch` is told
// of every action before it runs, for a watchdog.
absl::Status RunPipeline(
    const std::vector<PipelineAction>& actions, PipelineStage* stage,
    Communicator& pp, Stream& stream,
    absl::FunctionRef<void(const PipelineAction& action)> watch);

}  // namespace cubit

#endif  // CUBIT_PARALLEL_PIPELINE_RUNNER_H_
