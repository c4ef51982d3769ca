// SPDX-License-Identifier: Apache-2.0

#include "launch/config_checks.h"

#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "launch/config.h"
#include "launch/presets.h"

namespace cubit {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

RunConfig With(const std::vector<std::string>& assignments) {
  RunConfig config = *LoadPreset("cubit_125m");
  for (const std::string& assignment : assignments) {
    const absl::Status status = ApplyOverride(assignment, &config);
    EXPECT_TRUE(status.ok()) << status;
  }
  return config;
}

std::string Problem(const std::vector<std::string>& assignments) {
  const absl::Status status = ValidateConfig(With(assignments));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument)
      << assignments[0];
  return std::string(status.message());
}

TEST(ValidateConfig, AcceptsDefaultsAndResolvedForms) {
  EXPECT_TRUE(ValidateConfig(RunConfig()).ok());
  EXPECT_TRUE(ValidateConfig(ResolveConfig(RunConfig())).ok());
}

TEST(ValidateConfig, EveryRangeIsNamedWithItsKey) {
  const std::vector<std::string> bad = {"model.num_layers=0",
                                        "model.hidden_size=0",
                                        "model.num_heads=-1",
                                        "model.ffn_hidden_size=-1",
                                        "model.vocab_size=-5",
                                        "model.seq_len=1",
                                        "model.norm_epsilon=0",
                                        "model.rope_base=1",
                                        "model.z_loss=-1",
                                        "model.init_std=-0.1",
                                        "model.cubit.lambda_init=0",
                                        "optimizer.learning_rate=0",
                                        "optimizer.learning_rate=-1",
                                        "optimizer.beta1=1",
                                        "optimizer.beta2=-0.1",
                                        "optimizer.epsilon=0",
                                        "optimizer.weight_decay=-1",
                                        "optimizer.grad_clip_norm=-1",
                                        "schedule.warmup_steps=-1",
                                        "schedule.total_steps=0",
                                        "schedule.decay_steps=-1",
                                        "schedule.min_learning_rate_ratio=1.5",
                                        "batch.global_batch_size=0",
                                        "batch.micro_batch_size=0",
                                        "checkpoint.every_steps=-1",
                                        "checkpoint.keep_last=0",
                                        "checkpoint.keep_every=-1",
                                        "evaluation.every_steps=-1",
                                        "evaluation.max_batches=-1",
                                        "log.every_steps=0",
                                        "log.sample_every_steps=-1",
                                        "parallel.tp_size=0",
                                        "parallel.cp_size=0",
                                        "parallel.pp_size=-1",
                                        "parallel.zero_stage=3",
                                        "parallel.nodes=0",
                                        "parallel.gpus_per_node=-1"};
  for (const std::string& assignment : bad) {
    const std::string key = assignment.substr(0, assignment.find('='));
    EXPECT_THAT(Problem({assignment}), HasSubstr(key)) << assignment;
  }
}

TEST(ValidateConfig, RefusesNumbersThatAreNone) {
  RunConfig config;
  config.mutable_optimizer()->set_learning_rate(
      std::numeric_limits<double>::quiet_NaN());
  config.mutable_model()->set_z_loss(std::numeric_limits<double>::infinity());
  const absl::Status status = ValidateConfig(config);
  EXPECT_THAT(
      std::string(status.message()),
      AllOf(HasSubstr("optimizer.learning_rate"), HasSubstr("model.z_loss")));
}

TEST(ValidateConfig, HeadsDivideAndAreEven) {
  EXPECT_THAT(Problem({"model.num_heads=7"}),
              AllOf(HasSubstr("model.hidden_size=763 or 770"),
                    HasSubstr("model.num_heads=6")));
  EXPECT_THAT(
      Problem({"model.num_heads=256"}),
      AllOf(HasSubstr("has 3"), HasSubstr("model.hidden_size=512 or 1024")));
  EXPECT_TRUE(ValidateConfig(With({"model.num_heads=256",
                                   "model.positional_encoding=none"}))
                  .ok());
}

TEST(ValidateConfig, MicroBatchesDivideTheGlobalBatch) {
  EXPECT_THAT(Problem({"batch.micro_batch_size=5"}),
              AllOf(HasSubstr("global_batch_size 32 is not divisible"),
                    HasSubstr("batch.global_batch_size=30 or 35"),
                    HasSubstr("batch.micro_batch_size=4")));
}

TEST(ValidateConfig, OptionsOfAnotherMixerAreASlip) {
  EXPECT_THAT(Problem({"model.mixer=softmax", "model.cubit.share=true"}),
              AllOf(HasSubstr("model.cubit.share"),
                    HasSubstr("model.mixer is softmax")));
  EXPECT_THAT(Problem({"model.deltaformer.w=k"}),
              HasSubstr("model.deltaformer.w=own, or model.mixer=deltaformer"));
  EXPECT_TRUE(ValidateConfig(With({"model.mixer=softmax"})).ok());
}

TEST(ValidateConfig, ScheduleFits) {
  EXPECT_THAT(Problem({"schedule.warmup_steps=60000"}),
              HasSubstr("at least 60000"));
  EXPECT_THAT(Problem({"schedule.kind=wsd", "schedule.decay_steps=49800"}),
              HasSubstr("at least 50300"));
  EXPECT_THAT(Problem({"schedule.decay_steps=10"}),
              HasSubstr("schedule.kind=wsd only"));
}

TEST(ValidateConfig, DataWeightsMatchPaths) {
  EXPECT_THAT(Problem({"data.path=a,b", "data.weight=1"}),
              HasSubstr("1 values for 2 paths"));
  EXPECT_THAT(Problem({"data.path=a", "data.weight=0"}),
              HasSubstr("data.weight"));
}

// Whether they fit is the plan's to say (parallel_plan_test.cc).
TEST(ValidateConfig, SeveralRanksAreFine) {
  for (const char* key :
       {"tp_size", "cp_size", "pp_size", "nodes", "gpus_per_node"}) {
    EXPECT_TRUE(
        ValidateConfig(With({absl::StrCat("parallel.", key, "=5")})).ok())
        << key;
    EXPECT_THAT(Problem({absl::StrCat("parallel.", key, "=65537")}),
                HasSubstr(key));
  }
}

TEST(ValidateConfig, TasksAreNamesWithAFolder) {
  const std::string data = "evaluation.task_data=eval";
  EXPECT_TRUE(
      ValidateConfig(With({"evaluation.tasks=hellaswag,race", data})).ok());
  EXPECT_TRUE(ValidateConfig(With({"evaluation.tasks=all", data})).ok());
  EXPECT_THAT(Problem({"evaluation.tasks=hellaswag"}),
              HasSubstr("needs evaluation.task_data"));
  EXPECT_THAT(Problem({"evaluation.tasks=helaswag", data}),
              HasSubstr("did you mean hellaswag?"));
  EXPECT_THAT(Problem({"evaluation.tasks=all,race", data}),
              HasSubstr("no task \"all\""));
  EXPECT_THAT(Problem({"evaluation.tasks=race,race", data}),
              HasSubstr("names race twice"));
  EXPECT_THAT(Problem({"evaluation.max_items=-1"}),
              HasSubstr("evaluation.max_items"));
}

TEST(ValidateConfig, ListsEverythingThatIsWrong) {
  EXPECT_THAT(Problem({"model.num_layers=0", "log.every_steps=0"}),
              AllOf(HasSubstr("model.num_layers"), HasSubstr("\n"),
                    HasSubstr("log.every_steps")));
}

// compute and krr_precision once settled, or the error.
std::string Settled(const std::string& device,
                    const std::vector<std::string>& assignments) {
  RunConfig config = With(assignments);
  const absl::Status status = SettlePrecision(device, &config);
  if (!status.ok()) return std::string(status.message());
  const RunConfig::Precision& precision = config.precision();
  return absl::StrCat(
      RunConfig::Compute::Word_Name(precision.compute()), " ",
      RunConfig::KrrPrecision::Word_Name(precision.krr_precision()));
}

TEST(SettlePrecision, FollowsTheDevice) {
  EXPECT_EQ(Settled("cpu", {}), "fp32 auto");
  EXPECT_EQ(Settled("cuda", {}), "bf16 auto");
  EXPECT_EQ(Settled("cuda", {"precision.compute=fp32"}), "fp32 auto");
  EXPECT_EQ(Settled("cuda", {"precision.krr_precision=tf32"}), "bf16 tf32");
  EXPECT_EQ(Settled("cuda", {"precision.compute=fp32",
                             "precision.krr_precision=bf16x3"}),
            "fp32 bf16x3");
}

TEST(SettlePrecision, RefusesWhatTheDeviceHasNot) {
  EXPECT_THAT(Settled("cpu", {"precision.compute=bf16"}),
              HasSubstr("fp32 only"));
  EXPECT_THAT(Settled("cpu", {"precision.krr_precision=tf32"}),
              HasSubstr("set it to auto"));
  EXPECT_THAT(Settled("cuda", {"precision.compute=fp32",
                               "precision.krr_precision=bf16"}),
              HasSubstr("set the first"));
}

std::vector<std::string> ChangedKeys(
    const std::vector<std::string>& assignments, ChangeKind kind) {
  std::vector<std::string> keys;
  for (const ConfigChange& change :
       CompareConfigs(With({}), With(assignments))) {
    if (change.kind == kind) keys.push_back(change.key);
  }
  return keys;
}

TEST(CompareConfigs, SortsKeysByWhatTheyMean) {
  const std::vector<std::string> assignments = {
      "model.num_layers=2",       "optimizer.beta1=0.8",
      "schedule.total_steps=10",  "batch.global_batch_size=8",
      "data.document_mask=true",  "seed=4",
      "batch.micro_batch_size=2", "parallel.tp_size=2",
      "log.every_steps=1",        "checkpoint.keep_last=9",
      "evaluation.max_batches=1", "precision.compute=bf16",
      "memory.recompute=full"};
  EXPECT_THAT(ChangedKeys(assignments, ChangeKind::kRefused),
              ElementsAre("model.num_layers"));
  EXPECT_THAT(ChangedKeys(assignments, ChangeKind::kNeedsFlag),
              ElementsAre("data.document_mask", "optimizer.beta1",
                          "schedule.total_steps", "batch.global_batch_size",
                          "precision.compute", "seed"));
  EXPECT_THAT(ChangedKeys(assignments, ChangeKind::kFree),
              ElementsAre("batch.micro_batch_size", "parallel.tp_size",
                          "checkpoint.keep_last", "evaluation.max_batches",
                          "log.every_steps", "memory.recompute"));
}

TEST(CompareConfigs, DefaultsWrittenOutAreNoChange) {
  EXPECT_TRUE(CompareConfigs(RunConfig(), ResolveConfig(RunConfig())).empty());
  EXPECT_TRUE(
      CompareConfigs(With({}), With({"model.softmax.qk_norm=false"})).empty());
}

TEST(CheckResume, RefusesAnotherModelWithADiff) {
  const absl::Status status =
      CheckResume(With({}), With({"model.mixer=softmax", "model.num_heads=6"}),
                  /*changes_allowed=*/true);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("model.mixer: cubit -> softmax"),
                    HasSubstr("model.num_heads: 12 -> 6"),
                    HasSubstr("model.cubit.share: false -> (none)")));
}

TEST(CheckResume, ScheduleChangesNeedTheFlag) {
  const RunConfig requested =
      With({"optimizer.learning_rate=1e-3", "log.every_steps=3"});
  const absl::Status status = CheckResume(With({}), requested, false);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("optimizer.learning_rate: 0.0006 -> 0.001"),
                    HasSubstr("--allow_changes"), Not(HasSubstr("log."))));
  EXPECT_TRUE(CheckResume(With({}), requested, true).ok());
  EXPECT_TRUE(CheckResume(With({}), With({"log.every_steps=3"}), false).ok());
}

}  // namespace
}  // namespace cubit
