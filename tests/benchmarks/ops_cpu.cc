// SPDX-License-Identifier: Apache-2.0
//
// Rates of the dense CPU ops on all processors: products as a share of what
// large single-threaded products reach when every processor runs one, the other
// ops in bytes per second.
//
//   bazel run //tests/benchmarks:ops_cpu

#include <algorithm>
#include <chrono>
#include <vector>

#include "benchmark/benchmark.h"

#include "ops/activations.h"
#include "ops/adamw.h"
#include "ops/blas.h"
#include "ops/cross_entropy.h"
#include "ops/embedding.h"
#include "ops/layer_norm.h"
#include "ops/matmul.h"
#include "runtime/thread_pool.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::HostTensor;
using ::cubit::testing::RandomNormal;

constexpr int64_t kRows = 2048;

// FLOP/s of one product of edge 1536 per processor, all at once; best of five.
double MeasurePeak() {
  constexpr int64_t kEdge = 1536;
  const int64_t threads = ThreadPool::Global().size();
  const HostTensor<float> a = RandomNormal(1, "a", {kEdge, kEdge});
  HostTensor<float> c({threads, kEdge, kEdge});
  double best = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    ParallelFor(threads, 1, [&](int64_t thread, int64_t) {
      Sgemm(false, true, kEdge, kEdge, kEdge, 1.0f, a.values().data(), kEdge,
            a.values().data(), kEdge, 0.0f, &c[thread * kEdge * kEdge], kEdge);
    });
    const std::chrono::duration<double> seconds =
        std::chrono::steady_clock::now() - start;
    best = std::max(best, 2.0 * kEdge * kEdge * kEdge *
                              static_cast<double>(threads) / seconds.count());
  }
  return best;
}

double Peak() {
  static const double peak = MeasurePeak();
  return peak;
}

void ReportProduct(benchmark::State& state, double flops_per_call) {
  const double flops = flops_per_call * static_cast<double>(state.iterations());
  state.counters["FLOP/s"] =
      benchmark::Counter(flops, benchmark::Counter::kIsRate);
  state.counters["share_of_peak"] =
      benchmark::Counter(flops / Peak(), benchmark::Counter::kIsRate);
}

void ReportBytes(benchmark::State& state, int64_t bytes_per_call) {
  state.SetBytesProcessed(bytes_per_call *
                          static_cast<int64_t>(state.iterations()));
}

struct Layer {
  explicit Layer(const benchmark::State& state)
      : in(state.range(0)),
        out(state.range(1)),
        x(RandomNormal(1, "x", {kRows, in})),
        weight(RandomNormal(1, "weight", {out, in})),
        y(RandomNormal(1, "y", {kRows, out})) {}

  double flops() const { return 2.0 * kRows * static_cast<double>(in * out); }

  int64_t in;
  int64_t out;
  HostTensor<float> x;       // [N, in]
  HostTensor<float> weight;  // [out, in]
  HostTensor<float> y;       // [N, out]
};

void BenchmarkLinearForward(benchmark::State& state) {
  Layer layer(state);
  Peak();
  Stream stream;
  for (auto _ : state) {
    LinearForward(layer.x.view(), layer.weight.view(), {}, layer.y.view(),
                  stream);
  }
  ReportProduct(state, layer.flops());
}

void BenchmarkLinearBackwardInput(benchmark::State& state) {
  Layer layer(state);
  Peak();
  Stream stream;
  for (auto _ : state) {
    LinearBackwardInput(layer.y.view(), layer.weight.view(), false,
                        layer.x.view(), stream);
  }
  ReportProduct(state, layer.flops());
}

void BenchmarkLinearBackwardWeight(benchmark::State& state) {
  Layer layer(state);
  Peak();
  Stream stream;
  for (auto _ : state) {
    LinearBackwardWeight(layer.y.view(), layer.x.view(), layer.weight.view(),
                         {}, stream);
  }
  ReportProduct(state, layer.flops());
}

void Layers(benchmark::internal::Benchmark* bench) {
  for (const auto& in_out : std::vector<std::vector<int64_t>>{{128, 128},
                                                              {128, 512},
                                                              {512, 128},
                                                              {768, 768},
                                                              {768, 3072},
                                                              {3072, 768}}) {
    bench->Args(in_out);
  }
  bench->ArgNames({"in", "out"})->UseRealTime()->Unit(benchmark::kMicrosecond);
}
BENCHMARK(BenchmarkLinearForward)->Apply(Layers);
BENCHMARK(BenchmarkLinearBackwardInput)->Apply(Layers);
BENCHMARK(BenchmarkLinearBackwardWeight)->Apply(Layers);

void BenchmarkLayerNormForward(benchmark::State& state) {
  const int64_t dim = state.range(0);
  const HostTensor<float> x = RandomNormal(1, "x", {kRows, dim});
  const HostTensor<float> weight({dim}, 1.0f);
  HostTensor<float> y({kRows, dim});
  HostTensor<float> mean({kRows});
  HostTensor<float> rstd({kRows});
  Stream stream;
  for (auto _ : state) {
    LayerNormForward(x.view(), weight.view(), weight.view(), 1e-5f, y.view(),
                     mean.view(), rstd.view(), stream);
  }
  ReportBytes(state, 2 * kRows * dim * 4);
}

void BenchmarkLayerNormBackward(benchmark::State& state) {
  const int64_t dim = state.range(0);
  const HostTensor<float> x = RandomNormal(1, "x", {kRows, dim});
  const HostTensor<float> d_y = RandomNormal(1, "d_y", {kRows, dim});
  const HostTensor<float> weight({dim}, 1.0f);
  const HostTensor<float> mean({kRows}, 0.0f);
  const HostTensor<float> rstd({kRows}, 1.0f);
  HostTensor<float> d_x({kRows, dim});
  HostTensor<float> d_weight({dim});
  HostTensor<float> d_bias({dim});
  Stream stream;
  for (auto _ : state) {
    LayerNormBackward(d_y.view(), x.view(), weight.view(), mean.view(),
                      rstd.view(), d_x.view(), d_weight.view(), d_bias.view(),
                      stream);
  }
  ReportBytes(state, 6 * kRows * dim * 4);  // d_y and x are read twice
}

void BenchmarkGeluForward(benchmark::State& state) {
  const int64_t dim = state.range(0);
  const HostTensor<float> x = RandomNormal(1, "x", {kRows, dim});
  HostTensor<float> y({kRows, dim});
  Stream stream;
  for (auto _ : state) GeluForward(x.view(), y.view(), stream);
  ReportBytes(state, 2 * kRows * dim * 4);
}

void BenchmarkGeluBackward(benchmark::State& state) {
  const int64_t dim = state.range(0);
  const HostTensor<float> x = RandomNormal(1, "x", {kRows, dim});
  const HostTensor<float> d_y = RandomNormal(1, "d_y", {kRows, dim});
  HostTensor<float> d_x({kRows, dim});
  Stream stream;
  for (auto _ : state) GeluBackward(d_y.view(), x.view(), d_x.view(), stream);
  ReportBytes(state, 3 * kRows * dim * 4);
}

void BenchmarkSwiGluForward(benchmark::State& state) {
  const int64_t dim = state.range(0);
  const HostTensor<float> x = RandomNormal(1, "x", {kRows, 2 * dim});
  HostTensor<float> y({kRows, dim});
  Stream stream;
  for (auto _ : state) SwiGluForward(x.view(), y.view(), stream);
  ReportBytes(state, 3 * kRows * dim * 4);
}

void BenchmarkCrossEntropy(benchmark::State& state) {
  const int64_t vocab_size = state.range(0);
  const int64_t rows = (int64_t{1} << 22) / vocab_size;
  const HostTensor<float> logits =
      RandomNormal(1, "logits", {rows, vocab_size});
  const HostTensor<int32_t> targets({rows}, 7);
  HostTensor<float> losses({rows});
  HostTensor<float> d_logits({rows, vocab_size});
  Stream stream;
  for (auto _ : state) {
    CrossEntropy(logits.view(), targets.view(), vocab_size, 0.0f, 1.0f,
                 losses.view(), d_logits.view(), stream);
  }
  ReportBytes(state, 2 * rows * vocab_size * 4);
}

void BenchmarkEmbeddingBackward(benchmark::State& state) {
  const int64_t dim = state.range(0);
  const HostTensor<float> d_y = RandomNormal(1, "d_y", {kRows, dim});
  HostTensor<int32_t> ids({kRows});
  for (int64_t n = 0; n < kRows; ++n) {
    ids[n] = static_cast<int32_t>(n * 7919 % 50257);
  }
  HostTensor<float> d_weight({50257, dim});
  Stream stream;
  for (auto _ : state) {
    EmbeddingBackward(ids.view(), d_y.view(), d_weight.view(), stream);
  }
  ReportBytes(state, 3 * kRows * dim * 4);
}

void BenchmarkAdamW(benchmark::State& state) {
  const int64_t count = state.range(0);
  const HostTensor<float> grad = RandomNormal(1, "grad", {count});
  HostTensor<float> m({count});
  HostTensor<float> v({count});
  HostTensor<float> weight({count});
  AdamWStep step;
  step.learning_rate = 1e-3f;
  Stream stream;
  for (auto _ : state) {
    AdamWUpdate(step, grad.view(), m.view(), v.view(), weight.view(), stream);
    ++step.step;
  }
  ReportBytes(state, 7 * count * 4);
}

void Widths(benchmark::internal::Benchmark* bench) {
  bench->Arg(128)->Arg(768)->ArgName("width");
  bench->UseRealTime()->Unit(benchmark::kMicrosecond);
}
BENCHMARK(BenchmarkLayerNormForward)->Apply(Widths);
BENCHMARK(BenchmarkLayerNormBackward)->Apply(Widths);
BENCHMARK(BenchmarkGeluForward)->Apply(Widths);
BENCHMARK(BenchmarkGeluBackward)->Apply(Widths);
BENCHMARK(BenchmarkSwiGluForward)->Apply(Widths);
BENCHMARK(BenchmarkEmbeddingBackward)->Apply(Widths);
BENCHMARK(BenchmarkCrossEntropy)
    ->Arg(256)
    ->Arg(50304)
    ->ArgName("vocab")
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(BenchmarkAdamW)
    ->Arg(1 << 22)
    ->ArgName("count")
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace cubit

BENCHMARK_MAIN();
