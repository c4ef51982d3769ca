// SPDX-License-Identifier: Apache-2.0
//
// What crosses the tp ranks at the ends of a branch: rows that each rank holds
// a run of (model_shard.h) come together, and rows that each rank has a term of
// are summed and go apart. With one rank nothing moves.
//
// N = tp_size * Nl; rank q has rows [q * Nl, (q + 1) * Nl). The buffers are
// those of ParallelContext. Errors are noted there.

#ifndef CUBIT_MODELS_ROWS_OVER_TP_H_
#define CUBIT_MODELS_ROWS_OVER_TP_H_

#include "models/layer_context.h"
#include "runtime/tensor.h"

namespace cubit {

// All rows [N, D] of the ranks' `local` [Nl, D], in ParallelContext::gathered
// until the next call of a function of this file; `local` itself with one rank.
ConstTensor GatherRows(const LayerContext& context, int tp_size,
                       ConstTensor local);

// Where this rank's terms [N, D] of a sum belong whose result is `local` [Nl,
// D]: ParallelContext::partial, or `local` itself with one rank. Calls no
// communicator.
Tensor PartialRows(const LayerContext& context, int tp_size, Tensor local);

// local[n] = bias + residual[n] + the ranks' terms of row n, which lie in
// ParallelContext::partial; added in fp32, in the order of the ranks.
//   bias [D] or absent, residual [Nl, D] or absent, local [Nl, D], may be
//   residual; all of the activations' dtype. More than one rank (CHECK).
//
// The ranks exchange their terms and each adds its own rows (AllToAll): the
// bytes are those of a reduce-scatter, bf16 terms are rounded once, and the
// order of the sum is ours on every back end.
void SumRows(const LayerContext& context, int tp_size, ConstTensor bias,
             ConstTensor residual, Tensor local);

}  // namespace cubit

#endif  // CUBIT_MODELS_ROWS_OVER_TP_H_
