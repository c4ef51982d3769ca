// SPDX-License-Identifier: Apache-2.0

#include "launch/presets.h"

#include <string>

#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "launch/config.h"
#include "launch/config_checks.h"

namespace cubit {
namespace {

using testing::HasSubstr;

TEST(Presets, AllAreValidAndRoundTrip) {
  // 5 mixers, 4 sizes, with either recipe or none, and tiny.
  EXPECT_EQ(ListPresets().size(), 1u + 5 * 4 * 3);
  EXPECT_EQ(ListPresets()[0], "tiny");
  for (const std::string& name : ListPresets()) {
    const auto config = LoadPreset(name);
    ASSERT_TRUE(config.ok()) << config.status();
    const absl::Status status = ValidateConfig(*config);
    EXPECT_TRUE(status.ok()) << name << ": " << status;
    EXPECT_EQ(ResolvedText(*ParseConfig(ResolvedText(*config), name)),
              ResolvedText(*config));
  }
}

struct Size {
  const char* name;
  int64_t num_layers, hidden_size, num_heads;
  double learning_rate;
};

TEST(Presets, SizesAreThoseOfThePaper) {
  for (const Size& size :
       {Size{"125m", 12, 768, 12, 6e-4}, Size{"350m", 24, 1024, 16, 3e-4},
        Size{"1p3b", 24, 2048, 16, 2e-4}, Size{"2p7b", 32, 2560, 32, 1.6e-4}}) {
    const RunConfig config =
        *LoadPreset(std::string("transformer_") + size.name + "_figure");
    EXPECT_EQ(config.model().num_layers(), size.num_layers);
    EXPECT_EQ(config.model().hidden_size(), size.hidden_size);
    EXPECT_EQ(config.model().num_heads(), size.num_heads);
    EXPECT_EQ(config.optimizer().learning_rate(), size.learning_rate);
    EXPECT_EQ(config.model().vocab_size(), 50304);
    EXPECT_EQ(config.model().seq_len(), 1024);
    EXPECT_EQ(config.schedule().total_steps(), 50000);
    EXPECT_EQ(config.schedule().warmup_steps(), 500);
    EXPECT_EQ(config.schedule().min_learning_rate_ratio(), 0.1);
    EXPECT_EQ(config.evaluation().every_steps(), 5000);
  }
}

TEST(Presets, RecipesDifferInTheBatchAlone) {
  const RunConfig table = *LoadPreset("cubit_350m_table");
  EXPECT_EQ(table.batch().global_batch_size() * table.model().seq_len(),
            1 << 20);
  EXPECT_EQ(LoadPreset("cubit_350m_figure")->batch().global_batch_size(), 32);
  EXPECT_EQ(ResolvedText(*LoadPreset("cubit_350m")),
            ResolvedText(*LoadPreset("cubit_350m_figure")));
  const auto changes = CompareConfigs(*LoadPreset("cubit_350m_figure"), table);
  ASSERT_EQ(changes.size(), 1u);
  EXPECT_EQ(changes[0].key, "batch.global_batch_size");
}

TEST(Presets, MixersAreThoseOfTheirNames) {
  const auto model = [](const char* name) { return LoadPreset(name)->model(); };
  EXPECT_EQ(model("cubit_125m").mixer(), RunConfig::Mixer::cubit);
  EXPECT_FALSE(model("cubit_125m").cubit().share());
  EXPECT_TRUE(model("cubit_125m").cubit().lrr());
  EXPECT_TRUE(model("cubit_share_125m_table").cubit().share());
  EXPECT_FALSE(model("cubit_nolrr_125m").cubit().lrr());
  EXPECT_EQ(model("transformer_125m").mixer(), RunConfig::Mixer::softmax);
  EXPECT_EQ(model("deltaformer_2p7b").mixer(), RunConfig::Mixer::deltaformer);
  EXPECT_EQ(model("tiny").mixer(), RunConfig::Mixer::cubit);
  EXPECT_EQ(model("tiny").hidden_size(), 128);
}

TEST(Presets, UnknownNamesGetTheNearest) {
  for (const auto& [name, nearest] :
       {std::make_pair("cubit_125m_figur", "cubit_125m_figure"),
        std::make_pair("tinny", "tiny"),
        std::make_pair("transfomer_1p3b", "transformer_1p3b")}) {
    const auto config = LoadPreset(name);
    EXPECT_EQ(config.status().code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(std::string(config.status().message()),
                HasSubstr(std::string("Did you mean ") + nearest + "?"));
  }
  EXPECT_FALSE(LoadPreset("").ok());
  EXPECT_FALSE(LoadPreset("base").ok());
}

}  // namespace
}  // namespace cubit
