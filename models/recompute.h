// SPDX-License-Identifier: Apache-2.0
//
// What the forward keeps for the backward, and what the backward makes again.

#ifndef CUBIT_MODELS_RECOMPUTE_H_
#define CUBIT_MODELS_RECOMPUTE_H_

namespace cubit {

enum class Recompute {
  kNone,  // everything is kept
  // Results of norms and of the MLP's non-linearity are made again from what
  // went into them: passes over memory, no product.
  kSelective,
  // Of a block only its input is kept; the rest is made again, but for the
  // MLP's last product: a quarter to a third more work.
  kFull
};

}  // namespace cubit

#endif  // CUBIT_MODELS_RECOMPUTE_H_
