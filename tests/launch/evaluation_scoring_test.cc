// SPDX-License-Identifier: Apache-2.0

#include "launch/evaluation_scoring.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "runtime/philox.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::unique_ptr<Tokenizer> Bytes() {
  auto tokenizer = LoadTokenizer("byte");
  CUBIT_CHECK_OK(tokenizer);
  return *std::move(tokenizer);
}

// "ab" is one token and every other byte one of its own, so that a border of
// words may not be one of tokens.
class PairTokenizer : public Tokenizer {
 public:
  void Encode(absl::string_view text,
              std::vector<int32_t>* ids) const override {
    for (size_t i = 0; i < text.size(); ++i) {
      if (text.substr(i, 2) == "ab") {
        ids->push_back(256);
        ++i;
      } else {
        ids->push_back(static_cast<unsigned char>(text[i]));
      }
    }
  }
  void Decode(absl::Span<const int32_t>, std::string*) const override {}
  const std::string& name() const override { return name_; }
  int64_t vocab_size() const override { return 258; }
  int32_t eot_id() const override { return 257; }
  const std::string& sha256() const override { return name_; }
  const std::vector<TokenizerFile>& files() const override { return files_; }

 private:
  std::string name_ = "pairs";
  std::vector<TokenizerFile> files_;
};

TEST(EncodeRequest, ScoresTheContinuationsTokens) {
  const auto request = EncodeRequest(*Bytes(), "xy", " z", 100);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_THAT(request->tokens, ElementsAre('x', 'y', ' ', 'z'));
  EXPECT_EQ(request->num_targets, 2);
}

TEST(EncodeRequest, MovesTrailingWhiteSpaceToTheContinuation) {
  const auto request = EncodeRequest(*Bytes(), "xy \n", " z", 100);
  ASSERT_TRUE(request.ok());
  EXPECT_EQ(request->tokens.size(), 6u);
  EXPECT_EQ(request->num_targets, 4);
}

// A token over the border belongs to the context, whose own encoding stands in
// front: "xa" + "bz" is x, ab, z as a whole, x, a alone.
TEST(EncodeRequest, CutsAsManyTokensAsTheContextAloneHas) {
  const auto request = EncodeRequest(PairTokenizer(), "xa", "bz", 100);
  ASSERT_TRUE(request.ok());
  EXPECT_THAT(request->tokens, ElementsAre('x', 'a', 'z'));
  EXPECT_EQ(request->num_targets, 1);
}

TEST(EncodeRequest, RefusesAContinuationWithoutATokenOfItsOwn) {
  const auto request = EncodeRequest(PairTokenizer(), "xa", "b", 100);
  ASSERT_FALSE(request.ok());
  EXPECT_THAT(std::string(request.status().message()),
              HasSubstr("has 0 tokens of its own"));
}

TEST(EncodeRequest, DropsTheBeginningOfWhatIsTooLong) {
  const auto bytes = Bytes();
  const auto request = EncodeRequest(*bytes, "abcdef", "gh", 5);
  ASSERT_TRUE(request.ok());
  // Five tokens of input and the last target.
  EXPECT_THAT(request->tokens, ElementsAre('c', 'd', 'e', 'f', 'g', 'h'));
  EXPECT_EQ(request->num_targets, 2);
  EXPECT_TRUE(EncodeRequest(*bytes, "abc", "defgh", 5).ok());
  EXPECT_FALSE(EncodeRequest(*bytes, "abc", "defghi", 5).ok());
}

TEST(EncodeRequest, GivesAnEmptyContextTheEndOfText) {
  const auto bytes = Bytes();
  const auto request = EncodeRequest(*bytes, "", "ab", 100);
  ASSERT_TRUE(request.ok());
  EXPECT_THAT(request->tokens, ElementsAre(bytes->eot_id(), 'a', 'b'));
  EXPECT_EQ(request->num_targets, 2);
}

TEST(EncodeItems, NamesTheItem) {
  std::vector<EvaluationItem> items(40);
  for (EvaluationItem& item : items) item.choices = {{"x", " y", 1, 1}};
  items[20].choices.push_back({"x", std::string(200, 'z'), 1, 1});
  const auto requests = EncodeItems(*Bytes(), items, 100);
  ASSERT_FALSE(requests.ok());
  EXPECT_THAT(std::string(requests.status().message()),
              HasSubstr("item 21: the continuation"));
}

ScoringRequest Request(std::vector<int32_t> tokens, int64_t num_targets) {
  return {std::move(tokens), num_targets};
}

std::vector<ScoringRequest> RandomRequests(size_t count) {
  const Philox random(3, "requests");
  std::vector<ScoringRequest> requests;
  uint64_t draw = 0;
  const auto below = [&](uint64_t n) { return random.Bits(draw++) % n; };
  while (requests.size() < count) {
    std::vector<int32_t> context(1 + below(60));
    for (int32_t& id : context) id = static_cast<int32_t>(below(50));
    for (uint64_t choice = 0; choice <= below(4); ++choice) {
      std::vector<int32_t> tokens = context;
      const uint64_t targets = 1 + below(6);
      for (uint64_t i = 0; i < targets; ++i) {
        tokens.push_back(static_cast<int32_t>(below(2)));
      }
      requests.push_back(Request(tokens, static_cast<int64_t>(targets)));
    }
  }
  return requests;
}

// What every position of every batch asks is what its request says: the same
// tokens before it, the same target; and each target is asked for once.
TEST(ScoringPlan, AsksForEveryTargetOnceAfterItsOwnTokens) {
  const std::vector<ScoringRequest> requests = RandomRequests(300);
  const ScoringPlan plan(requests, 700);
  std::map<size_t, int64_t> asked;
  ScoringWork seen;
  for (size_t i = 0; i < plan.num_batches(); ++i) {
    const PlannedBatch planned = plan.Batch(i);
    const ScoringBatch& batch = planned.batch;
    EXPECT_LE(batch.batch_size * batch.seq_len, 700);
    EXPECT_EQ(batch.seq_len % 16, 0);
    ASSERT_EQ(batch.positions.size(), planned.requests.size());
    seen.padded_tokens += batch.batch_size * batch.seq_len;
    seen.sequences += batch.batch_size;
    for (size_t n = 0; n < planned.requests.size(); ++n) {
      const ScoringRequest& request = requests[planned.requests[n]];
      const auto width = static_cast<int32_t>(batch.seq_len);
      const int32_t row = batch.positions[n] / width * width;
      const size_t before = static_cast<size_t>(batch.positions[n] - row) + 1;
      ASSERT_LT(before, request.tokens.size());
      EXPECT_TRUE(std::equal(request.tokens.begin(),
                             request.tokens.begin() + before,
                             batch.inputs.begin() + row));
      EXPECT_EQ(batch.targets[n], request.tokens[before]);
      EXPECT_GE(
          static_cast<int64_t>(before),
          static_cast<int64_t>(request.tokens.size()) - request.num_targets);
      ++asked[planned.requests[n]];
      ++seen.targets;
    }
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(asked[i], requests[i].num_targets) << i;
  }
  EXPECT_EQ(seen.padded_tokens, plan.work().padded_tokens);
  EXPECT_EQ(seen.sequences, plan.work().sequences);
  EXPECT_EQ(seen.targets, plan.work().targets);
  EXPECT_LT(seen.sequences, 300);
}

TEST(ScoringPlan, SharesInputsThatBeginAnother) {
  // The inputs are 1 2, 1 2, 1 2 3 and 1 4: two sequences.
  const std::vector<ScoringRequest> requests = {
      Request({1, 2, 8}, 1), Request({1, 2, 9}, 1), Request({1, 2, 3, 9}, 2),
      Request({1, 4, 9}, 2)};
  const ScoringPlan plan(requests, 1000);
  EXPECT_EQ(plan.work().sequences, 2);
  EXPECT_EQ(plan.work().tokens, 5);
  EXPECT_EQ(plan.work().padded_tokens, 32);
  EXPECT_EQ(plan.work().targets, 6);
  ASSERT_EQ(plan.num_batches(), 1u);
}

TEST(ScoringPlan, BeginsWithTheLongestAndFitsOneSequenceAlways) {
  const std::vector<ScoringRequest> requests = RandomRequests(50);
  const ScoringPlan plan(requests, 1);
  EXPECT_EQ(static_cast<int64_t>(plan.num_batches()), plan.work().sequences);
  int64_t last = std::numeric_limits<int64_t>::max();
  for (size_t i = 0; i < plan.num_batches(); ++i) {
    const ScoringBatch batch = plan.Batch(i).batch;
    EXPECT_EQ(batch.batch_size, 1);
    EXPECT_LE(batch.seq_len, last);
    last = batch.seq_len;
  }
}

// Sums through a model: the same whatever the batches are, and what each
// request gives alone.
TEST(LogLikelihoods, DoNotDependOnTheBatches) {
  ModelConfig config;
  config.mixer = "cubit";
  config.num_layers = 2;
  config.hidden_size = 16;
  config.num_heads = 2;
  config.ffn_hidden_size = 32;
  config.vocab_size = 64;
  config.valid_vocab = 50;
  config.seq_len = 80;
  auto model = LanguageModel::Create(config);
  ASSERT_TRUE(model.ok());
  ASSERT_TRUE((*model)->parameters().Allocate(false).ok());
  Stream stream;
  CUBIT_CHECK_OK((*model)->parameters().Initialize(1, stream));
  SequenceScorer scorer(model->get(), &stream);
  const std::vector<ScoringRequest> requests = RandomRequests(60);
  const auto sums = [&](absl::Span<const ScoringRequest> some, int64_t budget) {
    const auto result =
        LogLikelihoods(ScoringPlan(some, budget), some.size(), "test", &scorer);
    CUBIT_CHECK_OK(result);
    return *result;
  };
  const std::vector<double> all = sums(requests, 4096);
  EXPECT_TRUE(testing::IsClose(sums(requests, 200), all, 1e-6));
  std::vector<double> alone;
  for (size_t i = 0; i < requests.size(); ++i) {
    alone.push_back(sums({&requests[i], 1}, 4096)[0]);
  }
  EXPECT_TRUE(testing::IsClose(alone, all, 1e-6));
}

EvaluationItem Item(const std::vector<std::pair<int64_t, int64_t>>& lengths,
                    int64_t gold) {
  EvaluationItem item;
  for (const auto& [characters, bytes] : lengths) {
    // Texts of their own; they are not scored here.
    const std::string text(item.choices.size() + 1, 'a');
    item.choices.push_back({"", text, characters, bytes});
  }
  item.gold = gold;
  return item;
}

TEST(JudgeItems, TakesTheBestByEachRule) {
  const std::vector<EvaluationItem> items = {
      Item({{2, 2}, {4, 40}, {30, 30}}, 1)};
  const auto result = JudgeItems(items, {-3, -4, -60});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->items[0].prediction, 0);        // -3
  EXPECT_EQ(result->items[0].prediction_norm, 1);   // -1.5, -1, -2
  EXPECT_EQ(result->items[0].prediction_bytes, 1);  // -1.5, -0.1, -2
  EXPECT_EQ(result->acc.mean, 0);
  EXPECT_EQ(result->acc_norm.mean, 1);
  EXPECT_EQ(result->acc_bytes.mean, 1);
  EXPECT_TRUE(std::isnan(result->acc.standard_error));
}

TEST(JudgeItems, TakesTheFirstOfEqualChoices) {
  const std::vector<EvaluationItem> items = {Item({{1, 1}, {1, 1}}, 1)};
  const auto result = JudgeItems(items, {-2, -2});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->items[0].prediction, 0);
}

// What repeats a choice is never better than it, however its row was rounded.
TEST(JudgeItems, GivesEqualTextsOneScore) {
  EvaluationItem item = Item({{1, 1}, {1, 1}, {1, 1}, {1, 1}}, 1);
  item.choices[2] = item.choices[1];
  item.choices[3] = item.choices[0];
  item.choices[3].context = "another";
  const auto result = JudgeItems({item}, {-3, -2, -1.9999, -2.5});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->items[0].prediction, 1);
  EXPECT_EQ(result->items[0].log_likelihoods,
            (std::vector<double>{-3, -2, -2, -2.5}));
}

TEST(JudgeItems, GivesTheHarnesssStandardError) {
  // Three of four: the deviation of (1, 1, 1, 0) by n - 1 is 0.5, over sqrt(4).
  std::vector<EvaluationItem> items(4, Item({{1, 1}, {1, 1}}, 0));
  items[3].gold = 1;
  const auto result = JudgeItems(items, {-1, -2, -1, -2, -1, -2, -1, -2});
  ASSERT_TRUE(result.ok());
  EXPECT_DOUBLE_EQ(result->acc.mean, 0.75);
  EXPECT_DOUBLE_EQ(result->acc.standard_error, 0.25);
}

TEST(JudgeItems, RefusesWhatIsNotFinite) {
  const std::vector<EvaluationItem> items = {Item({{1, 1}, {1, 1}}, 0)};
  const auto result = JudgeItems(items, {-1, NAN});
  ASSERT_FALSE(result.ok());
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("item 1"));
}

}  // namespace
}  // namespace cubit
