// SPDX-License-Identifier: Apache-2.0
//
// GELU through the sigmoid: (1 + tanh(u)) / 2 = sigmoid(2u), which keeps the
// relative error small where tanh is close to -1.

#include <algorithm>
#include <cstdint>

#include "ops/activations.h"
#include "ops/pieces.h"
#include "ops/vector_math.h"
#include "runtime/thread_pool.h"

namespace cubit {
namespace {

// Elements that go through a buffer on the stack between the steps of a
// function: they stay in the first-level cache.
constexpr int64_t kBlock = 1024;

constexpr float kTwoSqrtTwoOverPi = 1.59576912f;
constexpr float kCubic = 0.044715f;

// Beyond |x| = 16 the sigmoid is 0 or 1 in every bit; the bound keeps x^3 from
// overflowing. NaN passes.
inline float Bounded(float x) {
  x = x < -16.0f ? -16.0f : x;
  return x > 16.0f ? 16.0f : x;
}

// 2u, u the argument of tanh.
inline float TwiceGeluInner(float x) {
  const float bounded = Bounded(x);
  return kTwoSqrtTwoOverPi * bounded * (1.0f + kCubic * bounded * bounded);
}

void GeluForwardBlock(const float* x, int64_t count, float* y) {
  float s[kBlock] = {};
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) s[i] = TwiceGeluInner(x[i]);
  VectorSigmoid(s, s, count);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) y[i] = x[i] * s[i];
}

void GeluBackwardBlock(const float* d_y, const float* x, int64_t count,
                       float* d_x) {
  float s[kBlock] = {};
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) s[i] = TwiceGeluInner(x[i]);
  VectorSigmoid(s, s, count);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float bounded = Bounded(x[i]);
    const float slope =
        kTwoSqrtTwoOverPi * (1.0f + 3.0f * kCubic * bounded * bounded);
    d_x[i] = d_y[i] * (s[i] + bounded * s[i] * (1.0f - s[i]) * slope);
  }
}

void SwiGluForwardBlock(const float* gate, const float* up, int64_t count,
                        float* y) {
  float s[kBlock] = {};
  VectorSigmoid(gate, s, count);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) y[i] = gate[i] * s[i] * up[i];
}

// d_gate may be gate, and d_up may be up.
void SwiGluBackwardBlock(const float* d_y, const float* gate, const float* up,
                         int64_t count, float* d_gate, float* d_up) {
  float s[kBlock] = {};
  VectorSigmoid(gate, s, count);
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const float g = gate[i];
    const float u = up[i];
    const float silu = g * s[i];
    d_gate[i] = d_y[i] * u * (s[i] + silu * (1.0f - s[i]));
    d_up[i] = d_y[i] * silu;
  }
}

// Calls body(begin, count) for pieces of [0, total) of at most kBlock.
template <typename Body>
void ForEachBlock(int64_t total, Body body) {
  for (int64_t begin = 0; begin < total; begin += kBlock) {
    body(begin, std::min(kBlock, total - begin));
  }
}

}  // namespace

void GeluForward(ConstTensor x, Tensor y, Stream&) {
  CUBIT_CHECK_EQ(x.shape(), y.shape());
  const float* x_data = x.data<float>();
  float* y_data = y.data<float>();
  ParallelFor(x.num_elements(), kPieceElements,
              [=](int64_t begin, int64_t end) {
                ForEachBlock(end - begin, [=](int64_t offset, int64_t count) {
                  const int64_t i = begin + offset;
                  GeluForwardBlock(x_data + i, count, y_data + i);
                });
              });
}

void GeluBackward(ConstTensor d_y, ConstTensor x, Tensor d_x, Stream&) {
  CUBIT_CHECK_EQ(x.shape(), d_y.shape());
  CUBIT_CHECK_EQ(x.shape(), d_x.shape());
  const float* d_y_data = d_y.data<float>();
  const float* x_data = x.data<float>();
  float* d_x_data = d_x.data<float>();
  ParallelFor(
      x.num_elements(), kPieceElements, [=](int64_t begin, int64_t end) {
        ForEachBlock(end - begin, [=](int64_t offset, int64_t count) {
          const int64_t i = begin + offset;
          GeluBackwardBlock(d_y_data + i, x_data + i, count, d_x_data + i);
        });
      });
}

void SwiGluForward(ConstTensor x, Tensor y, Stream&) {
  const int64_t num_rows = y.dim(0);
  const int64_t width = y.dim(1);
  CUBIT_CHECK_SHAPE(x, {num_rows, 2 * width});
  const float* x_data = x.data<float>();
  float* y_data = y.data<float>();
  ParallelFor(num_rows, RowsPerPiece(width), [=](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* gate = x_data + n * 2 * width;
      float* out = y_data + n * width;
      ForEachBlock(width, [=](int64_t i, int64_t count) {
        SwiGluForwardBlock(gate + i, gate + width + i, count, out + i);
      });
    }
  });
}

void SwiGluBackward(ConstTensor d_y, ConstTensor x, Tensor d_x, Stream&) {
  const int64_t num_rows = d_y.dim(0);
  const int64_t width = d_y.dim(1);
  CUBIT_CHECK_SHAPE(x, {num_rows, 2 * width});
  CUBIT_CHECK_SHAPE(d_x, {num_rows, 2 * width});
  const float* d_y_data = d_y.data<float>();
  const float* x_data = x.data<float>();
  float* d_x_data = d_x.data<float>();
  ParallelFor(num_rows, RowsPerPiece(width), [=](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* d_out = d_y_data + n * width;
      const float* gate = x_data + n * 2 * width;
      float* d_gate = d_x_data + n * 2 * width;
      ForEachBlock(width, [=](int64_t i, int64_t count) {
        SwiGluBackwardBlock(d_out + i, gate + i, gate + width + i, count,
                            d_gate + i, d_gate + width + i);
      });
    }
  });
}

}  // namespace cubit
