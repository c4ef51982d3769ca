// SPDX-License-Identifier: Apache-2.0

#include "tests/benchmarks/scaling_layout.h"

#include <map>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace cubit {
namespace {

// Words that are a value of a key.
const std::map<std::string, std::string>& Words() {
  static const auto& words = *new std::map<std::string, std::string>{
      {"wavefront", "parallel.cp_method=wavefront"},
      {"ring", "parallel.cp_method=ring"},
      {"ulysses", "parallel.cp_method=ulysses"},
      {"gpipe", "parallel.pipeline_schedule=gpipe"},
      {"1f1b", "parallel.pipeline_schedule=one_f_one_b"},
      {"interleaved", "parallel.pipeline_schedule=interleaved"},
      {"zero0", "parallel.zero_stage=0"},
      {"zero1", "parallel.zero_stage=1"},
  };
  return words;
}

// Sets the size that `word` ("tp2") names.
bool SetSize(const std::string& word, ScalingLayout* layout) {
  const size_t digits = word.find_first_of("0123456789");
  int size = 0;
  if (digits == std::string::npos ||
      !absl::SimpleAtoi(word.substr(digits), &size) || size < 1) {
    return false;
  }
  const std::string axis = word.substr(0, digits);
  if (axis == "m") {
    layout->num_micro_batches = size;
    return true;
  }
  for (const auto& [name, target] :
       {std::pair("dp", &layout->dp), std::pair("tp", &layout->tp),
        std::pair("pp", &layout->pp), std::pair("cp", &layout->cp)}) {
    if (axis != name) continue;
    *target = size;
    return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<ScalingLayout> ParseLayout(const std::string& text) {
  ScalingLayout layout;
  layout.name = text;
  if (text != "1") {
    const std::vector<std::string> words = absl::StrSplit(text, '-');
    for (const std::string& word : words) {
      const auto found = Words().find(word);
      if (found != Words().end()) {
        layout.overrides.push_back(found->second);
      } else if (!SetSize(word, &layout)) {
        return absl::InvalidArgumentError(absl::StrCat(
            "layout \"", text, "\" has the word \"", word,
            "\"; wanted dpN, tpN, ppN, cpN, mN (micro-batches), wavefront, "
            "ring, ulysses, gpipe, 1f1b, interleaved, zero0 or zero1, joined "
            "by '-', such as tp2-pp2-m8"));
      }
    }
  }
  layout.overrides.push_back(absl::StrCat("parallel.tp_size=", layout.tp));
  layout.overrides.push_back(absl::StrCat("parallel.pp_size=", layout.pp));
  layout.overrides.push_back(absl::StrCat("parallel.cp_size=", layout.cp));
  return layout;
}

std::vector<std::string> DefaultLayouts(int num_ranks) {
  std::vector<std::string> layouts;
  for (int n = 2; n <= num_ranks; n *= 2) {
    for (const char* axis : {"dp", "tp"}) {
      layouts.push_back(absl::StrCat(axis, n));
    }
    for (const char* method : {"ulysses", "wavefront"}) {
      layouts.push_back(absl::StrCat("cp", n, "-", method));
    }
    layouts.push_back(absl::StrCat("pp", n, "-1f1b-m", 4 * n));
    layouts.push_back(absl::StrCat("pp", n, "-interleaved-m", 4 * n));
  }
  if (num_ranks >= 4) layouts.push_back("tp2-pp2-m8");
  if (num_ranks >= 8) layouts.push_back("dp2-tp2-pp2-m8");
  if (num_ranks >= 16) layouts.push_back("dp2-tp2-cp2-ulysses-pp2-m8");
  return layouts;
}

}  // namespace cubit
