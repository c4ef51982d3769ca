// SPDX-License-Identifier: Apache-2.0
//
// What every layer is handed in a forward or backward besides tensors.

#ifndef CUBIT_MODELS_LAYER_CONTEXT_H_
#define CUBIT_MODELS_LAYER_CONTEXT_H_

#include "ops/attention.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

struct LayerContext {
  Stream* stream = nullptr;
  ConstTensor rotary_table;  // [>= T, K] or absent
  AttentionMask mask;
};

}  // namespace cubit

#endif  // CUBIT_MODELS_LAYER_CONTEXT_H_
