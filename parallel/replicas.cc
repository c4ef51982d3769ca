// SPDX-License-Identifier: Apache-2.0

#include "parallel/replicas.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "parallel/agreement.h"
#include "runtime/digest.h"
#include "runtime/host_name.h"
#include "runtime/status_macros.h"
#include "runtime/tensor.h"

namespace cubit {
namespace {

struct NamedDigest {
  std::string name;
  uint64_t digest = 0;
};

bool IsOnAllTp(const Parameter& parameter) {
  return parameter.sum_over_tp || parameter.shard.is_whole();
}
bool IsOnBothEnds(const Parameter& parameter) {
  return parameter.sum_over_ends;
}
bool IsAny(const Parameter&) { return true; }

// A digest of the weights of each parameter that `is_meant`.
std::vector<NamedDigest> Digests(const ParameterStore& store,
                                 bool (*is_meant)(const Parameter&),
                                 Stream& stream) {
  std::vector<NamedDigest> digests;
  std::vector<char> host;
  for (const Parameter& parameter : store.parameters()) {
    if (!is_meant(parameter)) continue;
    const int64_t bytes = parameter.value.size_bytes();
    host.resize(static_cast<size_t>(bytes));
    CopyToHost(host.data(), parameter.value.raw(), bytes, stream);
    stream.Synchronize();
    digests.push_back({parameter.name, Xxh3_64(host.data(), host.size())});
  }
  return digests;
}

// Ranks that hold the same, ascending.
using Groups = std::vector<std::vector<int>>;

// The groups of two ranks and more among `group_of` every rank.
Groups GroupsOf(const DeviceMesh& mesh,
                absl::FunctionRef<std::vector<int>(int)> group_of) {
  Groups groups;
  for (int rank = 0; rank < mesh.world_size(); ++rank) {
    std::vector<int> group = group_of(rank);
    if (group.front() != rank || group.size() == 1) continue;
    groups.push_back(std::move(group));
  }
  return groups;
}

// Ranks that should agree and do not.
struct Disagreement {
  std::vector<int> group;
  std::vector<int> odd;
  int usual = 0;  // a rank of the others
};

// The first group of which not all have one digest.
bool FindDisagreement(const Groups& groups, const std::vector<int64_t>& digests,
                      Disagreement* found) {
  const auto digest = [&](int rank) {
    return digests[static_cast<size_t>(rank)];
  };
  for (const std::vector<int>& group : groups) {
    const auto votes = [&](int of) {
      return std::count_if(group.begin(), group.end(), [&](int other) {
        return digest(other) == digest(of);
      });
    };
    const int usual =
        *std::max_element(group.begin(), group.end(),
                          [&](int a, int b) { return votes(a) < votes(b); });
    const bool majority = 2 * votes(usual) > static_cast<int64_t>(group.size());
    std::vector<int> odd;
    for (int other : group) {
      if (digest(other) != digest(usual)) odd.push_back(other);
    }
    if (odd.empty()) continue;
    *found = {group, majority ? odd : group, usual};
    // Of which one surely differs from `usual`.
    std::stable_partition(found->odd.begin(), found->odd.end(), [&](int other) {
      return digest(other) != digest(usual);
    });
    return true;
  }
  return false;
}

absl::StatusOr<std::set<std::string>> HostsOf(const std::vector<int>& ranks,
                                              Communicator& control) {
  std::set<std::string> hosts;
  for (const int rank : ranks) {
    CUBIT_ASSIGN_OR_RETURN(std::string host,
                           BroadcastText(&control, HostName(), rank));
    hosts.insert(std::move(host));
  }
  return hosts;
}

// The digests without their names.
std::string BytesOf(const std::vector<NamedDigest>& digests) {
  std::string bytes;
  bytes.reserve(digests.size() * sizeof(uint64_t));
  for (const NamedDigest& one : digests) {
    bytes.append(reinterpret_cast<const char*>(&one.digest),
                 sizeof(one.digest));
  }
  return bytes;
}

// The first parameter in which this rank is not as rank `usual`, on `odd`'s
// word; on every rank.
absl::StatusOr<std::string> FirstDifference(
    const std::vector<NamedDigest>& mine, int odd, int usual,
    Communicator& control) {
  const std::string bytes = BytesOf(mine);
  CUBIT_ASSIGN_OR_RETURN(const std::string theirs,
                         BroadcastText(&control, bytes, usual));
  std::string name;
  for (size_t i = 0; i < mine.size() && name.empty(); ++i) {
    const size_t at = i * sizeof(uint64_t);
    if (bytes.compare(at, sizeof(uint64_t),
                      theirs.substr(std::min(at, theirs.size()),
                                    sizeof(uint64_t))) != 0) {
      name = mine[i].name;
    }
  }
  return BroadcastText(&control, name, odd);
}

// `mine` must be the same on all ranks of each group.
absl::Status Compare(const Groups& groups, const std::vector<NamedDigest>& mine,
                     Communicator& control) {
  const std::string bytes = BytesOf(mine);
  const auto digest = static_cast<int64_t>(Xxh3_64(bytes.data(), bytes.size()));
  std::vector<int64_t> all(static_cast<size_t>(control.size()));
  Stream host;
  CUBIT_RETURN_IF_ERROR(control.AllGather(
      ConstTensor(&digest, DType::kInt64, {1}),
      Tensor(all.data(), DType::kInt64, {control.size()}), host));
  host.Synchronize();
  Disagreement found;
  if (!FindDisagreement(groups, all, &found)) return absl::OkStatus();
  CUBIT_ASSIGN_OR_RETURN(
      const std::string name,
      FirstDifference(mine, found.odd.front(), found.usual, control));
  std::sort(found.odd.begin(), found.odd.end());
  CUBIT_ASSIGN_OR_RETURN(const std::set<std::string> hosts,
                         HostsOf(found.odd, control));
  return absl::DataLossError(absl::StrCat(
      "the weights of ranks that must be equal differ: ",
      found.odd.size() == 1 ? "rank " : "ranks ",
      absl::StrJoin(found.odd, ", "), " of the group of ranks ",
      absl::StrJoin(found.group, ", "), ", first in ", name, " (",
      hosts.size() == 1 ? "host " : "hosts ", absl::StrJoin(hosts, ", "), ")"));
}

}  // namespace

bool IsPrimary(const Parameter& parameter, const MeshCommunicators& mesh) {
  if (IsOnAllTp(parameter) && mesh.coordinate().tp != 0) return false;
  return !parameter.sum_over_ends || mesh.coordinate().pp == 0;
}

bool SavesParameter(const Parameter& parameter, MeshCommunicators& mesh) {
  return mesh.dp_cp().rank() == 0 && IsPrimary(parameter, mesh);
}

absl::Status CheckReplicas(const ParameterStore& store, MeshCommunicators& mesh,
                           Stream& stream) {
  const DeviceMesh& ranks = mesh.mesh();
  const auto compare = [&](const Groups& groups,
                           bool (*is_meant)(const Parameter&)) {
    if (groups.empty()) return absl::OkStatus();
    return Compare(groups, Digests(store, is_meant, stream), mesh.control());
  };
  const auto dp_cp = [&](int rank) { return ranks.DpCpGroup(rank); };
  const auto tp = [&](int rank) { return ranks.Group(MeshAxis::kTp, rank); };
  const auto ends = [&](int rank) {
    std::vector<int> group = ranks.Group(MeshAxis::kPp, rank);
    if (group.size() > 2) group = {group.front(), group.back()};
    return group;
  };
  CUBIT_RETURN_IF_ERROR(compare(GroupsOf(ranks, dp_cp), IsAny));
  CUBIT_RETURN_IF_ERROR(compare(GroupsOf(ranks, tp), IsOnAllTp));
  return compare(GroupsOf(ranks, ends), IsOnBothEnds);
}

}  // namespace cubit
