// SPDX-License-Identifier: Apache-2.0
//
// Attention on bf16 tensors in device memory against the reference in double:
// errors at most twice those of the same computation done plainly with bf16
// operands and fp32 sums.

#include <cmath>
#include <map>
#include <ostream>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"

#include "ops/attention.h"
#include "ops/attention_reference.h"
#include "ops/cuda/attention_engines.h"
#include "tests/ops/backend_budget.h"
#include "tests/ops/device_heads.h"
#include "tests/ops/head_array.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::Append;
using ::cubit::testing::DeviceHeads;
using ::cubit::testing::DeviceTensor;
using ::cubit::testing::Documents;
using ::cubit::testing::HeadSize;
using ::cubit::testing::HostTensor;
using ::cubit::testing::IsClose;
using ::cubit::testing::Named;
using ::cubit::testing::RelativeError;
using ::cubit::testing::RelativeTo;
using ::cubit::testing::Rounded;
using ::cubit::testing::TestMask;
using ::cubit::testing::ToDouble;
using reference::Matrix;

struct Case {
  std::string name;
  HeadSize size;
  bool causal = true;
  std::vector<int64_t> documents = {};
  int64_t first = 16;  // column of the first head: odd values hinder vectors
  double stddev = 1;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

enum class Engine { kOwn, kCudnn, kChosen };

// False where the engine does not serve the call.
bool RunForward(const cuda::AttentionForwardCall& call, Engine engine,
                Stream& stream) {
  if (engine == Engine::kCudnn) return CudnnAttentionForward(call, stream);
  if (engine == Engine::kOwn) {
    OwnAttentionForward(call, stream);
  } else {
    AttentionForward(call.q, call.k, call.v, call.scale, call.mask, call.out,
                     call.lse, stream);
  }
  return true;
}

bool RunBackward(const cuda::AttentionBackwardCall& call, Engine engine,
                 Stream& stream) {
  if (engine == Engine::kCudnn) return CudnnAttentionBackward(call, stream);
  if (engine == Engine::kOwn) {
    OwnAttentionBackward(call, stream);
  } else {
    AttentionBackward(call.q, call.k, call.v, call.out, call.lse, call.d_out,
                      call.scale, call.mask, call.accumulate, call.d_q,
                      call.d_k, call.d_v, call.delta, stream);
  }
  return true;
}

// Forward and backward on the device, and in two precisions on the host.
class Computation {
 public:
  explicit Computation(const Case& c)
      : case_(c),
        scale_(1 / std::sqrt(static_cast<float>(c.size.head_dim))),
        q_(c.size, "q", c.stddev, c.first),
        k_(c.size, "k", c.stddev, c.first),
        v_(c.size, "v", 1.0, c.first),
        d_out_(c.size, "d_out", 1.0, c.first) {
    if (!c.documents.empty()) {
      segments_ = Documents(c.size.batch, c.size.seq_len, c.documents);
      device_segments_ =
          DeviceTensor<int32_t>(segments_.shape(), segments_.values());
    }
  }

  AttentionMask mask() const {
    AttentionMask mask;
    mask.causal = case_.causal;
    if (!case_.documents.empty()) mask.segment_ids = device_segments_.view();
    return mask;
  }

  Named<float> Op(Engine engine = Engine::kChosen) const {
    const HeadSize& size = case_.size;
    DeviceHeads out(size, case_.first), d_q(size, case_.first),
        d_k(size, case_.first), d_v(size, case_.first);
    const Shape statistics = {size.batch, size.num_heads, size.seq_len};
    DeviceTensor<float> lse(statistics), delta(statistics);
    Stream stream;
    if (!RunForward({q_.view(), k_.view(), v_.view(), scale_, mask(),
                     out.view(), lse.view()},
                    engine, stream) ||
        !RunBackward({q_.view(),
                      k_.view(),
                      v_.view(),
                      out.view(),
                      lse.view(),
                      d_out_.view(),
                      scale_,
                      mask(),
                      {},
                      d_q.view(),
                      d_k.view(),
                      d_v.view(),
                      delta.view()},
                     engine, stream)) {
      return {};
    }
    stream.Synchronize();
    Named<float> results = {{"lse", lse.Read()}};
    const auto read = [&results](const char* name, DeviceHeads* x) {
      x->Read();
      EXPECT_TRUE(x->RestIsPoisoned()) << name;
      results[name] = x->Values();
    };
    read("out", &out);
    read("d_q", &d_q);
    read("d_k", &d_k);
    read("d_v", &d_v);
    return results;
  }

  Named<double> Exact() const {
    Named<double> results;
    for (int64_t pair = 0; pair < case_.size.num_pairs(); ++pair) {
      const reference::Mask mask = MaskOf(pair);
      const auto head = [pair](const DeviceHeads& x) {
        return x.Head<double>(pair);
      };
      const auto forward = reference::AttentionForward(
          head(q_), head(k_), head(v_), static_cast<double>(scale_), mask);
      const auto d = reference::AttentionBackward(head(q_), head(k_), head(v_),
                                                  static_cast<double>(scale_),
                                                  mask, head(d_out_));
      Append(forward.lse, &results["lse"]);
      Append(forward.out.values(), &results["out"]);
      Append(d.d_q.values(), &results["d_q"]);
      Append(d.d_k.values(), &results["d_k"]);
      Append(d.d_v.values(), &results["d_v"]);
    }
    return results;
  }

  // Products of bf16 operands summed in fp32; P, dS and results rounded.
  Named<float> Plain() const {
    Named<float> results;
    for (int64_t pair = 0; pair < case_.size.num_pairs(); ++pair) {
      const Matrix<float> q = q_.Head<float>(pair), k = k_.Head<float>(pair),
                          v = v_.Head<float>(pair),
                          d_out = d_out_.Head<float>(pair);
      const auto softmax = reference::SoftmaxOfScores(
          reference::ScaledProduct(static_cast<double>(scale_), q, k),
          MaskOf(pair));
      const Matrix<float> weights = Rounded(softmax.p);
      const Matrix<float> out = Rounded(Multiply(weights, v));
      Matrix<float> d_scores = reference::ScaledProduct(1.0, d_out, v);
      for (int64_t i = 0; i < q.rows(); ++i) {
        const float delta = RowDot(d_out, i, out, i);
        for (int64_t j = 0; j < q.rows(); ++j) {
          d_scores(i, j) = softmax.p(i, j) * (d_scores(i, j) - delta);
        }
      }
      d_scores = Rounded(d_scores);
      const double scale = static_cast<double>(scale_);
      const auto gradient = [scale](const Matrix<float>& a,
                                    const Matrix<float>& b) {
        return Rounded(reference::Scaled(scale, Multiply(a, b))).values();
      };
      Append(softmax.lse, &results["lse"]);
      Append(out.values(), &results["out"]);
      Append(gradient(d_scores, k), &results["d_q"]);
      Append(gradient(Transpose(d_scores), q), &results["d_k"]);
      Append(Rounded(Multiply(Transpose(weights), d_out)).values(),
             &results["d_v"]);
    }
    return results;
  }

  // Norms of the errors of d_q and d_k from fp32 sums alone, for rows whose
  // dP_ij - delta_i cancel (all of them where there is one key, and the plain
  // formula then takes one sum twice). Both are sums of K products, which the
  // tensor cores add 16 at a time and round each time by up to an epsilon.
  std::map<std::string, double> Cancelled() const {
    const double rounding =
        std::ceil(static_cast<double>(case_.size.head_dim) / 16) * 0x1p-23;
    double d_q_squares = 0, d_k_squares = 0;
    for (int64_t pair = 0; pair < case_.size.num_pairs(); ++pair) {
      const auto q = q_.Head<double>(pair), k = k_.Head<double>(pair);
      const Matrix<double> terms = TermNorms(pair);
      for (int64_t i = 0; i < q.rows(); ++i) {
        for (int64_t j = 0; j < k.rows(); ++j) {
          const double error = rounding * terms(i, j);
          d_q_squares += error * error * RowDot(k, j, k, j);
          d_k_squares += error * error * RowDot(q, i, q, i);
        }
      }
    }
    const double scale = static_cast<double>(scale_);
    return {{"d_q", scale * std::sqrt(d_q_squares)},
            {"d_k", scale * std::sqrt(d_k_squares)}};
  }

  const DeviceHeads& q() const { return q_; }
  const DeviceHeads& k() const { return k_; }
  const DeviceHeads& v() const { return v_; }
  const DeviceHeads& d_out() const { return d_out_; }
  float scale() const { return scale_; }

 private:
  reference::Mask MaskOf(int64_t pair) const {
    return TestMask(case_.causal, segments_)
        .ForReference(pair / case_.size.num_heads);
  }

  // P_ij times the norm of the products that d_out_i . v_j adds up.
  Matrix<double> TermNorms(int64_t pair) const {
    const auto v = v_.Head<double>(pair), d_out = d_out_.Head<double>(pair);
    Matrix<double> norms =
        reference::SoftmaxOfScores(
            reference::ScaledProduct(static_cast<double>(scale_),
                                     q_.Head<double>(pair),
                                     k_.Head<double>(pair)),
            MaskOf(pair))
            .p;
    for (int64_t i = 0; i < norms.rows(); ++i) {
      for (int64_t j = 0; j < norms.columns(); ++j) {
        double squares = 0;
        for (int64_t c = 0; c < v.columns(); ++c) {
          squares += std::pow(d_out(i, c) * v(j, c), 2);
        }
        norms(i, j) *= std::sqrt(squares);
      }
    }
    return norms;
  }

  Case case_;
  float scale_;
  DeviceHeads q_, k_, v_, d_out_;
  HostTensor<int32_t> segments_;
  DeviceTensor<int32_t> device_segments_;
};

class AttentionBFloat16
    : public ::testing::TestWithParam<std::tuple<Case, Engine>> {
 protected:
  // Empty where the engine does not serve the case.
  Named<float> Compute(const Computation& run) const {
    return run.Op(std::get<Engine>(GetParam()));
  }
};

TEST_P(AttentionBFloat16, ErrsAtMostTwiceAsMuchAsPlainBFloat16) {
  const Computation run(std::get<Case>(GetParam()));
  const Named<float> got = Compute(run);
  if (got.empty()) GTEST_SKIP() << "skipped: not served by this engine";
  const Named<float> plain = run.Plain();
  const std::map<std::string, double> cancelled = run.Cancelled();
  for (const auto& [name, want] : run.Exact()) {
    // lse is fp32: the exponential's approximation and its sum's rounding.
    double budget = name == "lse"
                        ? 2e-6
                        : 2 * RelativeError(ToDouble(plain.at(name)), want);
    const auto terms = cancelled.find(name);
    if (terms != cancelled.end()) budget += RelativeTo(want, terms->second);
    EXPECT_TRUE(IsClose(ToDouble(got.at(name)), want, budget)) << name;
  }
}

TEST_P(AttentionBFloat16, TwoRunsGiveTheSameBits) {
  const Computation run(std::get<Case>(GetParam()));
  const Named<float> first = Compute(run);
  if (first.empty()) GTEST_SKIP() << "skipped: not served by this engine";
  EXPECT_EQ(first, Compute(run));
}

std::string NameOf(
    const ::testing::TestParamInfo<std::tuple<Case, Engine>>& tested) {
  const char* const engines[] = {"Own", "Cudnn"};
  return std::get<Case>(tested.param).name +
         engines[static_cast<int>(std::get<Engine>(tested.param))];
}

INSTANTIATE_TEST_SUITE_P(
    Cases, AttentionBFloat16,
    ::testing::Combine(
        ::testing::Values(
            Case{"Dim16", {2, 2, 100, 16}}, Case{"Dim32", {1, 2, 257, 32}},
            Case{"Dim64", {2, 2, 256, 64}},
            Case{"Dim64Ragged", {1, 3, 333, 64}},
            Case{"Dim80", {1, 2, 200, 80}}, Case{"Dim128", {1, 2, 256, 128}},
            Case{"Dim128Ragged", {2, 1, 259, 128}},
            Case{"Dim96", {1, 1, 130, 96}}, Case{"Dim8", {1, 1, 65, 8}},
            Case{"OneToken", {2, 2, 1, 64}},
            Case{"NotCausal", {1, 2, 200, 64}, false},
            Case{
                "Documents", {2, 2, 300, 64}, true, {1, 60, 64, 130, 131, 250}},
            Case{"Documents128", {1, 2, 260, 128}, true, {100, 200}},
            Case{"NotCausalDocuments", {1, 2, 200, 32}, false, {20, 64, 100}},
            Case{"Unaligned", {1, 2, 150, 64}, true, {}, 3},
            Case{"OddDim", {1, 2, 70, 17}, true, {40}, 3},
            Case{"Sharp", {1, 2, 200, 64}, true, {}, 16, 3.0}),
        ::testing::Values(Engine::kOwn, Engine::kCudnn)),
    NameOf);

TEST(AttentionOnDevice, QueriesAreTheLastOfTheKeys) {
  const Case c{"", {1, 2, 300, 64}, true, {40, 100}};
  const Computation run(c);
  const std::vector<float> whole = run.Op().at("out");
  Stream stream;
  for (const int64_t count : {1, 40, 64, 129, 200}) {
    DeviceHeads out({1, 2, count, 64});
    DeviceTensor<float> lse({1, 2, count});
    AttentionForward(SliceSequence(run.q().view(), 300 - count, count),
                     run.k().view(), run.v().view(), run.scale(), run.mask(),
                     out.view(), lse.view(), stream);
    stream.Synchronize();
    out.Read();
    for (int64_t h = 0; h < 2; ++h) {
      const auto end = whole.begin() + (h + 1) * 300 * 64;
      EXPECT_TRUE(IsClose(out.Head<double>(h).values(),
                          std::vector<double>(end - count * 64, end), 4e-3));
    }
  }
}

// Backward passes that add one of d_q, d_k, d_v to what is there, against
// `alone`, which wrote all. Both are the project's kernels: cuDNN's differ in
// the last bit.
class Accumulation {
 public:
  explicit Accumulation(int64_t first)
      : first_(first),
        run_({"", kSize, true, {}, first}),
        alone_(run_.Op(Engine::kOwn)),
        out_(kSize, first),
        lse_({1, 2, 150}) {
    RunForward({run_.q().view(),
                run_.k().view(),
                run_.v().view(),
                run_.scale(),
                {},
                out_.view(),
                lse_.view()},
               Engine::kOwn, stream_);
  }

  void Expect(int chosen) {
    std::vector<DeviceHeads> d;
    for (int i = 0; i < 3; ++i) d.emplace_back(kSize, "old", 1.0, first_);
    const std::vector<float> old = d[0].Values();
    const DeviceTensor<float> delta({1, 2, 150});
    AttentionBackward(run_.q().view(), run_.k().view(), run_.v().view(),
                      out_.view(), lse_.view(), run_.d_out().view(),
                      run_.scale(), {}, {chosen == 0, chosen == 1, chosen == 2},
                      d[0].view(), d[1].view(), d[2].view(), delta.view(),
                      stream_);
    stream_.Synchronize();
    const char* names[] = {"d_q", "d_k", "d_v"};
    for (int i = 0; i < 3; ++i) {
      DeviceHeads& got = d[static_cast<size_t>(i)];
      got.Read();
      std::vector<double> want = ToDouble(alone_.at(names[i]));
      if (i == chosen) want = testing::Sum(want, ToDouble(old));
      // The sum is rounded to bf16, and so is the gradient `alone`.
      EXPECT_TRUE(
          IsClose(ToDouble(got.Values()), want, i == chosen ? 4e-3 : 0.0))
          << names[i] << ", asked for " << chosen;
    }
  }

 private:
  static constexpr HeadSize kSize = {1, 2, 150, 64};

  int64_t first_;
  Computation run_;
  Named<float> alone_;
  Stream stream_;
  DeviceHeads out_;
  DeviceTensor<float> lse_;
};

TEST(AttentionOnDevice, GradientsAccumulateWhereAsked) {
  for (const int64_t first : {16, 3}) {
    Accumulation accumulation(first);
    for (int chosen = 0; chosen < 3; ++chosen) accumulation.Expect(chosen);
  }
}

}  // namespace
}  // namespace cubit
