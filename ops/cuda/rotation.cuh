// SPDX-License-Identifier: Apache-2.0
//
// The rotation of rotary.h on elements in registers: its own pass, and those
// that rotate what they hold anyway.

#ifndef CUBIT_OPS_CUDA_ROTATION_CUH_
#define CUBIT_OPS_CUDA_ROTATION_CUH_

namespace cubit {
namespace cuda {

// Angles of kWidth neighbouring columns of the first half of a row.
template <int kWidth>
class Angles {
 public:
  // `row` [K]: of the table, for one position. `direction` -1 turns back. Whole
  // vectors of four: row, `half` = K / 2 and `column` are multiples of four
  // floats, row's address of 16 bytes.
  __device__ __forceinline__ void Load(const float* row, int half, int column,
                                       float direction) {
    LoadColumns(row + column, cosine_);
    LoadColumns(row + half + column, sine_);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sine_[i] *= direction;
  }

  // Turns elements `column` + i and `column` + i + K/2 of a row.
  __device__ __forceinline__ void Turn(int i, float* low, float* high) const {
    const float a = *low;
    const float b = *high;
    *low = fmaf(a, cosine_[i], -b * sine_[i]);
    *high = fmaf(b, cosine_[i], a * sine_[i]);
  }

 private:
  __device__ __forceinline__ static void LoadColumns(const float* source,
                                                     float (&values)[kWidth]) {
    if constexpr (kWidth % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kWidth; i += 4) {
        const float4 four = __ldg(reinterpret_cast<const float4*>(source + i));
        values[i] = four.x;
        values[i + 1] = four.y;
        values[i + 2] = four.z;
        values[i + 3] = four.w;
      }
    } else if constexpr (kWidth == 2) {
      const float2 two = __ldg(reinterpret_cast<const float2*>(source));
      values[0] = two.x;
      values[1] = two.y;
    } else {
      static_assert(kWidth == 1, "one, two, or vectors of four");
      values[0] = __ldg(source);
    }
  }

  float cosine_[kWidth];
  float sine_[kWidth];
};

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_ROTATION_CUH_
