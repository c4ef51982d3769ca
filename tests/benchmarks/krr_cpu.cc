// SPDX-License-Identifier: Apache-2.0
//
// How fast the mixer cores run on the CPU, beside the rate of sgemm measured in
// the same run on the same threads.

#include <cstdio>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "nlohmann/json.hpp"

#include "ops/attention.h"
#include "ops/delta_solve.h"
#include "ops/krr.h"
#include "runtime/command_line.h"
#include "runtime/device.h"
#include "tests/benchmarks/measure.h"
#include "tests/benchmarks/write_json.h"
#include "tests/testing/numerics.h"

ABSL_FLAG(std::string, json, "", "also write the results to this file");
ABSL_FLAG(double, seconds, 0.5, "time spent on each measurement");

namespace cubit {
namespace {

using testing::HostTensor;
using testing::RandomNormal;

constexpr char kUsage[] = R"(Measures the mixer cores on the CPU.

For every shape: milliseconds, GFLOP/s and the share of this machine's sgemm
rate. A pass counts the products of the causal half alone: 2 forward, 5
backward, each T (T + 1) K a head.

Example:
  bazel run //tests/benchmarks:krr_cpu -- --json=/tmp/krr.json
)";

struct Size {
  int64_t batch;
  int64_t num_heads;
  int64_t seq_len;
  int64_t head_dim;
};

double Seconds() { return absl::GetFlag(FLAGS_seconds); }

// Tensors of a core, [B, T, H, K] each.
class Core {
 public:
  explicit Core(Size size) : size_(size) {
    for (const char* name : {"q", "k", "v", "r", "d_out"}) {
      tensors_.push_back(RandomNormal(
          1, name, {size.batch, size.seq_len, size.num_heads * size.head_dim}));
    }
    while (tensors_.size() < 12) {
      tensors_.emplace_back(tensors_[0].shape());
    }
    const Shape scalars = {size.batch, size.num_heads, size.seq_len};
    for (HostTensor<float>& s : scalars_) s = HostTensor<float>(scalars, 1.0f);
    beta_ = HostTensor<float>({size.batch, size.seq_len, size.num_heads}, 0.5f);
    d_beta_ = beta_;
    scale_ = HostTensor<float>({size.num_heads}, 1.0f);
    log_lambda_ = HostTensor<float>({size.num_heads}, -23.0f);
    d_log_lambda_ = log_lambda_;
    KrrFactorsForward(Rows(3), {}, scale_.view(), {}, {}, scalars_[0].view(),
                      scalars_[1].view(), stream_);
  }

  void AttentionForward() {
    cubit::AttentionForward(Rows(0), Rows(1), Rows(2), kScale, {}, Rows(5),
                            scalars_[2].view(), stream_);
  }
  void AttentionBackward() {
    cubit::AttentionBackward(
        Rows(0), Rows(1), Rows(2), Rows(5), scalars_[2].view(), Rows(4), kScale,
        {}, {}, Rows(8), Rows(9), Rows(10), scalars_[4].view(), stream_);
  }
  void KrrForward() {
    KrrSolveForward(Rows(3), Rows(2), scalars_[0].view(), scalars_[1].view(),
                    log_lambda_.view(), {}, SolvePrecision::kBFloat16x3, 0,
                    Rows(6), scalars_[3].view(), stream_);
  }
  void KrrBackward() {
    KrrSolveBackward(Rows(3), Rows(2), scalars_[0].view(), scalars_[1].view(),
                     log_lambda_.view(), {}, SolvePrecision::kBFloat16x3, {},
                     Rows(6), scalars_[3].view(), Rows(4), Rows(7), Rows(8),
                     Rows(10), scalars_[4].view(), scalars_[5].view(),
                     d_log_lambda_.view(), /*health=*/Tensor(),
                     /*d_r_sums=*/Tensor(), /*d_v_sums=*/Tensor(), stream_);
  }
  void DeltaForward() {
    DeltaSolveForward(Rows(3), Rows(1), Rows(2), Scalars(beta_), kScale, {},
                      SolvePrecision::kBFloat16x3, 0, Rows(6),
                      scalars_[3].view(), stream_);
  }
  void DeltaBackward() {
    DeltaSolveBackward(Rows(3), Rows(1), Rows(2), Scalars(beta_), kScale, {},
                       SolvePrecision::kBFloat16x3, Rows(6), scalars_[3].view(),
                       Rows(4), Rows(7), Rows(8), Rows(9), Rows(10),
                       Scalars(d_beta_), stream_);
  }

 private:
  static constexpr float kScale = 0.125f;

  HeadTensor Rows(size_t i) {
    return HeadsOf(tensors_[i].view(), 0, size_.num_heads, size_.head_dim);
  }
  HeadTensor Scalars(HostTensor<float>& x) {
    return HeadsOf(x.view(), 0, size_.num_heads, 1);
  }

  Size size_;
  Stream stream_;
  std::vector<HostTensor<float>> tensors_;
  HostTensor<float> scalars_[6];
  HostTensor<float> beta_, d_beta_, scale_, log_lambda_, d_log_lambda_;
};

struct Pass {
  const char* name;
  int products;
  void (Core::*run)();
};

// In this order: a backward needs what its forward left.
constexpr Pass kPasses[] = {
    {"krr_forward", 2, &Core::KrrForward},
    {"krr_backward", 5, &Core::KrrBackward},
    {"delta_forward", 2, &Core::DeltaForward},
    {"delta_backward", 5, &Core::DeltaBackward},
    {"attention_forward", 2, &Core::AttentionForward},
    {"attention_backward", 5, &Core::AttentionBackward},
};

nlohmann::json Measure(Size size, const Pass& pass, Core* core) {
  // Beside every measurement, because a shared machine's rate drifts.
  const double peak = SgemmRate(Seconds());
  const double seconds = BestSeconds(Seconds(), [&] { (core->*pass.run)(); });
  const double flops =
      static_cast<double>(pass.products * size.batch * size.num_heads *
                          size.seq_len * (size.seq_len + 1) * size.head_dim);
  const double rate = flops / seconds;
  std::printf("(%2d,%2d,%5d,%4d)  %-19s %9.3f ms %8.1f GFLOP/s %5.1f%%\n",
              static_cast<int>(size.batch), static_cast<int>(size.num_heads),
              static_cast<int>(size.seq_len), static_cast<int>(size.head_dim),
              pass.name, seconds * 1e3, rate * 1e-9, 100 * rate / peak);
  std::fflush(stdout);
  return {{"batch", size.batch},
          {"num_heads", size.num_heads},
          {"seq_len", size.seq_len},
          {"head_dim", size.head_dim},
          {"pass", pass.name},
          {"seconds", seconds},
          {"flops_per_second", rate},
          {"sgemm_flops_per_second", peak},
          {"share_of_sgemm", rate / peak}};
}

int Main(int argc, char** argv) {
  ParseCommandLine(argc, argv, kUsage);
  const DeviceInfo device = QueryDevice();
  std::printf("%s; shares are of sgemm %.1f GFLOP/s, measured again for each\n",
              device.name.c_str(), SgemmRate(Seconds()) * 1e-9);
  std::printf("( B, H,    T,   K)  pass\n");
  nlohmann::json results = nlohmann::json::array();
  for (const Size size : {Size{8, 4, 256, 32}, Size{4, 12, 1024, 64},
                          Size{1, 12, 4096, 64}, Size{1, 16, 1024, 128}}) {
    Core core(size);
    for (const Pass& pass : kPasses) {
      results.push_back(Measure(size, pass, &core));
    }
  }
  return ExitStatus(WriteJson(absl::GetFlag(FLAGS_json),
                              {{"device", device.name}, {"results", results}}));
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) { return cubit::Main(argc, argv); }
