// SPDX-License-Identifier: Apache-2.0

#include "launch/export_llmc.h"

#include <cstring>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "tests/launch/checkpoint_models.h"
#include "tests/testing/program.h"

namespace cubit {
namespace {

using testing::MakeSmallModel;
using testing::NewFolder;
using testing::ReadText;

constexpr char kGpt2[] =
    "model { mixer: softmax positional_encoding: none tied_embeddings: true }";
constexpr int64_t kHeaderInts = 256;
// Of MakeSmallModel: layers, width, rows of the embedding, positions.
constexpr int64_t kL = 2, kD = 16, kV = 320, kT = 32;

FileSystem& Files() { return FileSystem::Posix(); }

template <typename T>
std::vector<T> ReadNumbers(const std::string& path) {
  const std::string bytes = ReadText(path);
  std::vector<T> numbers(bytes.size() / sizeof(T));
  std::memcpy(numbers.data(), bytes.data(), numbers.size() * sizeof(T));
  return numbers;
}

const float* ValuesOf(const CheckpointModel& model, const std::string& name) {
  for (const Parameter& parameter : model.model->parameters().parameters()) {
    if (parameter.name == name) return parameter.value.data<float>();
  }
  ADD_FAILURE() << "no parameter " << name;
  return nullptr;
}

TEST(ExportLlmC, LaysWeightsOutAsGpt2) {
  const CheckpointModel model = MakeSmallModel(kGpt2, 1);
  const std::string path = NewFolder() + "/model.bin";
  const absl::Status status = ExportLlmC(model, path, DType::kFloat32, Files());
  ASSERT_TRUE(status.ok()) << status;
  const auto header = ReadNumbers<int32_t>(path);
  EXPECT_EQ(std::vector<int32_t>(header.begin(), header.begin() + 9),
            (std::vector<int32_t>{20240326, 3, kT, 257, kL, 2, kD, kV, 0}));
  const auto floats = ReadNumbers<float>(path);
  int64_t at = kHeaderInts;
  const auto expect = [&](const std::string& name, int64_t count) {
    EXPECT_EQ(
        std::memcmp(&floats[static_cast<size_t>(at)], ValuesOf(model, name),
                    static_cast<size_t>(count) * sizeof(float)),
        0)
        << name;
    at += count;
  };
  const auto expect_layers = [&](const std::vector<std::string>& names,
                                 int64_t count) {
    for (const char* layer : {"layers.0.", "layers.1."}) {
      for (const std::string& name : names) expect(layer + name, count);
    }
  };
  expect("embedding.weight", kV * kD);
  for (int64_t i = 0; i < kT * kD; ++i) {
    ASSERT_EQ(floats[static_cast<size_t>(at + i)], 0) << "position " << i;
  }
  at += kT * kD;
  expect_layers({"mixer_norm.weight"}, kD);
  expect_layers({"mixer_norm.bias"}, kD);
  expect_layers(
      {"mixer.q_proj.weight", "mixer.k_proj.weight", "mixer.v_proj.weight"},
      kD * kD);
  expect_layers({"mixer.q_proj.bias", "mixer.k_proj.bias", "mixer.v_proj.bias"},
                kD);
  expect_layers({"mixer.o_proj.weight"}, kD * kD);
  expect_layers({"mixer.o_proj.bias"}, kD);
  expect_layers({"mlp_norm.weight"}, kD);
  expect_layers({"mlp_norm.bias"}, kD);
  expect_layers({"mlp.up_proj.weight"}, 4 * kD * kD);
  expect_layers({"mlp.up_proj.bias"}, 4 * kD);
  expect_layers({"mlp.down_proj.weight"}, 4 * kD * kD);
  expect_layers({"mlp.down_proj.bias"}, kD);
  expect("final_norm.weight", kD);
  expect("final_norm.bias", kD);
  EXPECT_EQ(at, static_cast<int64_t>(floats.size()));
}

TEST(ExportLlmC, AbsentBiasesAreZerosOfTheSameSize) {
  const std::string folder = NewFolder();
  const std::string with = folder + "/with.bin";
  const std::string without = folder + "/without.bin";
  ASSERT_TRUE(
      ExportLlmC(MakeSmallModel(kGpt2, 1), with, DType::kFloat32, Files())
          .ok());
  CheckpointModel model = MakeSmallModel(
      "model { mixer: softmax positional_encoding: none tied_embeddings: true "
      "bias: false }",
      1);
  ASSERT_TRUE(ExportLlmC(model, without, DType::kFloat32, Files()).ok());
  EXPECT_EQ(ReadText(without).size(), ReadText(with).size());
  // The last numbers are the final norm's bias.
  const auto floats = ReadNumbers<float>(without);
  for (size_t i = floats.size() - kD; i < floats.size(); ++i) {
    EXPECT_EQ(floats[i], 0);
  }
}

TEST(ExportLlmC, BFloat16IsVersion5OfHalfTheSize) {
  const CheckpointModel model = MakeSmallModel(kGpt2, 1);
  const std::string path = NewFolder() + "/model.bin";
  ASSERT_TRUE(ExportLlmC(model, path, DType::kBFloat16, Files()).ok());
  EXPECT_EQ(ReadNumbers<int32_t>(path)[1], 5);
  const auto halves = ReadNumbers<uint16_t>(path);
  uint32_t bits = 0;
  const float first = ValuesOf(model, "embedding.weight")[0];
  std::memcpy(&bits, &first, sizeof(bits));
  EXPECT_NEAR(halves[2 * kHeaderInts], bits >> 16, 1);
}

TEST(ExportLlmC, ListsEveryReasonForWhichItCannot) {
  const std::string path = NewFolder() + "/model.bin";
  const absl::Status status = ExportLlmC(
      MakeSmallModel("model { norm: rms_norm mlp: swiglu ffn_hidden_size: 48 }",
                     1),
      path, DType::kFloat32, Files());
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  for (const char* word :
       {"model.mixer is cubit", "positional_encoding is rope",
        "tied_embeddings is false", "norm is rms_norm", "mlp is swiglu",
        "ffn_hidden_size is", "--to=huggingface"}) {
    EXPECT_NE(status.message().find(word), std::string::npos)
        << status << "\nlacks: " << word;
  }
  EXPECT_FALSE(Files().Exists(path));
}

TEST(ExportLlmC, DoesNotReplaceAFile) {
  const std::string path = NewFolder() + "/model.bin";
  testing::WriteText(path, "mine");
  const absl::Status status =
      ExportLlmC(MakeSmallModel(kGpt2, 1), path, DType::kFloat32, Files());
  EXPECT_TRUE(absl::IsAlreadyExists(status)) << status;
  EXPECT_EQ(ReadText(path), "mine");
}

}  // namespace
}  // namespace cubit
