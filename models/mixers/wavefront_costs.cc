// SPDX-License-Identifier: Apache-2.0

#include "models/mixers/wavefront_costs.h"

#include "runtime/device.h"

namespace cubit {
namespace {

using Kind = WavefrontActionKind;

// Milliseconds of an op on a GPU: products, and `base` for what does not depend
// on the other side's length, of which a launch is kLaunch and the rest rows
// that are read and written.
struct OpTime {
  Kind kind;
  double products;              // of a pair; a diagonal has half of them
  double pair_base, pair_rate;  // ms, TFLOP/s
  double diagonal_base, diagonal_rate;
};

// Fitted to //tests/benchmarks:chunks on an H200, [2, 16, 1024, 128] and
// [1, 8, 4096, 128], bf16 (docs/performance.md).
constexpr OpTime kOpTimes[] = {
    {Kind::kSolve, 2, 0.033, 127, 0.033, 127},
    {Kind::kUpdate, 2, 0.037, 409, 0.037, 409},
    {Kind::kAttend, 2, 0.032, 715, 0.034, 433},
    {Kind::kAttendBackward, 5, 0.081, 544, 0.083, 310},
    {Kind::kAdjointSolve, 2, 0.029, 169, 0.029, 169},
    {Kind::kAdjointUpdate, 2, 0.034, 373, 0.034, 373},
    {Kind::kScoreGradients, 4, 0.089, 290, 0.109, 196}};

constexpr double kLaunch = 0.008;
constexpr double kElementsOfBase = 2 * 1024 * 16 * 128;  // of both shapes

// Of a collective of a few ranks beside computation: ms, and bytes in a ms.
constexpr double kMessageBase = 0.02;
constexpr double kMessageRate = 200e6;

double Milliseconds(double flops, double elements, double base, double rate) {
  return kLaunch + (base - kLaunch) * elements / kElementsOfBase +
         flops / (rate * 1e9);
}

}  // namespace

WavefrontCosts GpuWavefrontCosts(const SequenceGroups& groups, int64_t head_dim,
                                 DType dtype) {
  const auto rows = static_cast<double>(groups.layout().chunk_len());
  const auto pairs = static_cast<double>(groups.sequences() * groups.heads());
  const auto dim = static_cast<double>(head_dim);
  const double product = 2 * pairs * rows * rows * dim;
  const double elements = pairs * rows * dim;
  WavefrontCosts costs;
  for (const OpTime& op : kOpTimes) {
    costs[op.kind].pair = Milliseconds(op.products * product, elements,
                                       op.pair_base, op.pair_rate);
    costs[op.kind].diagonal = Milliseconds(op.products / 2 * product, elements,
                                           op.diagonal_base, op.diagonal_rate);
  }
  costs.broadcast = kMessageBase + elements *
                                       static_cast<double>(SizeOf(dtype)) /
                                       kMessageRate;
  // Sums of all chunks, in fp32, of which a rank keeps its own.
  const auto others = static_cast<double>(groups.layout().num_chunks() *
                                          (groups.layout().cp_size() - 1)) /
                      static_cast<double>(groups.layout().cp_size());
  costs.reduce = kMessageBase + others * elements *
                                    static_cast<double>(sizeof(float)) /
                                    kMessageRate;
  return costs;
}

WavefrontCosts WavefrontCostsOf(const SequenceGroups& groups, int64_t head_dim,
                                DType dtype) {
  if (DeviceKind() == "cuda") return GpuWavefrontCosts(groups, head_dim, dtype);
  return {};
}

}  // namespace cubit
