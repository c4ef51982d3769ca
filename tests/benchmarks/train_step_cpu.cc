// SPDX-License-Identifier: Apache-2.0
//
// One training step on the CPU: the whole, and its products alone, beside the
// machine's sgemm rate.

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "nlohmann/json.hpp"

#include "launch/config.h"
#include "launch/model_setup.h"
#include "launch/presets.h"
#include "launch/train_state.h"
#include "ops/matmul.h"
#include "runtime/check.h"
#include "runtime/command_line.h"
#include "runtime/philox.h"
#include "runtime/status_macros.h"
#include "tests/benchmarks/measure.h"
#include "tests/benchmarks/write_json.h"
#include "tests/testing/numerics.h"

ABSL_FLAG(std::string, preset, "tiny", "configuration whose step is measured");
ABSL_FLAG(std::string, json, "", "also write the results to this file");
ABSL_FLAG(double, seconds, 3, "time spent on each measurement");

namespace cubit {
namespace {

using testing::HostTensor;
using testing::RandomNormal;

constexpr char kUsage[] = R"(Measures a training step on the CPU.

products: the linear layers of a micro-batch, forward and backward, alone.
step: a whole step (all micro-batches and the update), counted in model FLOPs.

Example:
  bazel run //tests/benchmarks:train_step_cpu -- --preset=tiny
)";

constexpr int64_t kByteVocabulary = 257;

// A linear layer's three products on random data.
class Product {
 public:
  Product(int64_t rows, int64_t out, int64_t in)
      : x_(RandomNormal(1, "x", {rows, in})),
        weight_(RandomNormal(1, "weight", {out, in})),
        y_({rows, out}),
        d_x_({rows, in}),
        d_weight_({out, in}) {}

  void Run(Stream& stream) {
    LinearForward(x_.view(), weight_.view(), {}, {}, y_.view(), stream);
    LinearBackwardInput(y_.view(), weight_.view(), false, d_x_.view(), stream);
    LinearBackwardWeight(y_.view(), x_.view(), /*accumulate=*/true,
                         d_weight_.view(), Tensor(), stream);
  }
  double flops() const {
    return 6 * static_cast<double>(weight_.shape().num_elements()) *
           static_cast<double>(x_.shape()[0]);
  }

 private:
  HostTensor<float> x_, weight_, y_, d_x_, d_weight_;
};

// The products of one layer and of the head; layers repeat.
std::vector<Product> Products(const ModelConfig& config, int64_t rows) {
  const int64_t hidden = config.hidden_size;
  std::vector<Product> products;
  products.emplace_back(rows, 4 * hidden + config.num_heads, hidden);
  products.emplace_back(rows, hidden, hidden);
  products.emplace_back(rows, config.ffn_hidden_size, hidden);
  products.emplace_back(rows, hidden, config.ffn_hidden_size);
  return products;
}

double ProductRate(const ModelConfig& config, int64_t rows, double seconds) {
  Stream stream;
  std::vector<Product> products = Products(config, rows);
  double flops = 0;
  for (const Product& product : products) flops += product.flops();
  return flops / BestSeconds(seconds, [&] {
           for (Product& product : products) product.Run(stream);
         });
}

Batch RandomBatch(const ModelConfig& config, int64_t size) {
  Batch batch;
  const Philox random(1, "tokens");
  const int64_t count = size * config.seq_len;
  for (int64_t i = 0; i <= count; ++i) {
    const auto id =
        static_cast<int32_t>(random.Bits(static_cast<uint64_t>(i)) %
                             static_cast<uint64_t>(config.valid_vocab));
    if (i < count) batch.inputs.push_back(id);
    if (i > 0) batch.targets.push_back(id);
  }
  batch.segment_ids.resize(static_cast<size_t>(count));
  batch.valid_tokens = count;
  return batch;
}

absl::Status Run() {
  const double seconds = absl::GetFlag(FLAGS_seconds);
  CUBIT_ASSIGN_OR_RETURN(const RunConfig config,
                         LoadPreset(absl::GetFlag(FLAGS_preset)));
  CUBIT_ASSIGN_OR_RETURN(const ModelConfig model_config,
                         MakeModelConfig(config, kByteVocabulary));
  CUBIT_ASSIGN_OR_RETURN(auto model, LanguageModel::Create(model_config));
  const RunPlan plan = MakePlan(config, *model);
  CUBIT_ASSIGN_OR_RETURN(auto state,
                         TrainState::Create(config, std::move(model)));
  CUBIT_RETURN_IF_ERROR(
      state->model().parameters().Initialize(config.seed(), state->stream()));
  const int64_t micro_batch = config.batch().micro_batch_size();
  const std::vector<Batch> batches(static_cast<size_t>(plan.num_micro_batches),
                                   RandomBatch(model_config, micro_batch));
  const float grad_scale = 1.0f / static_cast<float>(plan.step_tokens);

  const double peak = SgemmRate(seconds / 3);
  const double products =
      ProductRate(model_config, micro_batch * model_config.seq_len, seconds);
  int64_t step = 0;
  const double step_seconds = BestSeconds(seconds, [&] {
    state->BeginStep();
    CUBIT_CHECK(state->ForwardBackward(batches, grad_scale).ok());
    CUBIT_CHECK(state->Update(++step, 1e-4).ok());
    CUBIT_CHECK(state->FinishStep().ok());
  });
  const double rate = plan.step_flops / step_seconds;
  std::printf("%s on %s\n", absl::GetFlag(FLAGS_preset).c_str(),
              QueryDevice().name.c_str());
  std::printf("%-10s %9.1f GFLOP/s\n", "sgemm", peak * 1e-9);
  std::printf("%-10s %9.1f GFLOP/s %5.1f%%\n", "products", products * 1e-9,
              100 * products / peak);
  std::printf("%-10s %9.1f GFLOP/s %5.1f%%  %.1f ms, %.0f tokens/s\n", "step",
              rate * 1e-9, 100 * rate / peak, step_seconds * 1e3,
              static_cast<double>(plan.step_tokens) / step_seconds);
  return WriteJson(absl::GetFlag(FLAGS_json),
                   {{"preset", absl::GetFlag(FLAGS_preset)},
                    {"device", QueryDevice().name},
                    {"sgemm_flops_per_second", peak},
                    {"products_flops_per_second", products},
                    {"products_share", products / peak},
                    {"step_seconds", step_seconds},
                    {"step_flops", plan.step_flops},
                    {"step_share", rate / peak}});
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  cubit::ParseCommandLine(argc, argv, cubit::kUsage);
  return cubit::ExitStatus(cubit::Run());
}
