// SPDX-License-Identifier: Apache-2.0
//
// Each function is one branch-free inline function of a scalar, which the
// compiler widens. Polynomials are minimax fits of relative error, computed by
// Lawson's iteration in double and rounded to float; their own error is under
// 0.11 ulp. std::fma is one instruction on every supported processor.

#include "ops/vector_math.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "ops/reduction.h"

namespace cubit {
namespace {

inline uint32_t Bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

inline float FromBits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// 2^n for n in [-126, 127].
inline float PowerOfTwo(int32_t n) {
  return FromBits(static_cast<uint32_t>(n + 127) << 23);
}

// ln 2 in two parts: the first has nine trailing zero bits, so that its product
// with an exponent is exact (Cody and Waite).
constexpr float kLn2High = 0.693359375f;
constexpr float kLn2Low = -2.12194440e-4f;

// x = n ln 2 + r with |r| <= ln(2) / 2; exp(x) = 2^n exp(r).
inline float Exp(float x) {
  // Beyond these the result is 0 or inf anyhow; NaN passes both tests.
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
  constexpr float kRound = 12582912.0f;
  constexpr float kLog2E = 1.44269504f;
  const float rounded = std::fma(x, kLog2E, kRound);
  const float n = rounded - kRound;
  float r = std::fma(n, -kLn2High, x);
  r = std::fma(n, -kLn2Low, r);
  float p = 0.0013813142f;
  p = std::fma(p, r, 0.008369419f);
  p = std::fma(p, r, 0.041668456f);
  p = std::fma(p, r, 0.16666515f);
  p = std::fma(p, r, 0.49999994f);
  const float y = std::fma(r * r, p, r) + 1.0f;
  // 2^n in two factors: n reaches -150 and 128, and a denormal result must be
  // rounded once, in the last product.
  const int32_t exponent =
      static_cast<int32_t>(Bits(rounded)) - static_cast<int32_t>(0x4b400000);
  const int32_t half = exponent >> 1;
  return y * PowerOfTwo(half) * PowerOfTwo(exponent - half);
}

// x = 2^e m with m in [sqrt(1/2), sqrt(2)); log(x) = e ln 2 + log(1 + f).
inline float Log(float x) {
  constexpr uint32_t kSqrtHalf = 0x3f3504f3;
  const bool denormal = x < std::numeric_limits<float>::min();
  const float scaled = denormal ? x * 8388608.0f : x;  // 2^23
  const uint32_t shifted = Bits(scaled) - kSqrtHalf;
  const float e = static_cast<float>((static_cast<int32_t>(shifted) >> 23) -
                                     (denormal ? 23 : 0));
  const float f = FromBits((shifted & 0x007fffff) + kSqrtHalf) - 1.0f;
  float p = 0.067575306f;
  p = std::fma(p, f, -0.11694325f);
  p = std::fma(p, f, 0.11893525f);
  p = std::fma(p, f, -0.124030866f);
  p = std::fma(p, f, 0.14218552f);
  p = std::fma(p, f, -0.1666809f);
  p = std::fma(p, f, 0.20002167f);
  p = std::fma(p, f, -0.2500001f);
  p = std::fma(p, f, 0.3333331f);
  const float square = f * f;
  float y = std::fma(square * f, p, e * kLn2Low);
  y = std::fma(-0.5f, square, y);
  y = std::fma(e, kLn2High, f + y);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  y = x < kInfinity ? y : x;  // inf, NaN
  y = x == 0.0f ? -kInfinity : y;
  return x < 0.0f ? std::numeric_limits<float>::quiet_NaN() : y;
}

inline float Tanh(float x) {
  const float magnitude = std::abs(x);
  const float square = x * x;
  float p = -0.0056669684f;
  p = std::fma(p, square, 0.020606168f);
  p = std::fma(p, square, -0.053730004f);
  p = std::fma(p, square, 0.13331331f);
  p = std::fma(p, square, -0.33333278f);
  const float small = std::fma(magnitude * square, p, magnitude);
  const float large = 1.0f - 2.0f / (Exp(2.0f * magnitude) + 1.0f);
  return std::copysign(magnitude < 0.625f ? small : large, x);
}

inline float Sigmoid(float x) {
  // exp of what is not positive: no overflow, and a tiny result keeps its bits.
  const float e = Exp(-std::abs(x));
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

template <float (*kFunction)(float)>
void Apply(const float* x, float* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = kFunction(x[i]);
}

}  // namespace

void VectorExp(const float* x, float* y, int64_t n) { Apply<Exp>(x, y, n); }

double VectorExpSum(const float* x, float shift, float* y, int64_t n) {
  // Blocks that stay in the first-level cache between the two loops.
  constexpr int64_t kBlock = 1024;
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t count = std::min(kBlock, n - begin);
    const float* in = x + begin;
    float* out = y + begin;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[i] = Exp(in[i] - shift);
    sum += FixedOrderSum(count, [out](int64_t i) { return out[i]; });
  }
  return sum;
}

void VectorLog(const float* x, float* y, int64_t n) { Apply<Log>(x, y, n); }
void VectorTanh(const float* x, float* y, int64_t n) { Apply<Tanh>(x, y, n); }
void VectorSigmoid(const float* x, float* y, int64_t n) {
  Apply<Sigmoid>(x, y, n);
}

}  // namespace cubit
