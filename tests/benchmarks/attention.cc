// SPDX-License-Identifier: Apache-2.0
//
// How fast softmax attention runs on the GPU: the project's kernels and cuDNN.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

#include "ops/cuda/attention_engines.h"
#include "runtime/check.h"
#include "runtime/command_line.h"
#include "runtime/device.h"
#include "runtime/logging.h"
#include "runtime/memory.h"
#include "runtime/status_macros.h"
#include "runtime/tensor.h"
#include "tests/benchmarks/head_shapes.h"
#include "tests/benchmarks/measure_cuda.h"
#include "tests/benchmarks/write_json.h"

ABSL_FLAG(std::string, json, "", "also write the results to this file");
ABSL_FLAG(
    std::string, log, "",
    "write which kernels were chosen, and their work space, to this file");
ABSL_FLAG(double, seconds, 0.2, "time spent on each measurement");

namespace cubit {
namespace {

constexpr char kUsage[] = R"(Measures causal softmax attention on the GPU.

For every shape, pass and implementation: milliseconds, TFLOP/s of the causal
half's products (2 forward, 5 backward, 2 T (T + 1) / 2 K each a head), the share
of this GPU's rate of large matrix products, and the share of its copy rate that
reading every input and writing every output once would take.

Examples:
  bazel run //tests/benchmarks:attention
  bazel run //tests/benchmarks:attention -- --shapes=4x16x2048x80 --json=/tmp/a
)";

// q, k, v as columns of one projection, as in a model, and all else.
class Problem {
 public:
  explicit Problem(const HeadShape& size)
      : size_(size), inner_(size.num_heads * size.head_dim) {
    projection_ = Make({size.batch, size.seq_len, 3 * inner_}, 1);
    d_projection_ = Make(projection_.shape(), 2);
    out_ = Make({size.batch, size.seq_len, inner_}, 3);
    d_out_ = Make(out_.shape(), 4);
    const Shape statistics = {size.batch, size.num_heads, size.seq_len};
    lse_ = Make(statistics, 5, DType::kFloat32);
    delta_ = Make(statistics, 6, DType::kFloat32);
  }

  Stream& stream() { return stream_; }
  cuda::AttentionForwardCall Forward() const {
    return {Heads(projection_, 0),
            Heads(projection_, 1),
            Heads(projection_, 2),
            Scale(),
            {},
            Heads(out_, 0),
            lse_};
  }
  cuda::AttentionBackwardCall Backward() const {
    return {Heads(projection_, 0),
            Heads(projection_, 1),
            Heads(projection_, 2),
            Heads(out_, 0),
            lse_,
            Heads(d_out_, 0),
            Scale(),
            {},
            {},
            Heads(d_projection_, 0),
            Heads(d_projection_, 1),
            Heads(d_projection_, 2),
            delta_};
  }

 private:
  Tensor Make(Shape shape, uint64_t seed, DType dtype = DType::kBFloat16) {
    const Tensor measure(nullptr, dtype, shape);
    absl::StatusOr<Buffer> buffer =
        Buffer::Allocate(measure.size_bytes(), MemoryCategory::kActivations);
    CUBIT_CHECK(buffer.ok()) << buffer.status().message();
    buffers_.push_back(*std::move(buffer));
    const Tensor tensor(buffers_.back().data(), dtype, shape);
    FillRandom(seed, 1.0, tensor, stream_);
    return tensor;
  }
  HeadTensor Heads(const Tensor& columns, int64_t i) const {
    return HeadsOf(columns, i * inner_, size_.num_heads, size_.head_dim);
  }
  float Scale() const {
    return 1.0f / std::sqrt(static_cast<float>(size_.head_dim));
  }

  HeadShape size_;
  int64_t inner_;
  Stream stream_;
  std::vector<Buffer> buffers_;
  Tensor projection_, d_projection_, out_, d_out_, lse_, delta_;
};

struct Engine {
  const char* name;
  // False: does not serve.
  bool (*forward)(const cuda::AttentionForwardCall&, Stream&);
  bool (*backward)(const cuda::AttentionBackwardCall&, Stream&);
};

const Engine kEngines[] = {
    {"own",
     [](const cuda::AttentionForwardCall& call, Stream& stream) {
       cuda::OwnAttentionForward(call, stream);
       return true;
     },
     [](const cuda::AttentionBackwardCall& call, Stream& stream) {
       cuda::OwnAttentionBackward(call, stream);
       return true;
     }},
    {"cudnn", cuda::CudnnAttentionForward, cuda::CudnnAttentionBackward},
};

nlohmann::json Report(const HeadShape& size, const Engine& engine,
                      const char* pass, int products, int tensors,
                      double seconds, const Ceilings& ceilings) {
  const double rows =
      static_cast<double>(size.batch * size.num_heads * size.seq_len);
  const double flops =
      products * rows * static_cast<double>((size.seq_len + 1) * size.head_dim);
  const double bytes =
      2 * tensors * rows * static_cast<double>(size.head_dim) + 4 * rows;
  std::printf(
      "(%2d,%2d,%5d,%4d)  %-6s %-17s %8.4f ms %7.1f TFLOP/s %5.1f%%"
      " %8.1f MB %5.1f%%\n",
      static_cast<int>(size.batch), static_cast<int>(size.num_heads),
      static_cast<int>(size.seq_len), static_cast<int>(size.head_dim),
      engine.name, pass, seconds * 1e3, flops / seconds * 1e-12,
      100 * flops / seconds / ceilings.flops_per_second, bytes * 1e-6,
      100 * bytes / seconds / ceilings.bytes_per_second);
  std::fflush(stdout);
  return {{"batch", size.batch},
          {"num_heads", size.num_heads},
          {"seq_len", size.seq_len},
          {"head_dim", size.head_dim},
          {"engine", engine.name},
          {"pass", pass},
          {"seconds", seconds},
          {"flops", flops},
          {"bytes", bytes},
          {"share_of_matmul", flops / seconds / ceilings.flops_per_second},
          {"share_of_copy", bytes / seconds / ceilings.bytes_per_second}};
}

void Measure(const HeadShape& size, const Engine& engine,
             const Ceilings& ceilings, nlohmann::json* results) {
  Problem problem(size);
  const auto forward_call = problem.Forward();
  const auto backward_call = problem.Backward();
  const double budget = absl::GetFlag(FLAGS_seconds);
  if (!engine.forward(forward_call, problem.stream())) {
    std::printf("%s does not serve this forward\n", engine.name);
    return;
  }
  const double forward = MedianGpuSeconds(budget, problem.stream(), [&] {
    engine.forward(forward_call, problem.stream());
  });
  results->push_back(Report(size, engine, "forward", 2, 4, forward, ceilings));
  if (!engine.backward(backward_call, problem.stream())) {
    std::printf("%s does not serve this backward\n", engine.name);
    return;
  }
  const double both = MedianGpuSeconds(budget, problem.stream(), [&] {
    engine.forward(forward_call, problem.stream());
    engine.backward(backward_call, problem.stream());
  });
  results->push_back(
      Report(size, engine, "forward+backward", 7, 12, both, ceilings));
}

absl::Status Run() {
  if (!absl::GetFlag(FLAGS_log).empty()) {
    CUBIT_RETURN_IF_ERROR(LogToFile(absl::GetFlag(FLAGS_log)));
  }
  CUBIT_ASSIGN_OR_RETURN(const std::vector<HeadShape> shapes,
                         HeadShapesOfFlag());
  const DeviceInfo device = QueryDevice();
  Ceilings ceilings;
  {
    Stream stream;
    ceilings = MeasureCeilings(absl::GetFlag(FLAGS_seconds), stream);
  }
  std::printf(
      "%s; shares are of %.1f TFLOP/s (bf16 product, 8192^3) and %.2f "
      "TB/s (copy)\n( B, H,    T,   K)\n",
      device.name.c_str(), ceilings.flops_per_second * 1e-12,
      ceilings.bytes_per_second * 1e-12);
  nlohmann::json results = nlohmann::json::array();
  for (const HeadShape& size : shapes) {
    for (const Engine& engine : kEngines) {
      Measure(size, engine, ceilings, &results);
    }
  }
  return WriteJson(absl::GetFlag(FLAGS_json),
                   {{"device", device.name},
                    {"matmul_flops_per_second", ceilings.flops_per_second},
                    {"copy_bytes_per_second", ceilings.bytes_per_second},
                    {"results", results}});
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  cubit::ParseCommandLine(argc, argv, cubit::kUsage);
  return cubit::ExitStatus(cubit::Run());
}
