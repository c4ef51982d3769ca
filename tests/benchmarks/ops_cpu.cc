// SPDX-License-Identifier: Apache-2.0
//
// How fast the dense ops run on the CPU: products beside sgemm, passes over
// memory beside a copy of as many bytes, each measured in the same run on the
// same threads.

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/functional/function_ref.h"
#include "nlohmann/json.hpp"

#include "ops/activations.h"
#include "ops/adamw.h"
#include "ops/cross_entropy.h"
#include "ops/embedding.h"
#include "ops/layer_norm.h"
#include "ops/matmul.h"
#include "ops/rms_norm.h"
#include "runtime/command_line.h"
#include "runtime/device.h"
#include "runtime/thread_pool.h"
#include "tests/benchmarks/measure.h"
#include "tests/benchmarks/write_json.h"
#include "tests/testing/numerics.h"

ABSL_FLAG(std::string, json, "", "also write the results to this file");
ABSL_FLAG(double, seconds, 0.2, "time spent on each measurement");

namespace cubit {
namespace {

using testing::HostTensor;
using testing::RandomNormal;

constexpr char kUsage[] = R"(Measures the dense ops on the CPU, 2048 rows each.

For products: milliseconds, GFLOP/s and the share of this machine's sgemm rate.
For the others: milliseconds, GB/s of operands read and written once, and the
share of a copy's rate.

Example:
  bazel run //tests/benchmarks:ops_cpu -- --json=/tmp/ops.json
)";

constexpr int64_t kRows = 2048;

double Seconds() { return absl::GetFlag(FLAGS_seconds); }

// Bytes per second that a copy reads and writes when both together are `bytes`
// long, by all threads.
double CopyRate(int64_t bytes) {
  constexpr int64_t kPiece = 65536;
  const HostTensor<uint8_t> source({bytes / 2}, 1);
  HostTensor<uint8_t> target({bytes / 2});
  const double best = BestSeconds(Seconds(), [&] {
    ParallelFor(bytes / 2, kPiece, [&](int64_t begin, int64_t end) {
      std::memcpy(&target[begin], &source[begin],
                  static_cast<size_t>(end - begin));
    });
  });
  return static_cast<double>(bytes) / best;
}

class Report {
 public:
  void Product(const std::string& name, double flops,
               absl::FunctionRef<void()> call) {
    // Beside every measurement, because a shared machine's rate drifts.
    Add(name, "GFLOP/s", flops, SgemmRate(Seconds()), call);
  }
  void Pass(const std::string& name, int64_t bytes,
            absl::FunctionRef<void()> call) {
    Add(name, "GB/s", static_cast<double>(bytes), CopyRate(bytes), call);
  }
  const nlohmann::json& results() const { return results_; }

 private:
  void Add(const std::string& name, const char* unit, double work, double peak,
           absl::FunctionRef<void()> call) {
    const double seconds = BestSeconds(Seconds(), call);
    const double rate = work / seconds;
    std::printf("%-36s %9.3f ms %8.1f %-7s %6.1f%%\n", name.c_str(),
                seconds * 1e3, rate * 1e-9, unit, 100 * rate / peak);
    std::fflush(stdout);
    results_.push_back({{"name", name},
                        {"seconds", seconds},
                        {"rate", rate},
                        {"peak", peak},
                        {"share", rate / peak}});
  }

  nlohmann::json results_ = nlohmann::json::array();
};

void MeasureLinear(int64_t in, int64_t out, Report& report) {
  HostTensor<float> x = RandomNormal(1, "x", {kRows, in});
  HostTensor<float> weight = RandomNormal(1, "weight", {out, in});
  HostTensor<float> y = RandomNormal(1, "y", {kRows, out});
  Stream stream;
  const double flops = 2.0 * kRows * static_cast<double>(in * out);
  const std::string size = std::to_string(in) + "x" + std::to_string(out);
  report.Product("linear_forward " + size, flops, [&] {
    LinearForward(x.view(), weight.view(), {}, {}, y.view(), stream);
  });
  report.Product("linear_backward_input " + size, flops, [&] {
    LinearBackwardInput(y.view(), weight.view(), false, x.view(), stream);
  });
  report.Product("linear_backward_weight " + size, flops, [&] {
    LinearBackwardWeight(y.view(), x.view(), /*accumulate=*/true, weight.view(),
                         {}, stream);
  });
}

void MeasureNorms(int64_t dim, Report& report) {
  const HostTensor<float> x = RandomNormal(1, "x", {kRows, dim});
  const HostTensor<float> d_y = RandomNormal(1, "d_y", {kRows, dim});
  const HostTensor<float> weight({dim}, 1.0f);
  HostTensor<float> y({kRows, dim});
  HostTensor<float> mean({kRows});
  HostTensor<float> rstd({kRows});
  HostTensor<float> d_x({kRows, dim});
  HostTensor<float> d_weight({dim});
  HostTensor<float> d_bias({dim});
  HostTensor<float> d_x_sums({dim});
  Stream stream;
  const int64_t bytes = x.view().size_bytes();
  const std::string size = std::to_string(dim);
  report.Pass("layer_norm_forward " + size, 2 * bytes, [&] {
    LayerNormForward(x.view(), weight.view(), weight.view(), 1e-5f, y.view(),
                     mean.view(), rstd.view(), stream);
  });
  report.Pass("layer_norm_backward " + size, 4 * bytes, [&] {
    LayerNormBackward(d_y.view(), x.view(), weight.view(), mean.view(),
                      rstd.view(), d_x.view(), d_weight.view(), d_bias.view(),
                      d_x_sums.view(), stream);
  });
  report.Pass("rms_norm_forward " + size, 2 * bytes, [&] {
    RmsNormForward(x.view(), weight.view(), 1e-5f, y.view(), rstd.view(),
                   stream);
  });
  report.Pass("rms_norm_backward " + size, 4 * bytes, [&] {
    RmsNormBackward(d_y.view(), x.view(), weight.view(), rstd.view(),
                    d_x.view(), d_weight.view(), d_x_sums.view(), stream);
  });
}

void MeasureActivations(int64_t dim, Report& report) {
  const HostTensor<float> x = RandomNormal(1, "x", {kRows, 2 * dim});
  const HostTensor<float> d_y = RandomNormal(1, "d_y", {kRows, 2 * dim});
  const ConstTensor d_half = d_y.view().Slice(0, kRows / 2);
  HostTensor<float> y({kRows, 2 * dim});
  HostTensor<float> half({kRows, dim});
  Stream stream;
  const int64_t bytes = x.view().size_bytes();
  const std::string size = std::to_string(dim);
  report.Pass("gelu_forward 2x" + size, 2 * bytes,
              [&] { GeluForward(x.view(), y.view(), stream); });
  report.Pass("gelu_backward 2x" + size, 3 * bytes,
              [&] { GeluBackward(d_y.view(), x.view(), y.view(), stream); });
  report.Pass("swiglu_forward " + size, bytes + bytes / 2,
              [&] { SwiGluForward(x.view(), half.view(), stream); });
  report.Pass("swiglu_backward " + size, 2 * bytes + bytes / 2, [&] {
    SwiGluBackward(d_half.Reshape({kRows, dim}), x.view(), y.view(), stream);
  });
}

void MeasureCrossEntropy(int64_t vocab_size, Report& report) {
  const int64_t rows = (int64_t{1} << 22) / vocab_size;
  const HostTensor<float> logits =
      RandomNormal(1, "logits", {rows, vocab_size});
  const HostTensor<int32_t> targets({rows}, 7);
  HostTensor<float> losses({rows});
  HostTensor<float> d_logits({rows, vocab_size});
  Stream stream;
  report.Pass("cross_entropy " + std::to_string(vocab_size),
              2 * logits.view().size_bytes(), [&] {
                CrossEntropy(logits.view(), targets.view(), vocab_size, 0.0f,
                             1.0f, losses.view(), d_logits.view(), stream);
              });
}

void MeasureEmbedding(int64_t dim, Report& report) {
  constexpr int64_t kVocabSize = 50257;
  const HostTensor<float> d_y = RandomNormal(1, "d_y", {kRows, dim});
  HostTensor<int32_t> ids({kRows});
  for (int64_t n = 0; n < kRows; ++n) {
    ids[n] = static_cast<int32_t>(n * 7919 % kVocabSize);
  }
  HostTensor<float> d_weight({kVocabSize, dim});
  Stream stream;
  report.Pass("embedding_backward " + std::to_string(dim),
              3 * d_y.view().size_bytes(), [&] {
                EmbeddingBackward(ids.view(), d_y.view(), d_weight.view(),
                                  stream);
              });
}

void MeasureAdamW(int64_t count, Report& report) {
  const HostTensor<float> grad = RandomNormal(1, "grad", {count});
  HostTensor<float> m({count});
  HostTensor<float> v({count});
  HostTensor<float> weight({count});
  AdamWStep step;
  step.learning_rate = 1e-3f;
  Stream stream;
  report.Pass("adamw " + std::to_string(count), 7 * grad.view().size_bytes(),
              [&] {
                AdamWUpdate(step, {}, {}, grad.view(), m.view(), v.view(),
                            weight.view(), {}, stream);
                ++step.step;
              });
}

int Main(int argc, char** argv) {
  ParseCommandLine(argc, argv, kUsage);
  const DeviceInfo device = QueryDevice();
  std::printf("%s\n", device.name.c_str());
  Report report;
  MeasureLinear(128, 128, report);
  MeasureLinear(128, 512, report);
  MeasureLinear(512, 128, report);
  MeasureLinear(768, 768, report);
  MeasureLinear(768, 3072, report);
  MeasureLinear(3072, 768, report);
  for (const int64_t dim : {128, 768}) {
    MeasureNorms(dim, report);
    MeasureActivations(dim, report);
    MeasureEmbedding(dim, report);
  }
  for (const int64_t vocab_size : {256, 50304}) {
    MeasureCrossEntropy(vocab_size, report);
  }
  MeasureAdamW(int64_t{1} << 22, report);
  return ExitStatus(
      WriteJson(absl::GetFlag(FLAGS_json),
                {{"device", device.name}, {"results", report.results()}}));
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) { return cubit::Main(argc, argv); }
