// SPDX-License-Identifier: Apache-2.0
//
// How fast the dense ops run on a GPU, at the shapes of the models, beside what
// this GPU reaches in the same run: products beside a large product, passes
// over memory beside a copy.

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/functional/function_ref.h"
#include "nlohmann/json.hpp"

#include "ops/activations.h"
#include "ops/adamw.h"
#include "ops/cross_entropy.h"
#include "ops/cuda/gelu_gradient.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/layer_norm.h"
#include "ops/matmul.h"
#include "ops/rms_norm.h"
#include "runtime/command_line.h"
#include "runtime/device.h"
#include "tests/benchmarks/measure_cuda.h"
#include "tests/benchmarks/write_json.h"

ABSL_FLAG(std::string, json, "", "also write the results to this file");
ABSL_FLAG(std::string, model, "all", "125m, 350m, 1.3b or all");
ABSL_FLAG(double, seconds, 0.05, "measured time of each figure");

namespace cubit {
namespace {

constexpr char kUsage[] = R"(Measures the dense ops on a GPU in bf16.

For each op at the shapes of a model: milliseconds, FLOPs and bytes (operands
read and written once), the rates these give, and the larger of the shares of
the two ceilings, which are measured first: a copy, and a bf16 product of 8192^3.

Example:
  bazel run //tests/benchmarks:ops -- --model=125m --json=/tmp/ops.json
)";

constexpr DType kHalf = DType::kBFloat16;
constexpr DType kFloat = DType::kFloat32;
constexpr int64_t kVocabSize = 50304;
constexpr int64_t kValidVocab = 50257;
constexpr int64_t kLogitRows = 8192;

struct Model {
  std::string name;
  int64_t rows;  // tokens of a micro-batch
  int64_t dim;
  int64_t parameters;
};

class Report {
 public:
  Report() : ceilings_(MeasureCeilings(absl::GetFlag(FLAGS_seconds), stream_)) {
    std::printf("copy %.2f TB/s, bf16 product %.0f TFLOP/s\n",
                ceilings_.bytes_per_second * 1e-12,
                ceilings_.flops_per_second * 1e-12);
  }

  void set_model(const std::string& model) { model_ = model; }
  Stream& stream() { return stream_; }

  void Add(const std::string& name, double flops, int64_t bytes,
           absl::FunctionRef<void()> call) {
    const double seconds =
        MedianGpuSeconds(absl::GetFlag(FLAGS_seconds), stream_, call);
    const double byte_rate = static_cast<double>(bytes) / seconds;
    const double flop_rate = flops / seconds;
    const double share = std::max(byte_rate / ceilings_.bytes_per_second,
                                  flop_rate / ceilings_.flops_per_second);
    std::printf("%-5s %-40s %9.4f ms %7.1f TFLOP/s %6.2f TB/s %6.1f%%\n",
                model_.c_str(), name.c_str(), seconds * 1e3, flop_rate * 1e-12,
                byte_rate * 1e-12, 100 * share);
    std::fflush(stdout);
    results_.push_back({{"model", model_},
                        {"name", name},
                        {"seconds", seconds},
                        {"flops", flops},
                        {"bytes", bytes},
                        {"share", share}});
  }

  nlohmann::json Json() const {
    return {{"device", QueryDevice().name},
            {"copy_bytes_per_second", ceilings_.bytes_per_second},
            {"product_flops_per_second", ceilings_.flops_per_second},
            {"results", results_}};
  }

 private:
  Stream stream_;
  Ceilings ceilings_;
  std::string model_;
  nlohmann::json results_ = nlohmann::json::array();
};

// Operands of a linear layer [N, in] -> [N, out].
struct LinearOperands {
  LinearOperands(int64_t rows, int64_t in, int64_t out, bool with_gradient)
      : x(kHalf, {rows, in}, 1.0, 1),
        weight(kHalf, {out, in}, 0.02, 2),
        bias(kHalf, {out}, 0.02, 3),
        y(kHalf, {rows, out}, 1.0, 4),
        other(kHalf, {rows, with_gradient ? std::max(in, out) : 1}, 1.0, 5),
        d_weight(kFloat, {out, in}, 1.0, 6),
        d_bias(kFloat, {out}, 1.0, 7),
        flops(2.0 * static_cast<double>(rows) * static_cast<double>(in * out)),
        bytes(2 * (rows * (in + out) + in * out)),
        size(std::to_string(in) + "x" + std::to_string(out)) {}

  // `other` as [N, width].
  Tensor Other(int64_t width) const {
    return Tensor(other.view().raw(), kHalf, {x.view().dim(0), width});
  }

  DeviceTensor x;
  DeviceTensor weight;
  DeviceTensor bias;
  DeviceTensor y;
  DeviceTensor other;
  DeviceTensor d_weight;
  DeviceTensor d_bias;
  double flops;
  int64_t bytes;
  std::string size;
};

void MeasureProjection(const Model& model, int64_t in, int64_t out,
                       Report& report) {
  const LinearOperands o(model.rows, in, out, true);
  Stream& stream = report.stream();
  report.Add("forward " + o.size, o.flops, o.bytes, [&] {
    LinearForward(o.x.view(), o.weight.view(), o.bias.view(), {}, o.y.view(),
                  stream);
  });
  report.Add("forward+residual " + o.size, o.flops,
             o.bytes + o.y.view().size_bytes(), [&] {
               LinearForward(o.x.view(), o.weight.view(), o.bias.view(),
                             o.Other(out), o.y.view(), stream);
             });
  report.Add("backward_input " + o.size, o.flops, o.bytes, [&] {
    LinearBackwardInput(o.y.view(), o.weight.view(), false, o.Other(in),
                        stream);
  });
  const int64_t weight_bytes =
      o.bytes + 6 * in * out;  // fp32 read and written instead of bf16 read
  report.Add("backward_weight " + o.size, o.flops, weight_bytes, [&] {
    LinearBackwardWeight(o.y.view(), o.x.view(), /*accumulate=*/true,
                         o.d_weight.view(), {}, stream);
  });
  report.Add("backward_weight+bias " + o.size, o.flops, weight_bytes, [&] {
    LinearBackwardWeight(o.y.view(), o.x.view(), /*accumulate=*/true,
                         o.d_weight.view(), o.d_bias.view(), stream);
  });
}

void MeasureGeluProducts(const Model& model, Report& report) {
  const int64_t width = 4 * model.dim;
  const LinearOperands up(model.rows, model.dim, width, true);
  Stream& stream = report.stream();
  const int64_t pre_bytes = up.y.view().size_bytes();
  report.Add("gelu_forward " + up.size, up.flops, up.bytes + pre_bytes, [&] {
    LinearGeluForward(up.x.view(), up.weight.view(), up.bias.view(),
                      up.Other(width), up.y.view(), stream);
  });
  report.Add("forward, then gelu " + up.size, up.flops,
             up.bytes + 2 * pre_bytes, [&] {
               LinearForward(up.x.view(), up.weight.view(), up.bias.view(), {},
                             up.Other(width), stream);
               GeluForward(up.Other(width), up.y.view(), stream);
             });
  // Down: its weight is [dim, 4 dim]; any values serve. Both ways also sum the
  // gradient of the bias before GELU.
  const Tensor weight = up.weight.view().Reshape({model.dim, width});
  const auto backward = [&](cuda::GeluGradientWay way) {
    cuda::LinearGeluBackwardInputBy(way, up.x.view(), weight, up.Other(width),
                                    up.y.view(), up.d_bias.view(), stream);
  };
  report.Add("gelu_backward_input, epilogue " + up.size, up.flops,
             up.bytes + 2 * pre_bytes,
             [&] { backward(cuda::GeluGradientWay::kEpilogue); });
  report.Add("gelu_backward_input, own pass " + up.size, up.flops,
             up.bytes + 3 * pre_bytes,
             [&] { backward(cuda::GeluGradientWay::kOwnPass); });
}

void MeasureHead(const Model& model, Report& report) {
  const LinearOperands o(kLogitRows, model.dim, kVocabSize, false);
  Stream& stream = report.stream();
  report.Add("head forward " + o.size, o.flops, o.bytes, [&] {
    LinearForward(o.x.view(), o.weight.view(), {}, {}, o.y.view(), stream);
  });
  report.Add("head backward_input " + o.size, o.flops, o.bytes, [&] {
    LinearBackwardInput(o.y.view(), o.weight.view(), false, o.x.view(), stream);
  });
  report.Add("head backward_weight " + o.size, o.flops,
             o.bytes + 6 * model.dim * kVocabSize, [&] {
               LinearBackwardWeight(o.y.view(), o.x.view(), /*accumulate=*/true,
                                    o.d_weight.view(), {}, stream);
             });
  const DeviceTensor targets(std::vector<int32_t>(kLogitRows, 7));
  const DeviceTensor losses(kFloat, {kLogitRows}, 0, 8);
  report.Add("cross_entropy " + std::to_string(kVocabSize), 0,
             2 * o.y.view().size_bytes(), [&] {
               CrossEntropy(o.y.view(), targets.view(), kValidVocab, 0.0f, 1.0f,
                            losses.view(), o.y.view(), stream);
             });
}

void MeasureNorms(const Model& model, Report& report) {
  const Shape shape = {model.rows, model.dim};
  const DeviceTensor x(kHalf, shape, 1.0, 1);
  const DeviceTensor d_y(kHalf, shape, 1.0, 2);
  const DeviceTensor y(kHalf, shape, 1.0, 3);
  const DeviceTensor weight(kFloat, {model.dim}, 1.0, 4);
  const DeviceTensor bias(kFloat, {model.dim}, 1.0, 5);
  const DeviceTensor d_weight(kFloat, {model.dim}, 1.0, 6);
  const DeviceTensor d_bias(kFloat, {model.dim}, 1.0, 7);
  const DeviceTensor d_x_sums(kFloat, {model.dim}, 1.0, 10);
  const DeviceTensor mean(kFloat, {model.rows}, 0, 8);
  const DeviceTensor rstd(kFloat, {model.rows}, 0, 9);
  Stream& stream = report.stream();
  const int64_t bytes = x.view().size_bytes();
  report.Add("layer_norm_forward", 0, 2 * bytes, [&] {
    LayerNormForward(x.view(), weight.view(), bias.view(), 1e-5f, y.view(),
                     mean.view(), rstd.view(), stream);
  });
  report.Add("layer_norm_backward", 0, 4 * bytes, [&] {
    LayerNormBackward(d_y.view(), x.view(), weight.view(), mean.view(),
                      rstd.view(), y.view(), d_weight.view(), d_bias.view(),
                      d_x_sums.view(), stream);
  });
  report.Add("rms_norm_forward", 0, 2 * bytes, [&] {
    RmsNormForward(x.view(), weight.view(), 1e-5f, y.view(), rstd.view(),
                   stream);
  });
  report.Add("rms_norm_backward", 0, 4 * bytes, [&] {
    RmsNormBackward(d_y.view(), x.view(), weight.view(), rstd.view(), y.view(),
                    d_weight.view(), d_x_sums.view(), stream);
  });
  report.Add("add", 0, 3 * bytes,
             [&] { Add(x.view(), d_y.view(), y.view(), stream); });
}

void MeasureActivations(const Model& model, Report& report) {
  const int64_t width = 4 * model.dim;
  const DeviceTensor x(kHalf, {model.rows, 2 * width}, 1.0, 1);
  const DeviceTensor y(kHalf, {model.rows, 2 * width}, 1.0, 2);
  const DeviceTensor half(kHalf, {model.rows, width}, 1.0, 3);
  const Tensor pre(x.view().raw(), kHalf, {model.rows, width});
  const Tensor d_pre(y.view().raw(), kHalf, {model.rows, width});
  Stream& stream = report.stream();
  const int64_t bytes = half.view().size_bytes();
  report.Add("gelu_forward", 0, 2 * bytes,
             [&] { GeluForward(pre, half.view(), stream); });
  report.Add("gelu_backward", 0, 3 * bytes,
             [&] { GeluBackward(half.view(), pre, d_pre, stream); });
  report.Add("swiglu_forward", 0, 3 * bytes,
             [&] { SwiGluForward(x.view(), half.view(), stream); });
  report.Add("swiglu_backward", 0, 5 * bytes,
             [&] { SwiGluBackward(half.view(), x.view(), y.view(), stream); });
}

// Tokens as in text: rank r comes with a probability near 1 / r.
std::vector<int32_t> ZipfTokens(int64_t count) {
  std::vector<int32_t> ids;
  uint64_t state = 12345;
  for (int64_t n = 0; n < count; ++n) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const double u = static_cast<double>(state >> 11) * 0x1p-53;
    const double rank =
        std::exp(u * std::log(static_cast<double>(kValidVocab)));
    ids.push_back(static_cast<int32_t>(rank) * 7919 %
                  static_cast<int32_t>(kValidVocab));
  }
  return ids;
}

void MeasureEmbedding(const Model& model, Report& report) {
  const DeviceTensor ids(ZipfTokens(model.rows));
  const DeviceTensor table(kHalf, {kVocabSize, model.dim}, 1.0, 1);
  const DeviceTensor rows(kHalf, {model.rows, model.dim}, 1.0, 2);
  const DeviceTensor d_table(kFloat, {kVocabSize, model.dim}, 1.0, 3);
  Stream& stream = report.stream();
  const int64_t bytes = rows.view().size_bytes();
  report.Add("embedding_forward", 0, 2 * bytes, [&] {
    EmbeddingForward(ids.view(), table.view(), rows.view(), stream);
  });
  report.Add("embedding_backward", 0, bytes, [&] {
    EmbeddingBackward(ids.view(), rows.view(), d_table.view(), stream);
  });
}

void MeasureOptimizer(const Model& model, Report& report) {
  const Shape shape = {model.parameters / kAdamWGroup * kAdamWGroup};
  const DeviceTensor grad(kFloat, shape, 1.0, 1);
  const DeviceTensor m(kFloat, shape, 0.1, 2);
  const DeviceTensor v(kFloat, shape, 0, 3);
  const DeviceTensor weight(kFloat, shape, 1.0, 4);
  const DeviceTensor compute(kHalf, shape, 1.0, 5);
  const DeviceTensor scalars(kFloat, {64}, 0, 6);
  const Tensor squares(scalars.view().raw(), DType::kFloat64, {1});
  const Tensor scale(static_cast<float*>(scalars.view().raw()) + 32, kFloat,
                     {1});
  AdamWStep step;
  step.learning_rate = 1e-4f;
  Stream& stream = report.stream();
  const int64_t bytes = grad.view().size_bytes();
  report.Add("sum_of_squares", 0, bytes,
             [&] { SumOfSquares(grad.view(), squares, stream); });
  ClipScale(squares, 1.0, scale, stream);
  report.Add("adamw", 0, 7 * bytes + compute.view().size_bytes(), [&] {
    AdamWUpdate(step, {}, scale, grad.view(), m.view(), v.view(), weight.view(),
                compute.view(), stream);
    ++step.step;
  });
  report.Add("convert", 0, bytes + compute.view().size_bytes(),
             [&] { Convert(weight.view(), compute.view(), stream); });
}

int Main(int argc, char** argv) {
  ParseCommandLine(argc, argv, kUsage);
  const std::vector<Model> models = {{"125m", 32768, 768, 124439808},
                                     {"350m", 32768, 1024, 354823168},
                                     {"1.3b", 16384, 2048, 1315569664}};
  std::printf("%s\n", QueryDevice().name.c_str());
  Report report;
  for (const Model& model : models) {
    const std::string wanted = absl::GetFlag(FLAGS_model);
    if (wanted != "all" && wanted != model.name) continue;
    report.set_model(model.name);
    MeasureProjection(model, model.dim, 4 * model.dim, report);
    MeasureProjection(model, model.dim, model.dim, report);
    MeasureProjection(model, 4 * model.dim, model.dim, report);
    MeasureGeluProducts(model, report);
    MeasureHead(model, report);
    MeasureNorms(model, report);
    MeasureActivations(model, report);
    MeasureEmbedding(model, report);
    MeasureOptimizer(model, report);
  }
  return ExitStatus(WriteJson(absl::GetFlag(FLAGS_json), report.Json()));
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) { return cubit::Main(argc, argv); }
