// SPDX-License-Identifier: Apache-2.0
//
// Algorithms of one product tried on the operands at hand.

#ifndef CUBIT_OPS_CUDA_LT_TRIAL_H_
#define CUBIT_OPS_CUDA_LT_TRIAL_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "ops/cuda/lt_problem.h"

namespace cubit {
namespace cuda {

class LtTrial {
 public:
  // `proposal` says what the bits of the result are. `problem`, `product` and
  // `stream` outlive the trial, and nobody uses the product's result meanwhile.
  LtTrial(const LtProblem& problem, const LtProduct& product,
          const LtAlgorithm& proposal, Stream& stream);
  ~LtTrial();
  LtTrial(const LtTrial&) = delete;
  LtTrial& operator=(const LtTrial&) = delete;

  // False where there is no memory for the results of trials: then nothing
  // below may be called.
  bool IsPossible() const { return result_ != nullptr; }

  // Whether the result is that of the proposal, bit for bit, with k split into
  // as many parts. False also where cuBLASLt or the device refuses.
  bool HasSameBits(const LtAlgorithm& algorithm);
  // Per algorithm, all with the same bits, the sum of two means: of runs one
  // behind the other for about `milliseconds`, in turn forwards and backwards.
  // Infinity for what the first round has shown to be far slower.
  std::vector<float> Times(const std::vector<LtAlgorithm>& algorithms,
                           float milliseconds);

 private:
  std::optional<uint64_t> HashOfResult(const LtAlgorithm& algorithm);
  void Run(const LtAlgorithm& algorithm);
  // The mean of runs that follow each other, after one that is not counted.
  float Milliseconds(const LtAlgorithm& algorithm, int runs);

  const LtProblem& problem_;
  const LtProduct& product_;
  const LtAlgorithm proposal_;
  Stream& stream_;
  // A product that adds to its result has memory of its own for trials.
  void* result_ = nullptr;
  bool owns_result_ = false;
  std::optional<uint64_t> hash_;  // of the proposal's result
};

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_LT_TRIAL_H_
