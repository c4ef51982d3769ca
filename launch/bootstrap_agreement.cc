// SPDX-License-Identifier: Apache-2.0

#include "launch/bootstrap_agreement.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

#include "parallel/agreement.h"
#include "runtime/digest.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr char kProgram[] = "/proc/self/exe";

std::string Who(const RankFacts& facts) {
  return absl::StrCat("rank ", facts.rank, " (", facts.host, ", pid ",
                      facts.pid, ")");
}

// Without the configuration.
std::string Encode(const RankFacts& facts) {
  return absl::StrJoin(std::make_tuple(facts.rank, facts.world_size, facts.host,
                                       facts.pid, facts.program),
                       "\n");
}

// Written by Encode, on another rank.
absl::StatusOr<RankFacts> Decode(absl::string_view text) {
  const std::vector<std::string> lines = absl::StrSplit(text, '\n');
  RankFacts facts;
  if (lines.size() != 5 || !absl::SimpleAtoi(lines[0], &facts.rank) ||
      !absl::SimpleAtoi(lines[1], &facts.world_size) ||
      !absl::SimpleAtoi(lines[3], &facts.pid)) {
    return absl::FailedPreconditionError(
        "a rank says of itself what this program does not understand: the "
        "ranks run different programs");
  }
  facts.host = lines[2];
  facts.program = lines[4];
  return facts;
}

absl::Status CheckNumbers(const std::vector<RankFacts>& all) {
  std::map<int, const RankFacts*> seen;
  for (const RankFacts& facts : all) {
    const auto [other, first] = seen.emplace(facts.rank, &facts);
    if (!first) {
      return absl::FailedPreconditionError(
          absl::StrCat("two processes are the same rank: ", Who(*other->second),
                       " and ", Who(facts), "; start every rank once"));
    }
    if (facts.world_size != static_cast<int>(all.size()) ||
        facts.rank != static_cast<int>(&facts - all.data())) {
      return absl::FailedPreconditionError(absl::StrCat(
          Who(facts), " was started as one of ", facts.world_size,
          " ranks, and is number ", &facts - all.data(), " of ", all.size(),
          " that have met; start all ranks by one mpirun or srun"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckPrograms(const std::vector<RankFacts>& all) {
  for (const RankFacts& facts : all) {
    if (facts.program == all[0].program) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        Who(facts), " runs another program than ", Who(all[0]), ": digests ",
        facts.program, " and ", all[0].program,
        "; copy one build to every host (//launch:bundle), and use the CPU or "
        "GPUs on all of them"));
  }
  return absl::OkStatus();
}

// `texts` of all ranks, by Encode.
absl::Status CheckRanks(const std::vector<std::string>& texts) {
  std::vector<RankFacts> all;
  all.reserve(texts.size());
  for (const std::string& text : texts) {
    CUBIT_ASSIGN_OR_RETURN(RankFacts facts, Decode(text));
    all.push_back(std::move(facts));
  }
  CUBIT_RETURN_IF_ERROR(CheckNumbers(all));
  return CheckPrograms(all);
}

// What rank 0 has concluded, on every rank: OK or FailedPrecondition.
absl::Status VerdictOfRank0(Communicator& control, const absl::Status& mine) {
  CUBIT_ASSIGN_OR_RETURN(
      const std::string error,
      BroadcastText(&control, std::string(mine.message()), /*root=*/0));
  return error.empty() ? absl::OkStatus()
                       : absl::FailedPreconditionError(error);
}

// "hidden_size: 128", or that there is no such line.
std::string LineOf(const std::vector<std::string>& lines, size_t i) {
  if (i >= lines.size()) return "nothing";
  return absl::StrCat("\"", absl::StripAsciiWhitespace(lines[i]), "\"");
}

std::string FirstDifference(const std::string& a, const std::string& b) {
  const std::vector<std::string> left = absl::StrSplit(a, '\n');
  const std::vector<std::string> right = absl::StrSplit(b, '\n');
  size_t i = 0;
  while (i < left.size() && i < right.size() && left[i] == right[i]) ++i;
  return absl::StrCat("line ", i + 1, " is ", LineOf(left, i), " here and ",
                      LineOf(right, i), " there");
}

}  // namespace

absl::StatusOr<std::string> OwnProgramDigest() {
  std::FILE* file = std::fopen(kProgram, "rb");
  if (file == nullptr) {
    return absl::NotFoundError(
        absl::StrCat(kProgram, ": ", std::strerror(errno)));
  }
  Xxh3_128Stream digest;
  std::vector<char> piece(1 << 20);
  size_t count = 0;
  while ((count = std::fread(piece.data(), 1, piece.size(), file)) > 0) {
    digest.Update(piece.data(), count);
  }
  std::fclose(file);
  return digest.Hex();
}

absl::Status CheckFacts(Communicator& control, const RankFacts& own) {
  CUBIT_ASSIGN_OR_RETURN(const std::vector<std::string> texts,
                         GatherTexts(&control, Encode(own)));
  CUBIT_RETURN_IF_ERROR(VerdictOfRank0(control, CheckRanks(texts)));
  CUBIT_ASSIGN_OR_RETURN(const std::string first,
                         BroadcastText(&control, own.config, /*root=*/0));
  absl::Status same;
  if (own.config != first) {
    same = absl::FailedPreconditionError(absl::StrCat(
        "its configuration (", own.host, ", pid ", own.pid,
        ") is not that of rank 0: ", FirstDifference(own.config, first),
        "; give all ranks the same arguments and files"));
  }
  return Agree(&control, same);
}

absl::Status CheckRankCount(int nodes, int gpus_per_node,
                            absl::string_view device_kind, int world_size) {
  const int of_node = gpus_per_node > 0      ? gpus_per_node
                      : device_kind == "cpu" ? 1
                                             : 0;
  if (of_node > 0 ? int64_t{nodes} * of_node == world_size
                  : nodes > 0 && world_size % nodes == 0) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "parallel.nodes is ", nodes, " and parallel.gpus_per_node ",
      gpus_per_node,
      gpus_per_node == 0 && of_node == 1 ? " (one rank a node on the CPU)" : "",
      ", but ", world_size, world_size == 1 ? " rank was" : " ranks were",
      " started; //launch:train starts as many as they say"));
}

}  // namespace cubit
