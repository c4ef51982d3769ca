// SPDX-License-Identifier: Apache-2.0

#include "launch/config.h"

#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "runtime/file_system.h"

namespace cubit {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

std::string ParseError(const std::string& text) {
  const auto config = ParseConfig(text, "my.textproto");
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << text;
  return std::string(config.status().message());
}

std::string OverrideError(const std::string& assignment) {
  RunConfig config;
  config.set_seed(5);
  const std::string before = config.DebugString();
  const absl::Status status = ApplyOverride(assignment, &config);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << assignment;
  EXPECT_EQ(config.DebugString(), before) << "changed by " << assignment;
  return std::string(status.message());
}

RunConfig Overridden(const std::vector<std::string>& assignments) {
  RunConfig config;
  for (const std::string& assignment : assignments) {
    const absl::Status status = ApplyOverride(assignment, &config);
    EXPECT_TRUE(status.ok()) << status;
  }
  return config;
}

TEST(RunProto, HasFewerThanSixtyKeys) {
  // Keys that only a flag writes: nobody sets them (--skip_data_range).
  constexpr size_t kRecords = 1;
  RunConfig config;
  for (const char* mixer : {"cubit", "softmax", "deltaformer"}) {
    ASSERT_TRUE(
        ApplyOverride(absl::StrCat("model.mixer=", mixer), &config).ok());
    EXPECT_LT(ListConfigValues(config).size() - kRecords, 60u);
  }
}

TEST(ParseConfig, ReadsWordsOfTheFormat) {
  const auto config = ParseConfig(
      "# a comment\n"
      "model { mixer: cubit cubit { share: true } norm: rms_norm mlp: swiglu "
      "}\n"
      "data { path: \"a\" path: \"b\" weight: 0.25 weight: 0.75 }\n"
      "schedule { kind: wsd } parallel { cp_method: auto }\n",
      "my.textproto");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model().mixer(), RunConfig::Mixer::cubit);
  EXPECT_TRUE(config->model().cubit().share());
  EXPECT_EQ(config->model().norm(), RunConfig::Norm::rms_norm);
  EXPECT_EQ(config->data().path_size(), 2);
  EXPECT_FALSE(config->model().has_num_layers());
  EXPECT_EQ(config->model().num_layers(), 12);  // the default
}

TEST(ParseConfig, NamesLineAndNearestKey) {
  const std::string error = ParseError("model {\n  num_layer: 3\n}\n");
  EXPECT_THAT(error, HasSubstr("my.textproto:2:"));
  EXPECT_THAT(error, HasSubstr("Did you mean \"num_layers\"?"));
}

TEST(ParseConfig, NamesTheKeyOfAnotherGroup) {
  EXPECT_THAT(ParseError("warmup_steps: 5"),
              HasSubstr("Did you mean schedule.warmup_steps?"));
  EXPECT_THAT(ParseError("batch { seq_len: 5 }"),
              HasSubstr("Did you mean model.seq_len?"));
}

TEST(ParseConfig, ListsKeysWhereNoneIsNear) {
  EXPECT_THAT(ParseError("batch { qqqqqqqqqqqqqqqq: 5 }"),
              HasSubstr("Known there: global_batch_size, micro_batch_size."));
}

TEST(ParseConfig, NamesTheValidWords) {
  EXPECT_THAT(ParseError("model { norm: layernorm }"),
              HasSubstr("Valid: layer_norm, rms_norm."));
}

TEST(ParseConfig, RefusesWhatIsMalformed) {
  EXPECT_THAT(ParseError("model { num_layers: 1.5 }"), HasSubstr(":1:"));
  EXPECT_THAT(ParseError("model { num_layers: \"x\" }"), HasSubstr(":1:"));
  ParseError("model {");
  ParseError("seed: 1 seed: 2");
  ParseError("model { num_layers: 99999999999999999999 }");
}

TEST(ParseConfig, StopsAtTheDepthLimit) {
  std::string text;
  for (int i = 0; i < 200000; ++i) text += "model{";
  EXPECT_FALSE(ParseConfig(text, "deep").ok());
  text.clear();
  for (int i = 0; i < 200000; ++i) text += "[";
  EXPECT_FALSE(ParseConfig("data { path: " + text, "deep").ok());
}

TEST(LoadConfigFile, ReadsAndRefuses) {
  const std::string path = testing::TempDir() + "/run é.textproto";
  FileSystem& files = FileSystem::Posix();
  ASSERT_TRUE(WriteFileAtomically(files, path, "seed: 9\n").ok());
  EXPECT_EQ(LoadConfigFile(path)->seed(), 9u);
  EXPECT_EQ(LoadConfigFile(path + "x").status().code(),
            absl::StatusCode::kNotFound);
  ASSERT_TRUE(
      WriteFileAtomically(files, path, std::string((1 << 20) + 1, '#')).ok());
  EXPECT_THAT(std::string(LoadConfigFile(path).status().message()),
              HasSubstr("at most 1048576"));
}

TEST(ApplyOverride, SetsEveryType) {
  const RunConfig config = Overridden(
      {"model.num_layers=2", "model.mixer=SoftMax", "model.bias=no",
       "optimizer.learning_rate=2e-3", " seed = 18446744073709551615",
       "data.path=a, b c ,d", "data.weight=1,2.5,3", "data.tokenizer=x=y",
       "parallel.tp_size=2", "model.softmax.qk_norm=TRUE",
       "evaluation.tasks="});
  EXPECT_EQ(config.model().num_layers(), 2);
  EXPECT_EQ(config.model().mixer(), RunConfig::Mixer::softmax);
  EXPECT_FALSE(config.model().bias());
  EXPECT_EQ(config.optimizer().learning_rate(), 2e-3);
  EXPECT_EQ(config.seed(), ~uint64_t{0});
  EXPECT_THAT(config.data().path(), ElementsAre("a", "b c", "d"));
  EXPECT_THAT(config.data().weight(), ElementsAre(1, 2.5, 3));
  EXPECT_EQ(config.data().tokenizer(), "x=y");
  EXPECT_EQ(config.parallel().tp_size(), 2);
  EXPECT_TRUE(config.model().softmax().qk_norm());
  EXPECT_EQ(config.evaluation().tasks_size(), 0);
}

TEST(ApplyOverride, ReplacesLists) {
  const RunConfig config = Overridden({"data.path=a,b", "data.path=c"});
  EXPECT_THAT(config.data().path(), ElementsAre("c"));
  EXPECT_EQ(Overridden({"data.path=a", "data.path="}).data().path_size(), 0);
}

TEST(ApplyOverride, ErrorsHelp) {
  EXPECT_THAT(OverrideError("model.num_layer=2"),
              HasSubstr("Did you mean model.num_layers?"));
  EXPECT_THAT(OverrideError("num_layers=2"),
              HasSubstr("Did you mean model.num_layers?"));
  EXPECT_THAT(OverrideError("model.num_layers.x=2"), HasSubstr("unknown key"));
  EXPECT_THAT(OverrideError("model.num_layers"), HasSubstr("KEY=VALUE"));
  EXPECT_THAT(OverrideError("=3"), HasSubstr("unknown key"));
  EXPECT_THAT(OverrideError("batch=3"),
              HasSubstr("batch.global_batch_size, batch.micro_batch_size"));
  EXPECT_THAT(OverrideError("model.num_layers=two"), HasSubstr("an integer"));
  EXPECT_THAT(OverrideError("model.num_layers=2.5"), HasSubstr("an integer"));
  EXPECT_THAT(OverrideError("model.num_layers="), HasSubstr("an integer"));
  EXPECT_THAT(OverrideError("parallel.tp_size=3000000000"),
              HasSubstr("an integer"));
  EXPECT_THAT(OverrideError("seed=-1"), HasSubstr("not negative"));
  EXPECT_THAT(OverrideError("model.bias=maybe"), HasSubstr("true or false"));
  EXPECT_THAT(OverrideError("optimizer.beta1=high"), HasSubstr("a number"));
  EXPECT_THAT(OverrideError("optimizer.beta1=nan"), HasSubstr("a number"));
  EXPECT_THAT(OverrideError("data.weight=1,x"), HasSubstr("a number"));
  EXPECT_THAT(OverrideError("model.mixer=cubbit"),
              HasSubstr("one of cubit, softmax, deltaformer was wanted. Did "
                        "you mean cubit?"));
}

TEST(ResolvedText, RoundTripsWithEveryDefault) {
  RunConfig config = Overridden(
      {"model.mixer=deltaformer", "model.hidden_size=96",
       "optimizer.learning_rate=0.1234567890123456789", "data.path=a \"b\"é\n",
       "schedule.kind=wsd", "schedule.total_steps=1000"});
  const std::string text = ResolvedText(config);
  const auto parsed = ParseConfig(text, "resolved");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(ResolvedText(*parsed), text);
  EXPECT_EQ(parsed->optimizer().learning_rate(),
            config.optimizer().learning_rate());
  EXPECT_EQ(parsed->data().path(0), "a \"b\"é");
  EXPECT_THAT(text, HasSubstr("norm: layer_norm"));
  EXPECT_THAT(text, Not(HasSubstr("lambda_init")));  // another mixer's
  EXPECT_TRUE(parsed->model().has_num_layers());
  EXPECT_EQ(parsed->model().ffn_hidden_size(), 4 * 96);
  EXPECT_EQ(parsed->schedule().decay_steps(), 200);
}

TEST(ResolveConfig, SizesTheSwigluLayerLikeTheGeluOne) {
  const RunConfig config =
      ResolveConfig(Overridden({"model.mlp=swiglu", "model.hidden_size=768"}));
  EXPECT_EQ(config.model().ffn_hidden_size(), 2048);
  const RunConfig given = ResolveConfig(
      Overridden({"model.mlp=swiglu", "model.ffn_hidden_size=100"}));
  EXPECT_EQ(given.model().ffn_hidden_size(), 100);
}

TEST(SetTotalSteps, ShortensOnlyWhatDoesNotFit) {
  RunConfig config;  // 500 of 50000 steps are warm-up
  EXPECT_FALSE(SetTotalSteps(1000, &config));
  EXPECT_EQ(config.schedule().warmup_steps(), 500);
  EXPECT_EQ(config.schedule().total_steps(), 1000);
  EXPECT_TRUE(SetTotalSteps(100, &config));
  EXPECT_EQ(config.schedule().warmup_steps(), 50);
  RunConfig wsd = Overridden({"schedule.kind=wsd", "schedule.decay_steps=5000",
                              "schedule.total_steps=10000"});
  EXPECT_TRUE(SetTotalSteps(10, &wsd));
  EXPECT_EQ(wsd.schedule().warmup_steps(), 0);
  EXPECT_EQ(wsd.schedule().decay_steps(), 5);
}

TEST(PaddedVocabSize, RoundsUpTo64) {
  EXPECT_EQ(PaddedVocabSize(50257), 50304);
  EXPECT_EQ(PaddedVocabSize(257), 320);
  EXPECT_EQ(PaddedVocabSize(64), 64);
}

}  // namespace
}  // namespace cubit
