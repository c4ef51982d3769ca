// SPDX-License-Identifier: Apache-2.0
//
// How long the actions and messages of a wavefront take on this back end, for
// the order of its schedule (parallel/wavefront_schedule.h) and for estimates
// (launch/sequence_cost.h). An order made for other times is right, too, but
// ranks wait in it.

#ifndef CUBIT_MODELS_MIXERS_WAVEFRONT_COSTS_H_
#define CUBIT_MODELS_MIXERS_WAVEFRONT_COSTS_H_

#include <cstdint>

#include "models/mixers/sequence_groups.h"
#include "parallel/wavefront_schedule.h"
#include "runtime/dtype.h"

namespace cubit {

// A function of its arguments and of the kind of device that the program was
// linked for, so the same on all ranks. `dtype` of what is sent round.
WavefrontCosts WavefrontCostsOf(const SequenceGroups& groups, int64_t head_dim,
                                DType dtype);
// Those of a GPU, in milliseconds.
WavefrontCosts GpuWavefrontCosts(const SequenceGroups& groups, int64_t head_dim,
                                 DType dtype);

}  // namespace cubit

#endif  // CUBIT_MODELS_MIXERS_WAVEFRONT_COSTS_H_
