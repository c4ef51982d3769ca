// SPDX-License-Identifier: Apache-2.0
//
// AdamW over a ParameterStore: moments in two flat fp32 buffers, gradient
// clipping by the global norm, weight decay where a parameter asks for it.

#ifndef CUBIT_PARALLEL_ADAMW_OPTIMIZER_H_
#define CUBIT_PARALLEL_ADAMW_OPTIMIZER_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

#include "parallel/checkpoint.h"
#include "parallel/parameter.h"
#include "parallel/sharded_adamw.h"
#include "runtime/device.h"
#include "runtime/memory.h"

namespace cubit {

class AdamWOptimizer {
 public:
  // `store` must outlive the optimizer and hold gradients.
  AdamWOptimizer(const AdamWOptions& options, ParameterStore* store);

  // Bytes of both moments and what goes with them.
  static int64_t StateBytes(const ParameterStore& store);
  absl::Status Allocate();

  // Computes the norm of all gradients, and from it the factor that clips them.
  // The host does not wait.
  void ComputeGradientNorm(Stream& stream);
  // What ComputeGradientNorm found, infinite or NaN if a gradient was. Waits.
  double GradientNorm(Stream& stream);
  // The square of it, on the device: [1] fp64.
  ConstTensor squared_norm() const { return sum_of_squares_; }

  // Update number `step` (1 for the first), with the gradients that
  // ComputeGradientNorm saw; nothing is changed if their norm was not finite.
  // The host does not wait.
  void Update(int64_t step, double learning_rate, Stream& stream);

  // The moments of every parameter, as "adamw.m.NAME" and "adamw.v.NAME".
  std::vector<CheckpointTensor> State();

 private:
  AdamWOptions options_;
  ParameterStore* store_;
  Buffer buffer_;
  Tensor m_;  // flat, as the store's values
  Tensor v_;
  Tensor sum_of_squares_;  // [1] fp64, of the gradients
  Tensor grad_scale_;      // [1]
  Tensor decay_;           // uint8, one for each group of kAdamWGroup elements
};

}  // namespace cubit

#endif  // CUBIT_PARALLEL_ADAMW_OPTIMIZER_H_
