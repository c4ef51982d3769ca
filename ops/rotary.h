// SPDX-License-Identifier: Apache-2.0
//
// Rotary position encoding, half-rotation form (Su et al., arXiv:2104.09864, as
// in GPT-NeoX): element i turns with element i + K/2.

#ifndef CUBIT_OPS_ROTARY_H_
#define CUBIT_OPS_ROTARY_H_

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"

#include "runtime/check.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

// Fills table [T, K] fp32: cos of angle (t, i) in column i < K/2, sin in column
// K/2 + i, angle = t * base^(-2i/K), computed in double.
void RotaryTable(double base, Tensor table, Stream& stream);

// Views of one call.
constexpr size_t kMaxRotaryViews = 4;

// CHECKs that K = x.head_dim is even and that `table` is of that K and reaches
// the positions first_position + t.
inline void CheckRotary(const ConstTensor& table, int64_t first_position,
                        const ConstHeadTensor& x) {
  CUBIT_CHECK_EQ(x.head_dim % 2, 0);
  CUBIT_CHECK_EQ(table.shape().rank(), 2);
  CUBIT_CHECK_EQ(table.dim(1), x.head_dim);
  CUBIT_CHECK(first_position >= 0 && first_position + x.seq_len <= table.dim(0))
      << "positions [" << first_position << ", " << first_position + x.seq_len
      << ") of a table of " << table.dim(0);
}

// Rotates every row of the views [B, T, H, K], fp32 or bf16, in place by the
// angles of position first_position + t: the queries and keys of a layer in one
// pass. CHECK: CheckRotary; 1 to kMaxRotaryViews views, of equal extents and
// dtype. Views may not overlap.
void RotaryForward(ConstTensor table, int64_t first_position,
                   absl::Span<const HeadTensor> views, Stream& stream);

// The inverse rotation, in place: turns the gradients of the results into those
// of the inputs.
void RotaryBackward(ConstTensor table, int64_t first_position,
                    absl::Span<const HeadTensor> d_views, Stream& stream);

// The same; the sums over B and T of what is written to each view are added to
// its d_sums [H * K] fp32, in a fixed order (AddHeadSums in heads.h), on GPUs
// in the same pass. Absent: not computed. CHECK: as many as views.
void RotaryBackward(ConstTensor table, int64_t first_position,
                    absl::Span<const HeadTensor> d_views,
                    absl::Span<const Tensor> d_sums, Stream& stream);

// Of one view.
inline void RotaryForward(ConstTensor table, int64_t first_position,
                          const HeadTensor& x, Stream& stream) {
  RotaryForward(table, first_position, absl::MakeConstSpan(&x, 1), stream);
}
inline void RotaryBackward(ConstTensor table, int64_t first_position,
                           const HeadTensor& d_x, Stream& stream) {
  RotaryBackward(table, first_position, absl::MakeConstSpan(&d_x, 1), stream);
}

}  // namespace cubit

#endif  // CUBIT_OPS_ROTARY_H_
