// SPDX-License-Identifier: Apache-2.0

#include "tests/golden/golden_check.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "runtime/device.h"
#include "runtime/file_system.h"
#include "runtime/status_macros.h"
#include "tests/golden/golden_file.h"
#include "tests/golden/mixer_core.h"

namespace cubit {
namespace golden {
namespace {

// What was seen of one back end so far.
struct Tally {
  Tally(std::string name, double largest)
      : backend(std::move(name)), tolerance(largest) {}

  std::string backend;
  double tolerance;
  int64_t tensors = 0;
  int64_t failures = 0;
  double worst = 0;
  std::string worst_tensor;
};

// A way of computing and what is allowed to it.
struct Check {
  Precision precision;
  double tolerance;
  // Besides: twice the error of the plain formulas with bf16 products.
  bool beside_plain;
};

std::vector<Check> ChecksOfThisBackend() {
  if (DeviceKind() == "cpu") {
    return {{{"fp32", DType::kFloat32, SolvePrecision::kBFloat16x3},
             kBackendTolerance,
             false}};
  }
  return {{{"bf16x3", DType::kFloat32, SolvePrecision::kBFloat16x3},
           kBFloat16x3Tolerance,
           false},
          {{"tf32", DType::kFloat32, SolvePrecision::kTFloat32},
           kTFloat32Tolerance,
           false},
          {{"bf16", DType::kBFloat16, SolvePrecision::kBFloat16x3},
           kBFloat16Epsilon,
           true}};
}

// Root mean square of the relative errors of a tensor over plain runs; 0 if
// there are none. One run alone says little of a tensor of few numbers that are
// sums of cancelling terms (d_log_lambda has one number a head): its error is a
// single draw, which may be near 0.
double PlainError(const std::vector<Results>& runs, const std::string& name,
                  const std::vector<double>& want) {
  if (runs.empty()) return 0;
  double squares = 0;
  for (const Results& run : runs) {
    const double error = RelativeError(run.at(name), want);
    squares += error * error;
  }
  return std::sqrt(squares / static_cast<double>(runs.size()));
}

// Prints and counts every tensor of one file on one back end. The error of
// `plain` runs, if there are any, is allowed twice besides.
void Compare(const std::string& file, const Case& c, const Results& results,
             const std::vector<Results>& plain, Tally* tally,
             std::ostream& out) {
  for (const auto& [name, want] : c.out) {
    const double tolerance =
        tally->tolerance + 2 * PlainError(plain, name, want.values);
    const auto got = results.find(name);
    const double error = got == results.end()
                             ? std::numeric_limits<double>::quiet_NaN()
                             : RelativeError(got->second, want.values);
    const bool ok = error <= tolerance;
    ++tally->tensors;
    if (!ok) ++tally->failures;
    if (!(error <= tally->worst)) {
      tally->worst = error;
      tally->worst_tensor = absl::StrCat(file, " ", name);
    }
    out << absl::StreamFormat("%-26s %-14s %-11s %.2e of %.2e  %s\n", file,
                              name, tally->backend, error, tolerance,
                              ok ? "ok" : "FAIL");
  }
}

absl::Status CheckFile(const std::string& folder, const std::string& file,
                       const std::vector<Check>& checks,
                       std::vector<Tally>* tallies, std::ostream& out) {
  CUBIT_ASSIGN_OR_RETURN(const Case c, ReadCase(JoinPath(folder, file)));
  Compare(file, c, RunReference(c), {}, &tallies->front(), out);
  // The dense system of the non-causal form is the CPU's alone (ops/krr.h).
  if (c.mixer == Mixer::kCubit && !c.causal && DeviceKind() != "cpu") {
    out << absl::StreamFormat("%-26s not causal: CPU only\n", file);
    return absl::OkStatus();
  }
  for (size_t i = 0; i < checks.size(); ++i) {
    CUBIT_ASSIGN_OR_RETURN(const Results results,
                           RunBackend(c, checks[i].precision));
    std::vector<Results> plain;
    if (checks[i].beside_plain) plain = RunPlainBFloat16(c);
    Compare(file, c, results, plain, &(*tallies)[i + 1], out);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> GoldenFiles(
    const std::string& folder) {
  CUBIT_ASSIGN_OR_RETURN(std::vector<std::string> files,
                         FileSystem::Posix().List(folder));
  files.erase(std::remove_if(files.begin(), files.end(),
                             [](const std::string& file) {
                               return !absl::EndsWith(file, ".h5");
                             }),
              files.end());
  if (files.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(folder, " holds no .h5 file"));
  }
  return files;
}

}  // namespace

double RelativeError(const std::vector<double>& got,
                     const std::vector<double>& want) {
  if (got.size() != want.size()) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  if (difference == 0) return 0;
  return std::sqrt(difference) / std::sqrt(norm);
}

absl::Status CheckFolder(const std::string& folder, std::ostream& out) {
  CUBIT_ASSIGN_OR_RETURN(const std::vector<std::string> files,
                         GoldenFiles(folder));
  const std::vector<Check> checks = ChecksOfThisBackend();
  std::vector<Tally> tallies = {{"reference", kReferenceTolerance}};
  for (const Check& check : checks) {
    tallies.emplace_back(absl::StrCat(DeviceKind(), " ", check.precision.name),
                         check.tolerance);
  }
  std::vector<std::string> errors;
  for (const std::string& file : files) {
    const absl::Status status = CheckFile(folder, file, checks, &tallies, out);
    if (status.ok()) continue;
    errors.emplace_back(status.message());
    out << absl::StreamFormat("%-26s ERROR %s\n", file, status.message());
  }
  int64_t failures = 0;
  for (const Tally& tally : tallies) {
    failures += tally.failures;
    out << absl::StreamFormat("%s: %d tensors, %d past %.0e; worst %.2e (%s)\n",
                              tally.backend, tally.tensors, tally.failures,
                              tally.tolerance, tally.worst, tally.worst_tensor);
  }
  out << absl::StreamFormat("%d files: %s\n", files.size(),
                            failures == 0 && errors.empty() ? "ok" : "FAIL");
  if (!errors.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(errors.size(), " of ", files.size(),
                     " files could not be checked: ", errors.front()));
  }
  if (failures > 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(failures, " tensors are past their tolerance"));
  }
  return absl::OkStatus();
}

}  // namespace golden
}  // namespace cubit
