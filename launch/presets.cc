// SPDX-License-Identifier: Apache-2.0

#include "launch/presets.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

#include "launch/config.h"
#include "launch/preset_texts.h"
#include "runtime/check.h"
#include "runtime/command_line.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr const char* kMixers[] = {"cubit", "cubit_share", "cubit_nolrr",
                                   "transformer", "deltaformer"};
constexpr const char* kSizes[] = {"125m", "350m", "1p3b", "2p7b"};
constexpr const char* kRecipes[] = {"figure", "table"};

// Merges one part of launch/configs over `config`.
absl::Status MergePart(const std::string& part, RunConfig* config) {
  for (const PresetText& preset : PresetTexts()) {
    if (part != preset.name) continue;
    CUBIT_ASSIGN_OR_RETURN(
        const RunConfig parsed,
        ParseConfig(preset.text,
                    absl::StrCat("launch/configs/", part, ".textproto")));
    config->MergeFrom(parsed);
    return absl::OkStatus();
  }
  return absl::InternalError(
      absl::StrCat("launch/configs/", part, ".textproto is not built in"));
}

// The parts of a preset; empty if there is no such preset.
std::vector<std::string> PartsOf(absl::string_view name) {
  if (name == "tiny") return {"tiny"};
  for (const std::string mixer : kMixers) {
    for (const std::string size : kSizes) {
      std::vector<std::string> parts = {"base", "size_" + size,
                                        "mixer_" + mixer};
      if (name == absl::StrCat(mixer, "_", size)) return parts;
      for (const std::string recipe : kRecipes) {
        if (name != absl::StrCat(mixer, "_", size, "_", recipe)) continue;
        parts.push_back("recipe_" + recipe);
        return parts;
      }
    }
  }
  return {};
}

}  // namespace

absl::StatusOr<RunConfig> LoadPreset(absl::string_view name) {
  const std::vector<std::string> parts = PartsOf(name);
  if (parts.empty()) {
    const std::string nearest = NearestWord(name, ListPresets());
    return absl::NotFoundError(absl::StrCat(
        "there is no preset \"", name, "\".",
        nearest.empty() ? "" : absl::StrCat(" Did you mean ", nearest, "?"),
        " Presets are tiny and <mixer>_<size>[_<recipe>], as in "
        "cubit_125m_figure"));
  }
  RunConfig config;
  for (const std::string& part : parts) {
    CUBIT_RETURN_IF_ERROR(MergePart(part, &config));
  }
  return config;
}

std::vector<std::string> ListPresets() {
  std::vector<std::string> names = {"tiny"};
  for (const char* mixer : kMixers) {
    for (const char* size : kSizes) {
      names.push_back(absl::StrCat(mixer, "_", size));
      for (const char* recipe : kRecipes) {
        names.push_back(absl::StrCat(mixer, "_", size, "_", recipe));
      }
    }
  }
  return names;
}

}  // namespace cubit
