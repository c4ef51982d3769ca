// SPDX-License-Identifier: Apache-2.0
//
// The KRR solve on a GPU at the shapes where users train, beside the ceilings
// measured in the same run.

#include "ops/krr.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/flags/flag.h"
#include "nlohmann/json.hpp"

#include "runtime/command_line.h"
#include "runtime/device.h"
#include "runtime/status_macros.h"
#include "tests/benchmarks/head_shapes.h"
#include "tests/benchmarks/measure_cuda.h"
#include "tests/benchmarks/write_json.h"

ABSL_FLAG(std::string, solve_engine, "auto",
          "products of the bf16 solves: auto, warp, or warpgroup (Hopper)");
ABSL_FLAG(std::string, json, "", "also write the results to this file");
ABSL_FLAG(std::vector<std::string>, precisions,
          std::vector<std::string>({"bf16", "bf16x3", "tf32"}),
          "which of bf16, bf16x3 and tf32, separated by commas");
ABSL_FLAG(double, seconds, 0.05, "measured time of each figure");

namespace cubit {
namespace {

constexpr char kUsage[] = R"(Measures the KRR solve on a GPU.

For every shape and precision, forward and forward + backward: milliseconds,
FLOPs of the causal half alone (2 products forward, 5 backward), bytes of the
operands (read or written once) and the larger of the shares of the two
ceilings, which are measured first: a copy, and a bf16 product of 8192^3.

Example:
  bazel run //tests/benchmarks:krr -- --json=/tmp/krr.json
)";

struct Precision {
  const char* name;
  DType dtype;
  SolvePrecision precision;
};

constexpr Precision kPrecisions[] = {
    {"bf16", DType::kBFloat16, SolvePrecision::kBFloat16x3},
    {"bf16x3", DType::kFloat32, SolvePrecision::kBFloat16x3},
    {"tf32", DType::kFloat32, SolvePrecision::kTFloat32}};

class Solve {
 public:
  Solve(HeadShape size, Precision precision, Stream& stream)
      : size_(size),
        precision_(precision),
        stream_(stream),
        // |r| near 4, as in training.
        r_(Rows(4 / std::sqrt(static_cast<double>(size.head_dim)), 1)),
        v_(Rows(1, 2)),
        x_(Rows(0, 3)),
        d_x_(Rows(1, 4)),
        y_(Rows(0, 5)),
        d_r_(Rows(0, 6)),
        d_v_(Rows(0, 7)),
        column_scale_(Scalars(0)),
        value_scale_(Scalars(0)),
        lse_(Scalars(0)),
        d_column_scale_(Scalars(0)),
        d_value_scale_(Scalars(0)),
        scale_(DType::kFloat32, {size.num_heads}, 1, 8),
        log_lambda_(DType::kFloat32, {size.num_heads}, 0, 9),
        d_log_lambda_(DType::kFloat32, {size.num_heads}, 0, 10) {
    const std::vector<float> ones(static_cast<size_t>(size.num_heads), 1.0f);
    CopyToDevice(scale_.view().raw(), ones.data(), scale_.view().size_bytes(),
                 stream_);
    KrrFactorsForward(Heads(r_), {}, scale_.view(), {}, {},
                      column_scale_.view(), value_scale_.view(), stream_);
    stream_.Synchronize();
  }

  void Forward() {
    KrrSolveForward(Heads(r_), Heads(v_), column_scale_.view(),
                    value_scale_.view(), log_lambda_.view(), {},
                    precision_.precision, 0, Heads(x_), lse_.view(), stream_);
  }
  void Backward() {
    KrrSolveBackward(Heads(r_), Heads(v_), column_scale_.view(),
                     value_scale_.view(), log_lambda_.view(), {},
                     precision_.precision, {}, Heads(x_), lse_.view(),
                     Heads(d_x_), Heads(y_), Heads(d_r_), Heads(d_v_),
                     d_column_scale_.view(), d_value_scale_.view(),
                     d_log_lambda_.view(), /*health=*/Tensor(),
                     /*d_r_sums=*/Tensor(), /*d_v_sums=*/Tensor(), stream_);
  }
  // Of one product of the causal half.
  double ProductFlops() const {
    return static_cast<double>(size_.batch * size_.num_heads * size_.seq_len *
                               (size_.seq_len + 1) * size_.head_dim);
  }
  int64_t RowBytes() const { return r_.view().size_bytes(); }

 private:
  DeviceTensor Rows(double stddev, uint64_t seed) const {
    return DeviceTensor(
        precision_.dtype,
        {size_.batch, size_.seq_len, size_.num_heads * size_.head_dim}, stddev,
        seed);
  }
  DeviceTensor Scalars(double stddev) const {
    return DeviceTensor(DType::kFloat32,
                        {size_.batch, size_.num_heads, size_.seq_len}, stddev,
                        11);
  }
  HeadTensor Heads(const DeviceTensor& x) const {
    return HeadsOf(x.view(), 0, size_.num_heads, size_.head_dim);
  }

  HeadShape size_;
  Precision precision_;
  Stream& stream_;
  DeviceTensor r_, v_, x_, d_x_, y_, d_r_, d_v_;
  DeviceTensor column_scale_, value_scale_, lse_;
  DeviceTensor d_column_scale_, d_value_scale_;
  DeviceTensor scale_, log_lambda_, d_log_lambda_;
};

nlohmann::json Measure(HeadShape size, Precision precision,
                       const Ceilings& ceilings, Stream& stream) {
  Solve solve(size, precision, stream);
  nlohmann::json results = nlohmann::json::array();
  const auto add = [&](const char* pass, double products, int64_t tensors,
                       auto call) {
    const double seconds =
        MedianGpuSeconds(absl::GetFlag(FLAGS_seconds), stream, call);
    const double flops = products * solve.ProductFlops();
    const int64_t bytes = tensors * solve.RowBytes();
    const double share = std::max(
        flops / seconds / ceilings.flops_per_second,
        static_cast<double>(bytes) / seconds / ceilings.bytes_per_second);
    std::printf("%2d %3d %5d %4d  %-7s %-16s %9.4f ms %7.1f TFLOP/s %5.1f%%\n",
                static_cast<int>(size.batch), static_cast<int>(size.num_heads),
                static_cast<int>(size.seq_len), static_cast<int>(size.head_dim),
                precision.name, pass, seconds * 1e3, flops / seconds * 1e-12,
                100 * share);
    std::fflush(stdout);
    results.push_back(
        {{"shape", {size.batch, size.num_heads, size.seq_len, size.head_dim}},
         {"precision", precision.name},
         {"pass", pass},
         {"seconds", seconds},
         {"flops", flops},
         {"bytes", bytes},
         {"share", share}});
  };
  add("forward", 2, 3, [&] { solve.Forward(); });
  add("forward+backward", 7, 9, [&] {
    solve.Forward();
    solve.Backward();
  });
  return results;
}

absl::Status Run() {
  CUBIT_RETURN_IF_ERROR(UseSolveEngine(absl::GetFlag(FLAGS_solve_engine)));
  CUBIT_ASSIGN_OR_RETURN(const std::vector<HeadShape> shapes,
                         HeadShapesOfFlag());
  Stream stream;
  const Ceilings ceilings =
      MeasureCeilings(absl::GetFlag(FLAGS_seconds), stream);
  std::printf("copy %.2f TB/s, bf16 product %.0f TFLOP/s\n",
              ceilings.bytes_per_second * 1e-12,
              ceilings.flops_per_second * 1e-12);
  const std::vector<std::string> wanted = absl::GetFlag(FLAGS_precisions);
  nlohmann::json results = nlohmann::json::array();
  for (const Precision& precision : kPrecisions) {
    if (!absl::c_linear_search(wanted, precision.name)) continue;
    for (const HeadShape& size : shapes) {
      for (auto& result : Measure(size, precision, ceilings, stream)) {
        results.push_back(result);
      }
    }
  }
  return WriteJson(absl::GetFlag(FLAGS_json),
                   {{"device", QueryDevice().name},
                    {"solve_engine", absl::GetFlag(FLAGS_solve_engine)},
                    {"copy_bytes_per_second", ceilings.bytes_per_second},
                    {"product_flops_per_second", ceilings.flops_per_second},
                    {"results", results}});
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  cubit::ParseCommandLine(argc, argv, cubit::kUsage);
  return cubit::ExitStatus(cubit::Run());
}
