// SPDX-License-Identifier: Apache-2.0

#include "runtime/frame_socket.h"

#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

#include "runtime/check.h"
#include "runtime/host_name.h"

namespace cubit {
namespace {

constexpr absl::Duration kLimit = absl::Seconds(10);

struct Pair {
  FrameSocket a;
  FrameSocket b;
};

// Both ends of a connection over the loopback interface.
Pair Connected() {
  auto listening = ListenAnywhere();
  CUBIT_CHECK_OK(listening);
  auto a = ConnectToAny({"127.0.0.1"}, PortOf(*listening), kLimit);
  CUBIT_CHECK_OK(a);
  pollfd entry = {listening->get(), POLLIN, 0};
  CUBIT_CHECK_EQ(poll(&entry, 1, 10000), 1);
  return {*std::move(a),
          FrameSocket(Descriptor(accept(listening->get(), nullptr, nullptr)))};
}

// Frames that reach `to`, until there are `count` or it has closed.
std::vector<std::string> Receive(FrameSocket& from, FrameSocket& to,
                                 size_t count) {
  std::vector<std::string> all;
  while (all.size() < count && to.open()) {
    EXPECT_TRUE(from.Move().empty());
    for (std::string& frame : to.Move()) all.push_back(std::move(frame));
  }
  return all;
}

TEST(FrameSocket, FramesArriveWholeAndInOrder) {
  Pair pair = Connected();
  // The long one is more than a connection holds by itself.
  const std::vector<std::string> frames = {"one", "", std::string(4 << 20, 'x'),
                                           "four"};
  for (const std::string& frame : frames) pair.a.Queue(frame);
  EXPECT_EQ(Receive(pair.a, pair.b, frames.size()), frames);
  EXPECT_EQ(pair.a.unsent(), 0u);
  pair.b.Queue("back");
  EXPECT_EQ(Receive(pair.b, pair.a, 1), std::vector<std::string>{"back"});
}

TEST(FrameSocket, DeliversWhatWasSaidBeforeTheEnd) {
  Pair pair = Connected();
  pair.a.Queue("last words");
  pair.a.Move();
  pair.a = FrameSocket();
  FrameSocket nobody;
  EXPECT_EQ(Receive(nobody, pair.b, 2), std::vector<std::string>{"last words"});
  EXPECT_FALSE(pair.b.open());
}

TEST(FrameSocket, EndsAConnectionWithAFrameThatIsTooLong) {
  Pair pair = Connected();
  const std::array<uint32_t, 1> length = {FrameSocket::kMaxFrameBytes + 1};
  ASSERT_EQ(send(pair.a.fd(), length.data(), sizeof(length), 0),
            static_cast<ssize_t>(sizeof(length)));
  FrameSocket nobody;
  EXPECT_TRUE(Receive(nobody, pair.b, 1).empty());
  EXPECT_FALSE(pair.b.open());
}

TEST(FrameSocket, ConnectsToTheFirstAddressThatAccepts) {
  auto listening = ListenAnywhere();
  ASSERT_TRUE(listening.ok()) << listening.status();
  const int port = PortOf(*listening);
  EXPECT_TRUE(ConnectToAny({"no address", "127.0.0.1"}, port, kLimit).ok());
  listening->Close();
  const auto refused = ConnectToAny({"127.0.0.1"}, port, kLimit);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(absl::StrContains(refused.status().message(),
                                "127.0.0.1: Connection refused"))
      << refused.status();
}

TEST(FrameSocket, PutsLoopbackAddressesLast) {
  const std::vector<std::string> addresses = InterfaceAddresses();
  bool loopback = false;
  for (const std::string& address : addresses) {
    const bool is_loopback =
        address == "::1" || absl::StartsWith(address, "127.");
    EXPECT_TRUE(is_loopback || !loopback) << address;
    loopback |= is_loopback;
  }
  EXPECT_FALSE(HostName().empty());
}

}  // namespace
}  // namespace cubit
