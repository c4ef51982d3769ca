// SPDX-License-Identifier: Apache-2.0

#include "parallel/replicas.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "parallel/agreement.h"
#include "runtime/digest.h"
#include "runtime/host_name.h"
#include "runtime/status_macros.h"
#include "runtime/tensor.h"

namespace cubit {
namespace {

// A digest of each parameter's weights.
std::vector<uint64_t> Digests(const ParameterStore& store, Stream& stream) {
  std::vector<uint64_t> digests;
  std::vector<char> host;
  for (const Parameter& parameter : store.parameters()) {
    const int64_t bytes = parameter.value.size_bytes();
    host.resize(static_cast<size_t>(bytes));
    CopyToHost(host.data(), parameter.value.raw(), bytes, stream);
    stream.Synchronize();
    digests.push_back(Xxh3_64(host.data(), host.size()));
  }
  return digests;
}

int64_t DigestOf(const std::vector<uint64_t>& digests) {
  const uint64_t digest =
      Xxh3_64(digests.data(), digests.size() * sizeof(uint64_t));
  return static_cast<int64_t>(digest);
}

// Ranks that should agree and do not.
struct Disagreement {
  std::vector<int> group;
  std::vector<int> odd;
  int usual = 0;  // a rank of the others
};

// The first group of which not all have one digest.
bool FindDisagreement(const DeviceMesh& mesh,
                      const std::vector<int64_t>& digests,
                      Disagreement* found) {
  const auto digest = [&](int rank) {
    return digests[static_cast<size_t>(rank)];
  };
  for (int rank = 0; rank < mesh.world_size(); ++rank) {
    const std::vector<int> group = mesh.DpCpGroup(rank);
    if (group.front() != rank) continue;
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

}  // namespace

bool IsPrimary(const Parameter& parameter, const MeshCommunicators& mesh) {
  const bool on_all_tp = parameter.sum_over_tp || parameter.shard.is_whole();
  if (on_all_tp && mesh.coordinate().tp != 0) return false;
  return !parameter.sum_over_ends || mesh.coordinate().pp == 0;
}

bool SavesParameter(const Parameter& parameter, MeshCommunicators& mesh) {
  return mesh.dp_cp().rank() == 0 && IsPrimary(parameter, mesh);
}

absl::Status CheckReplicas(const ParameterStore& store, MeshCommunicators& mesh,
                           Stream& stream) {
  if (mesh.dp_cp().size() == 1) return absl::OkStatus();
  const std::vector<uint64_t> mine = Digests(store, stream);
  const int64_t digest = DigestOf(mine);
  std::vector<int64_t> all(static_cast<size_t>(mesh.mesh().world_size()));
  Stream host;
  CUBIT_RETURN_IF_ERROR(mesh.control().AllGather(
      ConstTensor(&digest, DType::kInt64, {1}),
      Tensor(all.data(), DType::kInt64, {static_cast<int64_t>(all.size())}),
      host));
  host.Synchronize();
  Disagreement found;
  if (!FindDisagreement(mesh.mesh(), all, &found)) return absl::OkStatus();
  // The odd rank says where it differs from the usual one.
  const std::string bytes(reinterpret_cast<const char*>(mine.data()),
                          mine.size() * sizeof(uint64_t));
  CUBIT_ASSIGN_OR_RETURN(const std::string usual,
                         BroadcastText(&mesh.control(), bytes, found.usual));
  std::string name;
  for (size_t i = 0; i < mine.size() && name.empty(); ++i) {
    const size_t at = i * sizeof(uint64_t);
    if (at + sizeof(uint64_t) > usual.size() ||
        std::memcmp(usual.data() + at, &mine[i], sizeof(uint64_t)) != 0) {
      name = store.parameters()[i].name;
    }
  }
  CUBIT_ASSIGN_OR_RETURN(
      name, BroadcastText(&mesh.control(), name, found.odd.front()));
  std::sort(found.odd.begin(), found.odd.end());
  CUBIT_ASSIGN_OR_RETURN(const std::set<std::string> hosts,
                         HostsOf(found.odd, mesh.control()));
  return absl::DataLossError(absl::StrCat(
      "the weights of ranks that must be equal differ: ",
      found.odd.size() == 1 ? "rank " : "ranks ",
      absl::StrJoin(found.odd, ", "), " of the group of ranks ",
      absl::StrJoin(found.group, ", "), ", first in ", name, " (",
      hosts.size() == 1 ? "host " : "hosts ", absl::StrJoin(hosts, ", "), ")"));
}

}  // namespace cubit
