// SPDX-License-Identifier: Apache-2.0

#include "models/decoder.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "models/language_model.h"
#include "runtime/philox.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

// Odd sizes: rows that end inside a vector register.
ModelConfig Config(const std::string& mixer) {
  ModelConfig config;
  config.mixer = mixer;
  config.num_layers = 2;
  config.hidden_size = 36;
  config.num_heads = 2;
  config.ffn_hidden_size = 75;
  config.vocab_size = 100;
  config.valid_vocab = 97;
  config.seq_len = 40;
  return config;
}

std::vector<int32_t> Tokens(uint64_t seed, size_t count) {
  const Philox random(seed, "tokens");
  std::vector<int32_t> tokens(count);
  for (size_t i = 0; i < count; ++i) {
    tokens[i] = static_cast<int32_t>(random.Bits(i) % 97);
  }
  return tokens;
}

class DecoderTest : public ::testing::TestWithParam<std::string> {
 protected:
  DecoderTest() {
    auto model = LanguageModel::Create(Config(GetParam()));
    CUBIT_CHECK_OK(model);
    model_ = *std::move(model);
    CUBIT_CHECK_OK(model_->parameters().Allocate(false));
    CUBIT_CHECK_OK(model_->parameters().Initialize(3, stream_));
  }

  std::unique_ptr<Decoder> NewDecoder(int64_t num_texts, int64_t max_tokens) {
    auto decoder =
        Decoder::Create(model_.get(), num_texts, max_tokens, &stream_);
    CUBIT_CHECK_OK(decoder);
    return *std::move(decoder);
  }
  std::vector<float> Start(Decoder* decoder, int64_t text,
                           const std::vector<int32_t>& prompt) {
    auto logits = decoder->Start(text, prompt);
    CUBIT_CHECK_OK(logits);
    return *std::move(logits);
  }
  // Logits after each of `tokens` in turn, for a text that begins with `prompt`
  // and is alone.
  std::vector<std::vector<float>> Alone(const std::vector<int32_t>& prompt,
                                        const std::vector<int32_t>& tokens) {
    const auto decoder = NewDecoder(1, 40);
    std::vector<std::vector<float>> logits = {Start(decoder.get(), 0, prompt)};
    for (int32_t token : tokens) {
      logits.push_back(decoder->Append({{0, token}})[0]);
    }
    return logits;
  }

  Stream stream_;
  std::unique_ptr<LanguageModel> model_;
};

TEST_P(DecoderTest, GivesTheLogitsOfTheParallelForm) {
  const std::vector<int32_t> tokens = Tokens(1, 20);
  const auto cached = NewDecoder(1, 20);
  const auto whole = NewDecoder(1, 20);
  std::vector<float> logits = Start(cached.get(), 0, {tokens[0], tokens[1]});
  for (size_t length = 3; length <= tokens.size(); ++length) {
    logits = cached->Append({{0, tokens[length - 1]}})[0];
    const std::vector<float> want =
        Start(whole.get(), 0, {tokens.data(), tokens.data() + length});
    ASSERT_TRUE(testing::IsClose(testing::ToDouble(logits),
                                 testing::ToDouble(want), 2e-5))
        << "length " << length;
  }
}

// Texts of different lengths in every slot, which start while others are under
// way: each gives the bits that it gives alone.
TEST_P(DecoderTest, ATextHasTheSameBitsAloneAndAmongOthers) {
  const size_t steps = 6;
  const auto decoder = NewDecoder(Decoder::kMaxTexts, 40);
  std::vector<std::vector<int32_t>> prompts;
  std::vector<std::vector<int32_t>> tokens;
  for (uint64_t text = 0; text < Decoder::kMaxTexts; ++text) {
    prompts.push_back(Tokens(10 + text, 1 + 3 * text));
    tokens.push_back(Tokens(20 + text, steps));
  }
  std::vector<std::vector<std::vector<float>>> got(prompts.size());
  for (size_t step = 0; step < prompts.size() + steps; ++step) {
    if (step < prompts.size()) {
      got[step].push_back(
          Start(decoder.get(), static_cast<int64_t>(step), prompts[step]));
    }
    std::vector<Decoder::Next> next;
    for (size_t text = 0; text <= step && text < prompts.size(); ++text) {
      const size_t done = got[text].size() - 1;
      if (done == steps) continue;
      next.push_back({static_cast<int64_t>(text), tokens[text][done]});
    }
    const auto logits = decoder->Append(next);
    for (size_t i = 0; i < next.size(); ++i) {
      got[static_cast<size_t>(next[i].text)].push_back(logits[i]);
    }
  }
  for (size_t text = 0; text < prompts.size(); ++text) {
    EXPECT_EQ(got[text], Alone(prompts[text], tokens[text])) << text;
  }
}

TEST_P(DecoderTest, ASlotThatIsUsedAgainForgetsItsText) {
  const std::vector<int32_t> prompt = Tokens(4, 5);
  const std::vector<int32_t> tokens = Tokens(5, 4);
  const auto decoder = NewDecoder(2, 40);
  Start(decoder.get(), 1, Tokens(6, 30));
  decoder->Append({{1, 7}});
  std::vector<std::vector<float>> got = {Start(decoder.get(), 1, prompt)};
  for (int32_t token : tokens) {
    got.push_back(decoder->Append({{1, token}})[0]);
  }
  EXPECT_EQ(got, Alone(prompt, tokens));
}

TEST_P(DecoderTest, ChecksItsContract) {
  const auto decoder = NewDecoder(2, 3);
  EXPECT_DEATH(decoder->Append({{0, 1}}), "text 0 has 0 tokens");
  Start(decoder.get(), 0, {1, 2, 3});
  EXPECT_DEATH(decoder->Append({{0, 1}}), "text 0 has 3 tokens, room for 3");
  Start(decoder.get(), 0, {1});
  EXPECT_DEATH(decoder->Append({{0, 1}, {0, 2}}), "text 0 twice");
  EXPECT_DEATH(Start(decoder.get(), 2, {1}), "2 of 2");
}

INSTANTIATE_TEST_SUITE_P(Mixers, DecoderTest,
                         ::testing::Values("cubit", "softmax", "deltaformer"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace cubit
