// SPDX-License-Identifier: Apache-2.0
//
// The first step's gradients of whole models on a GPU beside the CPU's, from
// the same weights and data.

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"

#include "launch/gpu_probe.h"
#include "parallel/safetensors.h"
#include "tests/testing/program.h"

namespace cubit {
namespace {

using Tensors = std::map<std::string, std::vector<float>>;

// Sizes that the GPU's tiles do not divide.
constexpr char kSizes[] =
    "model.num_layers=4 model.hidden_size=128 model.num_heads=2 "
    "model.ffn_hidden_size=256 model.seq_len=192 batch.global_batch_size=2";

// A gradient is a product of about a dozen tensors a layer, each rounded to
// bf16 on the way there and back (2^-9): sqrt(2 x 12 x 4 layers) of them add up
// to 2%; twice that.
constexpr double kBFloat16Budget = 0.04;
// Products of fp32 tensors are of two bf16 parts on a GPU (2^-16), likewise.
constexpr double kFloat32Budget = 1e-3;

Tensors FirstStep(const std::string& program, const std::string& overrides) {
  const std::string path = testing::NewFolder() + "/first_step.safetensors";
  std::vector<std::string> words = {program, path};
  for (const auto word : absl::StrSplit(overrides, ' ')) {
    words.emplace_back(word);
  }
  const testing::ProgramResult result = testing::RunProgram(words);
  EXPECT_EQ(result.exit_status, 0) << result.output << result.errors;
  if (result.exit_status != 0) return {};
  const std::string file = testing::ReadText(path);
  const auto header = ParseSafetensors(file);
  EXPECT_TRUE(header.ok()) << header.status();
  Tensors tensors;
  for (const SafetensorsEntry& entry : header->entries) {
    const char* begin = file.data() + entry.offset;
    std::vector<float>& values = tensors[entry.name];
    values.resize(static_cast<size_t>(entry.shape.num_elements()));
    std::copy(begin, begin + values.size() * sizeof(float),
              reinterpret_cast<char*>(values.data()));
  }
  return tensors;
}

double RelativeError(const std::vector<float>& got,
                     const std::vector<float>& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double d = static_cast<double>(got.at(i)) - want[i];
    difference += d * d;
    norm += static_cast<double>(want[i]) * want[i];
  }
  return std::sqrt(difference / norm);
}

// Tensors of few numbers (per-head scalars, biases of per-head projections)
// with those of the same name in other layers, as one; "layers.*.mixer.scale".
// Each number is a sum over all tokens of terms of both signs, and what is left
// in one layer may be 2% of what is left in another (beta_proj.bias here),
// while the errors of the terms are alike. So they are measured against all
// layers.
Tensors JoinedOverLayers(const Tensors& tensors) {
  constexpr size_t kFew = 16;
  Tensors joined;
  for (const auto& [name, values] : tensors) {
    std::string key = name;
    if (values.size() < kFew && absl::StartsWith(name, "layers.")) {
      key = absl::StrCat("layers.*", name.substr(name.find('.', 7)));
    }
    joined[key].insert(joined[key].end(), values.begin(), values.end());
  }
  return joined;
}

// The numbers of a small tensor, got beside wanted.
std::string Listed(const std::vector<float>& got,
                   const std::vector<float>& want) {
  constexpr size_t kMost = 64;
  std::string text;
  for (size_t i = 0; i < want.size() && want.size() <= kMost; ++i) {
    absl::StrAppend(&text, "\n  got ", got[i], ", want ", want[i]);
  }
  return text;
}

// Fails for every tensor that is further than `budget` from the CPU's.
void ExpectClose(const Tensors& got, const Tensors& want, double budget) {
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [name, values] : want) {
    ASSERT_EQ(got.at(name).size(), values.size()) << name;
    EXPECT_LE(RelativeError(got.at(name), values), budget)
        << name << Listed(got.at(name), values);
  }
}

class GradientsCudaTest : public ::testing::TestWithParam<const char*> {};

TEST_P(GradientsCudaTest, AreTheCpusToRounding) {
  const GpuProbe probe = ProbeGpus();
  if (probe.num_gpus == 0) {
    GTEST_SKIP() << "skipped: no GPU (" << probe.problem << ")";
  }
  const std::string model = absl::StrCat(kSizes, " ", GetParam());
  const Tensors want = FirstStep("tests/integration/first_step_cpu", model);
  ASSERT_FALSE(want.empty());
  const auto got = [&model](const char* compute) {
    return FirstStep("tests/integration/first_step_cuda",
                     absl::StrCat(model, " precision.compute=", compute));
  };
  {
    SCOPED_TRACE("bf16");
    ExpectClose(JoinedOverLayers(got("bf16")), JoinedOverLayers(want),
                kBFloat16Budget);
  }
  SCOPED_TRACE("fp32");
  ExpectClose(got("fp32"), want, kFloat32Budget);
}

INSTANTIATE_TEST_SUITE_P(
    Models, GradientsCudaTest,
    ::testing::Values("model.mixer=cubit",
                      "model.mixer=cubit model.cubit.share=true",
                      "model.mixer=softmax model.softmax.qk_norm=true",
                      "model.mixer=deltaformer",
                      "model.mixer=cubit model.mlp=swiglu model.norm=rms_norm "
                      "model.tied_embeddings=true data.document_mask=true"));

}  // namespace
}  // namespace cubit
