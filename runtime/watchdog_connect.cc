// SPDX-License-Identifier: Apache-2.0

#include "runtime/watchdog_connect.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"

#include "runtime/check.h"
#include "runtime/collective_phases.h"
#include "runtime/device.h"
#include "runtime/dtype.h"
#include "runtime/host_name.h"
#include "runtime/status_macros.h"
#include "runtime/tensor.h"
#include "runtime/watchdog.pb.h"

namespace cubit {
namespace {

using Clock = std::chrono::steady_clock;
using Peers = std::vector<WatchdogPeer>;

// Where rank 0 listens, as it tells the others.
struct Address {
  static constexpr size_t kBytes = 4096;

  uint64_t token = 0;
  int port = 0;  // 0: it cannot listen
  std::string host;
  std::vector<std::string> addresses;

  std::string ToText() const {
    return absl::StrCat(token, " ", port, " ", host, " ",
                        absl::StrJoin(addresses, " "));
  }
  static Address FromText(absl::string_view text) {
    Address address;
    std::vector<std::string> words = absl::StrSplit(text, ' ');
    CUBIT_CHECK(words.size() >= 3 &&
                absl::SimpleAtoi(words[0], &address.token) &&
                absl::SimpleAtoi(words[1], &address.port));
    address.host = words[2];
    address.addresses.assign(words.begin() + 3, words.end());
    // Its loopback addresses are ours only on one host.
    if (address.host == HostName()) return address;
    auto& list = address.addresses;
    const auto is_loopback = [](const std::string& a) {
      return a == "::1" || a.rfind("127.", 0) == 0;
    };
    list.erase(std::remove_if(list.begin(), list.end(), is_loopback),
               list.end());
    return address;
  }
};

// Rank 0 listens at a port of its own choice.
absl::StatusOr<Descriptor> Listen(Address* address) {
  std::random_device random;
  address->token = (uint64_t{random()} << 32) | random();
  address->host = HostName();
  address->addresses = InterfaceAddresses();
  CUBIT_ASSIGN_OR_RETURN(Descriptor listening, ListenAnywhere());
  address->port = PortOf(listening);
  return listening;
}

// Rank 0's address on every rank.
absl::StatusOr<Address> Share(Address address, Communicator& control) {
  std::vector<char> bytes(Address::kBytes);
  if (control.rank() == 0) {
    std::string text = address.ToText();
    while (text.size() >= bytes.size() && !address.addresses.empty()) {
      address.addresses.pop_back();
      text = address.ToText();
    }
    CUBIT_CHECK_LT(text.size(), bytes.size());
    std::copy(text.begin(), text.end(), bytes.begin());
  }
  Stream stream;
  CUBIT_RETURN_IF_ERROR(control.Broadcast(
      Tensor(bytes.data(), DType::kUInt8, {Address::kBytes}), 0, stream));
  return Address::FromText(bytes.data());
}

absl::StatusOr<Peers> CallRankZero(const Address& address, int rank,
                                   absl::Duration timeout) {
  if (address.port == 0) return absl::UnavailableError("rank 0 cannot listen");
  CUBIT_ASSIGN_OR_RETURN(
      FrameSocket socket,
      ConnectToAny(address.addresses, address.port, timeout));
  WatchdogMessage message;
  message.mutable_hello()->set_token(address.token);
  message.mutable_hello()->set_rank(rank);
  message.mutable_hello()->set_host(HostName());
  socket.Queue(message.SerializeAsString());
  socket.Move();
  Peers peers(1);
  peers[0].rank.host = address.host;
  peers[0].socket = std::move(socket);
  return peers;
}

// Makes `caller` a peer if its first frame is right; empties it then, and if it
// is none of ours.
void Welcome(uint64_t token, FrameSocket* caller, Peers* peers) {
  const std::vector<std::string> frames = caller->Move();
  if (frames.empty()) return;
  WatchdogMessage message;
  if (message.ParseFromString(frames[0]) && message.hello().token() == token) {
    WatchdogPeer peer;
    peer.rank.rank = message.hello().rank();
    peer.rank.host = message.hello().host();
    peer.socket = std::move(*caller);
    peers->push_back(std::move(peer));
  }
  *caller = FrameSocket();
}

std::vector<int> RanksWithout(const Peers& peers, int size) {
  std::vector<bool> here(static_cast<size_t>(size));
  for (const WatchdogPeer& peer : peers) {
    const int rank = peer.rank.rank;
    if (rank > 0 && rank < size) here[static_cast<size_t>(rank)] = true;
  }
  std::vector<int> missing;
  for (int q = 1; q < size; ++q) {
    if (!here[static_cast<size_t>(q)]) missing.push_back(q);
  }
  return missing;
}

absl::StatusOr<Peers> AcceptAll(const Descriptor& listening, uint64_t token,
                                int size, absl::Duration timeout) {
  const Clock::time_point deadline =
      Clock::now() + absl::ToChronoNanoseconds(timeout);
  Peers peers;
  std::vector<FrameSocket> callers;
  while (true) {
    const std::vector<int> missing = RanksWithout(peers, size);
    if (missing.empty()) return peers;
    if (Clock::now() >= deadline) {
      return absl::UnavailableError(
          absl::StrCat("ranks ", JoinRanks(missing), " did not connect within ",
                       absl::FormatDuration(timeout)));
    }
    pollfd entry = {listening.get(), POLLIN, 0};
    poll(&entry, 1, 10);
    while (true) {
      Descriptor fd(accept(listening.get(), nullptr, nullptr));
      if (fd.get() < 0) break;
      callers.emplace_back(std::move(fd));
    }
    for (FrameSocket& caller : callers) Welcome(token, &caller, &peers);
    callers.erase(
        std::remove_if(callers.begin(), callers.end(),
                       [](const FrameSocket& c) { return !c.open(); }),
        callers.end());
  }
}

// The status of all ranks, from each one's own.
absl::Status Agree(const absl::Status& status, const Address& address,
                   Communicator& control) {
  Stream stream;
  int64_t fine = status.ok() ? 1 : 0;
  std::vector<int64_t> all(static_cast<size_t>(control.size()));
  CUBIT_RETURN_IF_ERROR(control.AllGather(
      Tensor(&fine, DType::kInt64, {1}),
      Tensor(all.data(), DType::kInt64, {control.size()}), stream));
  std::vector<int> missing;
  for (int q = 0; q < control.size(); ++q) {
    if (all[static_cast<size_t>(q)] == 0) missing.push_back(q);
  }
  if (missing.empty()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(
      "watchdog: rank 0 (", address.host, ", TCP port ", address.port,
      ") and the others cannot all connect; it failed on ranks ",
      JoinRanks(missing), status.ok() ? "" : ", here: ", status.message()));
}

}  // namespace

absl::StatusOr<Peers> ConnectWatchdogs(Communicator& control,
                                       absl::Duration timeout) {
  if (control.size() == 1) return Peers();
  Address address;
  absl::StatusOr<Descriptor> listening = Descriptor();
  if (control.rank() == 0) listening = Listen(&address);
  CUBIT_ASSIGN_OR_RETURN(address, Share(address, control));
  absl::StatusOr<Peers> peers = absl::UnavailableError("cannot listen");
  if (control.rank() > 0) {
    peers = CallRankZero(address, control.rank(), timeout);
  } else if (listening.ok()) {
    peers = AcceptAll(*listening, address.token, control.size(), timeout);
  }
  CUBIT_RETURN_IF_ERROR(Agree(peers.status(), address, control));
  return peers;
}

}  // namespace cubit
