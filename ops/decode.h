// SPDX-License-Identifier: Apache-2.0
//
// One more token against cached ones: the last row of attention.h, krr.h and
// delta_solve.h, without the rows before it. The caches are [B, Tmax, H, K]
// views; rows [0, position] count, `position` being the new one.

#ifndef CUBIT_OPS_DECODE_H_
#define CUBIT_OPS_DECODE_H_

#include <cstdint>

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// out = sum_{j <= position} softmax_j(scale q . k_j) v_j.
//   q, out [B, 1, H, K]; k, v caches.
void AttentionDecode(ConstHeadTensor q, ConstHeadTensor k, ConstHeadTensor v,
                     float scale, int64_t position, HeadTensor out,
                     Stream& stream);

// Row `position` of the solve of krr.h: writes x[position].
//   r cache; column_scale cache as a view with K = 1 (row `position` set);
//   v [B, 1, H, K]; value_scale [B, 1, H] as a view with K = 1; log_lambda [H].
void KrrDecode(ConstHeadTensor r, ConstHeadTensor column_scale,
               ConstHeadTensor v, ConstHeadTensor value_scale,
               ConstTensor log_lambda, int64_t position, HeadTensor x,
               Stream& stream);

// Row `position` of the system of delta_solve.h: writes x[position].
//   w, v [B, 1, H, K]; beta [B, 1, H] as a view with K = 1; k cache.
void DeltaDecode(ConstHeadTensor w, ConstHeadTensor k, ConstHeadTensor v,
                 ConstHeadTensor beta, float scale, int64_t position,
                 HeadTensor x, Stream& stream);

}  // namespace cubit

#endif  // CUBIT_OPS_DECODE_H_
