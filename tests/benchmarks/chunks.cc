// SPDX-License-Identifier: Apache-2.0
//
// The chunk ops of a wavefront on one GPU (ops/chunked_solve.h,
// chunked_attention.h): what a rank of cp computes, beside a ceiling measured
// in the same run.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "nlohmann/json.hpp"

#include "ops/chunked_attention.h"
#include "ops/chunked_solve.h"
#include "ops/krr.h"
#include "runtime/command_line.h"
#include "runtime/device.h"
#include "runtime/status_macros.h"
#include "tests/benchmarks/head_shapes.h"
#include "tests/benchmarks/measure_cuda.h"
#include "tests/benchmarks/write_json.h"

ABSL_FLAG(std::string, solve_engine, "auto",
          "products of the bf16 ops: auto, warp, or warpgroup (Hopper)");
ABSL_FLAG(std::string, json, "", "also write the results to this file");
ABSL_FLAG(double, seconds, 0.05, "measured time of each figure");

namespace cubit {
namespace {

constexpr char kUsage[] = R"(Measures the chunk ops of a wavefront on a GPU.

For every shape [B, H, Tc, K] of two chunks, bf16: milliseconds and FLOPs of the
products that the op needs (a pair has Tc^2 scores, a diagonal half of them),
beside a bf16 product of 8192^3. A wavefront of cp ranks has 2 cp (2 cp - 1) / 2
pairs and 2 cp diagonals in every op.

Example:
  bazel run //tests/benchmarks:chunks -- --shapes=2x16x1024x128
)";

class Chunks {
 public:
  Chunks(HeadShape size, Stream& stream)
      : size_(size),
        stream_(stream),
        // |r| near 4, as in training.
        r_(Rows(DType::kBFloat16,
                4 / std::sqrt(static_cast<double>(size.head_dim)), 1)),
        v_(Rows(DType::kBFloat16, 1, 2)),
        x_(Rows(DType::kBFloat16, 1, 3)),
        y_(Rows(DType::kBFloat16, 1, 4)),
        solution_(Rows(DType::kBFloat16, 0, 5)),
        weighted_(Rows(DType::kFloat32, 0, 6)),
        g_(Rows(DType::kFloat32, 1, 7)),
        d_rows_(Rows(DType::kFloat32, 0, 8)),
        d_columns_(Rows(DType::kFloat32, 0, 9)),
        column_scale_(Scalars(1)),
        value_scale_(Scalars(1)),
        lse_(Scalars(1)),
        delta_(Scalars(1)),
        row_max_(Scalars(1)),
        row_sum_(Scalars(2)),
        row_sums_(Scalars(2)),
        scale_(DType::kFloat32, {size.num_heads}, 1, 10),
        log_lambda_(DType::kFloat32, {size.num_heads}, 0, 11) {
    const std::vector<float> ones(static_cast<size_t>(size.num_heads), 1.0f);
    CopyToDevice(scale_.view().raw(), ones.data(), scale_.view().size_bytes(),
                 stream_);
    KrrFactorsForward(Heads(r_), {}, scale_.view(), {}, {},
                      column_scale_.view(), value_scale_.view(), stream_);
    BeginKrrRows(Chunk(), Sums(), stream_);
    Solve();
    stream_.Synchronize();
  }

  void Update() {
    KrrChunkUpdate(Chunk(), Chunk(), Heads(x_), Sums(), stream_);
  }
  void Solve() {
    KrrChunkSolve(Chunk(), {Heads(v_), value_scale_.view(), log_lambda_.view()},
                  Sums(), Heads(solution_), lse_.view(), {}, stream_);
  }
  void AdjointUpdate() {
    KrrChunkAdjointUpdate(Chunk(), lse_.view(), Heads(y_), Chunk(), Heads(g_),
                          stream_);
  }
  void AdjointSolve() {
    KrrChunkAdjointSolve(Chunk(), lse_.view(), log_lambda_.view(), Heads(g_),
                         Heads(solution_), stream_);
  }
  void ScoreGradients(bool diagonal) {
    KrrChunkScoreGradients(
        Chunk(), {lse_.view(), delta_.view(), Heads(y_)}, Chunk(), Heads(x_),
        diagonal, {Heads(d_rows_), Heads(d_columns_), Doubles(row_sums_)},
        stream_);
  }
  void Attend(bool diagonal) {
    AttentionChunkForward(Heads(r_), Heads(r_), Heads(x_), 0.1f,
                          {diagonal, {}, {}}, Sums(), stream_);
  }
  void AttendBackward(bool diagonal) {
    AttentionChunkBackward(
        {Heads(r_), Heads(y_), lse_.view(), delta_.view(), Heads(x_)},
        Heads(r_), Heads(x_), 0.1f, {diagonal, {}, {}},
        {Heads(d_rows_), Heads(d_columns_), Heads(g_)}, stream_);
  }
  // Of one product of a pair.
  double ProductFlops() const {
    return 2.0 *
           static_cast<double>(size_.batch * size_.num_heads * size_.seq_len *
                               size_.seq_len * size_.head_dim);
  }

 private:
  DeviceTensor Rows(DType dtype, double stddev, uint64_t seed) const {
    return DeviceTensor(
        dtype, {size_.batch, size_.seq_len, size_.num_heads * size_.head_dim},
        stddev, seed);
  }
  // Zeros, of `words` times 32 bits.
  DeviceTensor Scalars(int64_t words) const {
    return DeviceTensor(DType::kFloat32,
                        {size_.batch, size_.num_heads, words * size_.seq_len},
                        0, 12);
  }
  Tensor Doubles(const DeviceTensor& x) const {
    return Tensor(x.view().raw(), DType::kFloat64,
                  {size_.batch, size_.num_heads, size_.seq_len});
  }
  HeadTensor Heads(const DeviceTensor& x) const {
    return HeadsOf(x.view(), 0, size_.num_heads, size_.head_dim);
  }
  KrrChunk Chunk() const { return {Heads(r_), column_scale_.view(), {}}; }
  RowSums Sums() const {
    return {row_max_.view(), Doubles(row_sum_), Heads(weighted_)};
  }

  HeadShape size_;
  Stream& stream_;
  DeviceTensor r_, v_, x_, y_, solution_;
  DeviceTensor weighted_, g_, d_rows_, d_columns_;
  DeviceTensor column_scale_, value_scale_, lse_, delta_, row_max_;
  DeviceTensor row_sum_, row_sums_;
  DeviceTensor scale_, log_lambda_;
};

nlohmann::json Measure(HeadShape size, const Ceilings& ceilings,
                       Stream& stream) {
  Chunks chunks(size, stream);
  struct Op {
    const char* name;
    double products;  // of a pair; half of them on a diagonal
    std::function<void()> call;
  };
  const Op ops[] = {
      {"update", 2, [&] { chunks.Update(); }},
      {"solve", 1, [&] { chunks.Solve(); }},
      {"attend", 2, [&] { chunks.Attend(false); }},
      {"attend, diagonal", 1, [&] { chunks.Attend(true); }},
      {"attend backward", 5, [&] { chunks.AttendBackward(false); }},
      {"attend backward, diagonal", 2.5, [&] { chunks.AttendBackward(true); }},
      {"adjoint update", 2, [&] { chunks.AdjointUpdate(); }},
      {"adjoint solve", 1, [&] { chunks.AdjointSolve(); }},
      {"score gradients", 4, [&] { chunks.ScoreGradients(false); }},
      {"score gradients, diagonal", 2, [&] { chunks.ScoreGradients(true); }}};
  nlohmann::json results = nlohmann::json::array();
  for (const Op& op : ops) {
    const double seconds =
        MedianGpuSeconds(absl::GetFlag(FLAGS_seconds), stream, op.call);
    const double flops = op.products * chunks.ProductFlops();
    const double share = flops / seconds / ceilings.flops_per_second;
    std::printf("%2d %3d %5d %4d  %-26s %9.4f ms %7.1f TFLOP/s %5.1f%%\n",
                static_cast<int>(size.batch), static_cast<int>(size.num_heads),
                static_cast<int>(size.seq_len), static_cast<int>(size.head_dim),
                op.name, seconds * 1e3, flops / seconds * 1e-12, 100 * share);
    std::fflush(stdout);
    results.push_back(
        {{"shape", {size.batch, size.num_heads, size.seq_len, size.head_dim}},
         {"op", op.name},
         {"seconds", seconds},
         {"flops", flops},
         {"share", share}});
  }
  return results;
}

absl::Status Run() {
  CUBIT_RETURN_IF_ERROR(UseSolveEngine(absl::GetFlag(FLAGS_solve_engine)));
  CUBIT_ASSIGN_OR_RETURN(const std::vector<HeadShape> shapes,
                         HeadShapesOfFlag());
  Stream stream;
  const Ceilings ceilings =
      MeasureCeilings(absl::GetFlag(FLAGS_seconds), stream);
  std::printf("bf16 product %.0f TFLOP/s\n", ceilings.flops_per_second * 1e-12);
  nlohmann::json results = nlohmann::json::array();
  for (const HeadShape& size : shapes) {
    for (auto& result : Measure(size, ceilings, stream)) {
      results.push_back(result);
    }
  }
  return WriteJson(absl::GetFlag(FLAGS_json),
                   {{"device", QueryDevice().name},
                    {"solve_engine", absl::GetFlag(FLAGS_solve_engine)},
                    {"product_flops_per_second", ceilings.flops_per_second},
                    {"results", results}});
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  cubit::ParseCommandLine(argc, argv, cubit::kUsage);
  return cubit::ExitStatus(cubit::Run());
}
