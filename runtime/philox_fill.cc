// SPDX-License-Identifier: Apache-2.0
//
// Philox::FillNormal. The logarithm and the cosine of libm take most of the
// time that a normal number takes, and no compiler makes vectors of them. Here
// polynomials come near their results, in loops that become vectors; where the
// float is in doubt, libm decides.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "runtime/philox.h"

namespace cubit {
namespace {

constexpr int kBatch = 64;
// What a product of radius and cosine is off Normal's at most, in units of the
// radius: that is 1e-15, by roundings of the argument of libm's cosine. One
// number in 50,000 is in doubt.
constexpr double kDoubt = 1e-13;

using Key = std::array<uint32_t, 2>;

// Words of blocks in a row: word w of block i is words[w][i].
using Words = std::array<std::array<uint32_t, kBatch>, 4>;

// Normal is about radius * cosine.
struct Polar {
  std::array<double, kBatch> radius;
  std::array<double, kBatch> cosine;
};

// As Philox::Encipher does.
void EncipherBatch(Key key, Words* words) {
  auto& [w0, w1, w2, w3] = *words;
  for (int round = 0; round < Philox::kRounds; ++round) {
    for (int i = 0; i < kBatch; ++i) {
      const uint64_t product0 = Philox::kMultiplier0 * w0[i];
      const uint64_t product1 = Philox::kMultiplier1 * w2[i];
      w0[i] = static_cast<uint32_t>(product1 >> 32) ^ w1[i] ^ key[0];
      w1[i] = static_cast<uint32_t>(product1);
      w2[i] = static_cast<uint32_t>(product0 >> 32) ^ w3[i] ^ key[1];
      w3[i] = static_cast<uint32_t>(product0);
    }
    key[0] += Philox::kWeyl0;
    key[1] += Philox::kWeyl1;
  }
}

// The upper 53 bits of a word of 64, exactly. Processors with AVX2 convert no
// other integers than signed ones of 32 bits.
inline double Upper53(uint32_t high, uint32_t low) {
  const double upper =
      static_cast<double>(static_cast<int32_t>(high ^ 0x80000000u)) + 0x1p31;
  const double lower = static_cast<double>(static_cast<int32_t>(low >> 11));
  return upper * 0x1p21 + lower;
}

inline double DoubleOf(uint64_t bits) {
  return __builtin_bit_cast(double, bits);
}

// Of 0 < u <= 1: u is m 2^e, m from sqrt(1/2) to sqrt(2), and log m is twice
// the series of atanh in (m - 1) / (m + 1).
inline double Log(double u) {
  constexpr uint64_t kOne = 0x3ff0000000000000;
  constexpr uint64_t kSqrtHalf = 0x3fe6a09e667f3bcd;
  constexpr uint64_t kMantissa = 0x000fffffffffffff;
  constexpr uint64_t k2To52 = 0x4330000000000000;
  const uint64_t bits = __builtin_bit_cast(uint64_t, u) + (kOne - kSqrtHalf);
  const double e = DoubleOf(bits >> 52 | k2To52) - (0x1p52 + 1023);
  const double m = DoubleOf((bits & kMantissa) + kSqrtHalf);
  const double f = (m - 1) / (m + 1);
  const double g = f * f;
  double sum = 0;
  for (int odd = 23; odd >= 1; odd -= 2) sum = sum * g + 1.0 / odd;
  return e * 0.693147180559945309417 + 2 * f * sum;
}

// cos(2 pi v) of 0 <= v < 1: the sine of an angle within a right one.
inline double CosineOfTurns(double v) {
  const double angle =
      6.283185307179586476925286766559 * (std::fabs(v - 0.5) - 0.25);
  const double square = angle * angle;
  double sum = 1;
  for (int n = 20; n >= 2; n -= 2) {
    sum = 1 - sum * square * (1.0 / (n * (n + 1)));
  }
  return angle * sum;
}

void MakePolar(uint64_t first, Key key, Key stream, Polar* polar) {
  Words words;
  for (int i = 0; i < kBatch; ++i) {
    const uint64_t index = first + static_cast<uint64_t>(i);
    words[0][i] = static_cast<uint32_t>(index);
    words[1][i] = static_cast<uint32_t>(index >> 32);
    words[2][i] = stream[0];
    words[3][i] = stream[1];
  }
  EncipherBatch(key, &words);
  for (int i = 0; i < kBatch; ++i) {
    const double u = (Upper53(words[1][i], words[0][i]) + 1) * 0x1p-53;
    const double v = Upper53(words[3][i], words[2][i]) * 0x1p-53;
    polar->radius[i] = std::sqrt(-2 * Log(u));
    polar->cosine[i] = CosineOfTurns(v);
  }
}

}  // namespace

void Philox::FillNormal(uint64_t first, int64_t count, double mean,
                        double stddev, float* out) const {
  Polar polar;
  for (int64_t begin = 0; begin < count; begin += kBatch) {
    const uint64_t index = first + static_cast<uint64_t>(begin);
    MakePolar(index, key_, stream_, &polar);
    const int64_t size = std::min<int64_t>(kBatch, count - begin);
    for (int64_t i = 0; i < size; ++i) {
      const double near = mean + stddev * (polar.radius[i] * polar.cosine[i]);
      const double off =
          kDoubt * (std::fabs(stddev) * polar.radius[i] + std::fabs(mean));
      const auto low = static_cast<float>(near - off);
      const auto high = static_cast<float>(near + off);
      out[begin + i] =
          low == high
              ? low
              : static_cast<float>(
                    mean + stddev * Normal(index + static_cast<uint64_t>(i)));
    }
  }
}

}  // namespace cubit
