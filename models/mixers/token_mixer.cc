// SPDX-License-Identifier: Apache-2.0

#include "models/mixers/token_mixer.h"

#include "runtime/check.h"

namespace cubit {

void SequenceShardedMixer::HealthSharded(const MixerContext&, ConstTensor,
                                         const MixerSaved&, Tensor) const {
  CUBIT_CHECK(false) << "this mixer solves no system";
}

double CausalAttentionFlops(const MixerShape& shape) {
  const double pairs = 0.5 * static_cast<double>(shape.seq_len) *
                       static_cast<double>(shape.seq_len + 1);
  return 4 * pairs *
         static_cast<double>(shape.head_dim * shape.batch * shape.num_heads);
}

int64_t ProjectionColumn(const std::vector<MixerProjection>& projections,
                         size_t index, int64_t num_heads) {
  CUBIT_CHECK_LE(index, projections.size());
  int64_t column = 0;
  for (size_t i = 0; i < index; ++i) column += projections[i].width * num_heads;
  return column;
}

}  // namespace cubit
