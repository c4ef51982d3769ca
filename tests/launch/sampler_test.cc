// SPDX-License-Identifier: Apache-2.0

#include "launch/sampler.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cubit {
namespace {

using ::testing::HasSubstr;

// How often each token is chosen in 20,000 draws.
std::map<int32_t, double> Shares(const std::vector<float>& logits,
                                 const SamplingOptions& options) {
  constexpr uint64_t kDraws = 20000;
  std::map<int32_t, double> shares;
  for (uint64_t i = 0; i < kDraws; ++i) {
    shares[SampleToken(logits, options, i)] += 1.0 / kDraws;
  }
  return shares;
}

TEST(SampleToken, DrawsFromTheSoftmaxAtATemperature) {
  const std::vector<float> logits = {0, 1, 2, -1};
  for (double temperature : {0.5, 1.0, 2.0}) {
    SamplingOptions options;
    options.temperature = temperature;
    double sum = 0;
    for (float logit : logits) sum += std::exp(logit / temperature);
    std::map<int32_t, double> shares = Shares(logits, options);
    for (int32_t id = 0; id < 4; ++id) {
      const double want =
          std::exp(logits[static_cast<size_t>(id)] / temperature) / sum;
      // Five standard deviations of a share.
      EXPECT_NEAR(shares[id], want, 5 * std::sqrt(want / 20000)) << id;
    }
  }
}

TEST(SampleToken, TakesTheMostLikelyAtTemperatureZero) {
  SamplingOptions options;
  options.temperature = 0;
  EXPECT_EQ(SampleToken({1, 3, 3, 2}, options, 5), 1);
}

TEST(SampleToken, TopKKeepsTheKMostLikely) {
  SamplingOptions options;
  options.temperature = 1;
  options.top_k = 2;
  std::map<int32_t, double> shares = Shares({0, 1, 1, 1}, options);
  EXPECT_EQ(shares.size(), 2u);  // of equal ones the smaller ids
  EXPECT_NEAR(shares[1], 0.5, 0.02);
  EXPECT_NEAR(shares[2], 0.5, 0.02);
  options.top_k = 1;
  EXPECT_EQ(Shares({0, 5, 1}, options).size(), 1u);
}

TEST(SampleToken, TopPKeepsTheSmallestSetWithItsProbability) {
  SamplingOptions options;
  options.temperature = 1;
  // Probabilities 0.5, 0.3, 0.2.
  const std::vector<float> logits = {std::log(0.5F), std::log(0.3F),
                                     std::log(0.2F)};
  options.top_p = 0.4;
  EXPECT_EQ(Shares(logits, options).size(), 1u);
  options.top_p = 0.6;
  std::map<int32_t, double> shares = Shares(logits, options);
  EXPECT_EQ(shares.size(), 2u);
  EXPECT_NEAR(shares[0], 0.625, 0.02);
  options.top_p = 0.9;
  EXPECT_EQ(Shares(logits, options).size(), 3u);
}

TEST(SampleToken, IsAFunctionOfSeedAndIndex) {
  const std::vector<float> logits(100, 0.0F);
  SamplingOptions options;
  options.temperature = 1;
  std::vector<int32_t> first;
  std::vector<int32_t> again;
  std::vector<int32_t> other;
  for (uint64_t i = 0; i < 20; ++i) {
    first.push_back(SampleToken(logits, options, i));
    again.push_back(SampleToken(logits, options, i));
    options.seed = 1;
    other.push_back(SampleToken(logits, options, i));
    options.seed = 0;
  }
  EXPECT_EQ(first, again);
  EXPECT_NE(first, other);
}

TEST(CheckSamplingOptions, NamesTheFlag) {
  const auto problem = [](auto change) {
    SamplingOptions options;
    change(&options);
    return std::string(CheckSamplingOptions(options).message());
  };
  using Options = SamplingOptions;
  EXPECT_EQ(problem([](Options*) {}), "");
  EXPECT_THAT(problem([](Options* o) { o->temperature = -1; }),
              HasSubstr("--temperature is -1"));
  EXPECT_THAT(problem([](Options* o) { o->temperature = NAN; }),
              HasSubstr("--temperature"));
  EXPECT_THAT(problem([](Options* o) { o->top_k = -1; }), HasSubstr("--top_k"));
  EXPECT_THAT(problem([](Options* o) { o->top_p = 0; }), HasSubstr("--top_p"));
  EXPECT_THAT(problem([](Options* o) { o->max_tokens = 0; }),
              HasSubstr("--max_tokens"));
  EXPECT_THAT(problem([](Options* o) {
                o->stop = {"a", ""};
              }),
              HasSubstr("--stop is empty"));
}

class GenerateTextsTest : public ::testing::TestWithParam<std::string> {
 protected:
  GenerateTextsTest() {
    auto tokenizer = LoadTokenizer("byte");
    CUBIT_CHECK_OK(tokenizer);
    tokenizer_ = *std::move(tokenizer);
    ModelConfig config;
    config.mixer = GetParam();
    config.num_layers = 2;
    config.hidden_size = 32;
    config.num_heads = 2;
    config.ffn_hidden_size = 64;
    config.vocab_size = 320;
    config.valid_vocab = 257;
    config.seq_len = 64;
    // Weights large enough for texts that depend on their prompt.
    config.init_std = 2;
    auto model = LanguageModel::Create(config);
    CUBIT_CHECK_OK(model);
    model_ = *std::move(model);
    CUBIT_CHECK_OK(model_->parameters().Allocate(false));
    CUBIT_CHECK_OK(model_->parameters().Initialize(7, stream_));
    options_.max_tokens = 20;
    options_.temperature = 1;
  }

  std::vector<GeneratedText> Generate(const std::vector<std::string>& prompts) {
    shown_.assign(prompts.size(), "");
    auto texts = GenerateTexts(
        *model_, *tokenizer_, prompts, options_, stream_,
        [&](size_t index, absl::string_view piece) {
          shown_[index] += std::string(piece);
        },
        [&](size_t index, const GeneratedText& text) {
          EXPECT_EQ(shown_[index], text.text) << index;
          finished_.push_back(index);
        });
    CUBIT_CHECK_OK(texts);
    return *std::move(texts);
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<LanguageModel> model_;
  Stream stream_;
  SamplingOptions options_;
  std::vector<std::string> shown_;
  std::vector<size_t> finished_;
};

// More prompts than the decoder holds, of many lengths.
TEST_P(GenerateTextsTest, ATextIsTheSameAloneAndAmongOthers) {
  std::vector<std::string> prompts;
  for (size_t i = 0; i < 11; ++i) {
    prompts.push_back(std::string(i * 2, static_cast<char>('a' + i)));
  }
  prompts.push_back(prompts[3]);
  options_.stop = {"e", "\n"};  // some end early and make room
  const std::vector<GeneratedText> together = Generate(prompts);
  ASSERT_EQ(together.size(), prompts.size());
  EXPECT_EQ(finished_.size(), prompts.size());
  size_t different = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const GeneratedText alone = Generate({prompts[i]})[0];
    EXPECT_EQ(together[i].text, alone.text) << i;
    EXPECT_EQ(together[i].reason, alone.reason) << i;
    EXPECT_EQ(together[i].num_tokens, alone.num_tokens) << i;
    different += alone.text != together[0].text ? 1 : 0;
  }
  EXPECT_EQ(together[3].text, together[11].text);
  EXPECT_GT(different, 5u);
}

TEST_P(GenerateTextsTest, StopsWhereAskedTo) {
  const GeneratedText whole = Generate({"x"})[0];
  ASSERT_EQ(whole.reason, FinishReason::kLength);
  EXPECT_EQ(whole.num_tokens, 20);
  ASSERT_GE(whole.text.size(), 6u);
  options_.stop = {whole.text.substr(4, 2)};
  const GeneratedText cut = Generate({"x"})[0];
  EXPECT_EQ(cut.reason, FinishReason::kStop);
  EXPECT_EQ(cut.text, whole.text.substr(0, whole.text.find(options_.stop[0])));
}

TEST_P(GenerateTextsTest, SeedsGiveOtherTexts) {
  const std::string first = Generate({"x"})[0].text;
  options_.seed = 5;
  EXPECT_NE(Generate({"x"})[0].text, first);
}

TEST_P(GenerateTextsTest, HasNothingToDoWithoutPrompts) {
  EXPECT_TRUE(Generate({}).empty());
}

INSTANTIATE_TEST_SUITE_P(Mixers, GenerateTextsTest,
                         ::testing::Values("cubit", "softmax", "deltaformer"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace cubit
