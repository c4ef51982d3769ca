// SPDX-License-Identifier: Apache-2.0

#include "runtime/command_line.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/parse.h"
#include "absl/flags/reflection.h"
#include "absl/flags/usage.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

#include "runtime/logging.h"

namespace cubit {
namespace {

size_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row.back();
}

// Flags of this project, not those of absl itself.
bool IsOurs(const absl::CommandLineFlag& flag) {
  return !absl::StrContains(flag.Filename(), "absl/");
}

std::vector<std::string> FlagNames() {
  std::vector<std::string> names;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (IsOurs(*flag)) names.emplace_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

[[noreturn]] void PrintHelp(absl::string_view usage) {
  std::printf("%s\nFlags:\n", std::string(usage).c_str());
  const auto flags = absl::GetAllFlags();
  for (const std::string& name : FlagNames()) {
    const absl::CommandLineFlag* flag = flags.at(name);
    const std::string initial = flag->DefaultValue();
    std::printf("  --%s%s\n      %s\n", name.c_str(),
                initial.empty() ? "" : ("  (default " + initial + ")").c_str(),
                std::string(flag->Help()).c_str());
  }
  std::exit(kExitDone);
}

bool IsBool(const absl::CommandLineFlag& flag) { return flag.IsOfType<bool>(); }

[[noreturn]] void RefuseFlag(const std::string& name) {
  const std::string nearest = NearestWord(name, FlagNames());
  LogError(absl::StrCat(
      "unknown flag --", name, ". ",
      nearest.empty() ? "" : absl::StrCat("Did you mean --", nearest, "? "),
      "--help lists all flags."));
  std::exit(kExitWrongRequest);
}

// Looks at every word as absl will, before it does: --help prints our own text,
// and an unknown flag gets a suggestion, which absl would not give.
void LookForHelpAndUnknownFlags(const std::vector<char*>& arguments,
                                absl::string_view usage) {
  for (size_t i = 1; i < arguments.size(); ++i) {
    absl::string_view word = arguments[i];
    if (word == "--") return;
    if (!absl::ConsumePrefix(&word, "-")) continue;
    absl::ConsumePrefix(&word, "-");
    const std::string name(word.substr(0, word.find('=')));
    if (name.empty() || absl::ascii_isdigit(name[0])) continue;
    if (name == "help" || name == "h" || name == "helpfull") PrintHelp(usage);
    if (const auto* flag = absl::FindCommandLineFlag(name)) {
      // `--name value`: the next word is no flag, whatever it begins with.
      if (!IsBool(*flag) && name.size() == word.size()) ++i;
      continue;
    }
    const auto* negated = absl::StartsWith(name, "no")
                              ? absl::FindCommandLineFlag(name.substr(2))
                              : nullptr;
    if (negated == nullptr || !IsBool(*negated)) RefuseFlag(name);
  }
}

}  // namespace

std::vector<std::string> ParseCommandLine(int argc, char** argv,
                                          absl::string_view usage) {
  InstallCrashHandler(argv[0]);
  if (const char* folder = std::getenv("BUILD_WORKING_DIRECTORY")) {
    if (chdir(folder) != 0) {
      LogWarning(absl::StrCat("cannot move to ", folder,
                              "; relative paths start elsewhere"));
    }
  }
  const std::vector<char*> arguments(argv, argv + argc);
  LookForHelpAndUnknownFlags(arguments, usage);
  absl::SetProgramUsageMessage(usage);
  const std::vector<char*> rest = absl::ParseCommandLine(argc, argv);
  return std::vector<std::string>(rest.begin() + 1, rest.end());
}

std::vector<std::string> TakeRepeatedFlag(absl::string_view name, int* argc,
                                          char** argv) {
  const std::string flag = absl::StrCat("--", name);
  std::vector<std::string> values;
  int kept = 1;
  for (int i = 1; i < *argc; ++i) {
    const absl::string_view word = argv[i];
    if (absl::StartsWith(word, flag + "=")) {
      values.emplace_back(word.substr(flag.size() + 1));
    } else if (word == flag) {
      if (i + 1 == *argc) {
        LogError(absl::StrCat(flag,
                              " needs a value after it; --help shows "
                              "examples"));
        std::exit(kExitWrongRequest);
      }
      values.emplace_back(argv[++i]);
    } else {
      argv[kept++] = argv[i];
    }
  }
  *argc = kept;
  return values;
}

int ExitStatus(const absl::Status& status) {
  if (!status.ok()) LogError(status.message());
  return ExitStatusOf(status);
}

int ExitStatusOf(const absl::Status& status) {
  if (status.ok()) return kExitDone;
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnimplemented:
      return kExitWrongRequest;
    default:
      return kExitFailed;
  }
}

std::string NearestWord(absl::string_view word,
                        const std::vector<std::string>& candidates) {
  std::string nearest;
  // Half the letters may be wrong; beyond that a suggestion only misleads.
  size_t best = std::max<size_t>(1, word.size() / 2) + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = EditDistance(word, candidate);
    if (distance < best) {
      best = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

}  // namespace cubit
