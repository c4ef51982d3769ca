// SPDX-License-Identifier: Apache-2.0

#include "data/reader_messages.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"

namespace cubit {
namespace {

constexpr int kLowestFd = 50;
constexpr int64_t kMax = 1 << 30;

// Both ends, as two processes have them.
struct Ends {
  Ends() {
    int fds[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    auto blocks = AnswerBlocks::Make(kLowestFd, &memory);
    auto mapped = AnswerBlocks::Map(memory.get());
    EXPECT_TRUE(blocks.ok() && mapped.ok());
    socket = fds[1];
    asking = std::make_unique<AskingEnd>(OwnedFd(fds[0]), *std::move(blocks));
    answering =
        std::make_unique<AnsweringEnd>(OwnedFd(fds[1]), *std::move(mapped));
  }

  OwnedFd memory;
  int socket = -1;  // of the answering end
  std::unique_ptr<AskingEnd> asking;
  std::unique_ptr<AnsweringEnd> answering;
};

// Shorter and longer than a block and than all of them.
std::vector<std::string> Answers() {
  std::vector<std::string> answers;
  for (size_t bytes : {size_t{0}, size_t{1}, AnswerBlocks::kBlockBytes - 9,
                       AnswerBlocks::kBlockBytes,
                       5 * AnswerBlocks::kBlockBytes + 7, size_t{3}}) {
    answers.emplace_back(bytes, static_cast<char>('a' + answers.size()));
  }
  return answers;
}

TEST(ReaderMessages, ArriveWholeThroughSeveralRequests) {
  Ends ends;
  constexpr int kRequests = 3;
  std::thread process([&ends] {
    for (int request = 0; request < kRequests; ++request) {
      int64_t number = -1;
      ASSERT_TRUE(ends.answering->GetInteger(&number).ok());
      ASSERT_EQ(number, request);
      for (const std::string& answer : Answers()) {
        ends.answering->PutBytes(answer);
      }
      // Blocks that are not full.
      ASSERT_TRUE(ends.answering->Flush());
      ends.answering->PutInteger(-number);
      ASSERT_TRUE(ends.answering->Flush());
    }
  });
  for (int request = 0; request < kRequests; ++request) {
    ends.asking->PutInteger(request);
    ASSERT_TRUE(ends.asking->Flush());
    for (const std::string& answer : Answers()) {
      std::string found;
      ASSERT_TRUE(ends.asking->GetBytes(kMax, &found).ok());
      ASSERT_EQ(found, answer);
    }
    int64_t last = 0;
    ASSERT_TRUE(ends.asking->GetInteger(&last).ok());
    ASSERT_EQ(last, -request);
  }
  process.join();
}

TEST(ReaderMessages, NeitherEndWaitsForOneThatIsGone) {
  Ends ends;
  ends.answering->PutInteger(7);
  EXPECT_TRUE(ends.answering->Flush());
  ends.answering = nullptr;
  int64_t value = 0;
  EXPECT_TRUE(ends.asking->GetInteger(&value).ok()) << "said before";
  EXPECT_EQ(value, 7);
  EXPECT_TRUE(absl::IsUnavailable(ends.asking->GetInteger(&value)));
  ends.asking->PutInteger(1);
  EXPECT_FALSE(ends.asking->Flush());

  Ends others;
  others.asking = nullptr;
  // More than all blocks hold.
  others.answering->PutBytes(std::string(9 * AnswerBlocks::kBlockBytes, 'x'));
  EXPECT_FALSE(others.answering->Flush());
  EXPECT_TRUE(others.answering->gone());
}

TEST(ReaderMessages, RefusesBlocksOfNoSize) {
  for (const uint64_t bytes :
       {uint64_t{0}, uint64_t{AnswerBlocks::kBlockBytes + 1}}) {
    Ends ends;
    const auto filled = static_cast<uint32_t>(bytes);
    ASSERT_EQ(send(ends.socket, &filled, sizeof(filled), 0),
              static_cast<ssize_t>(sizeof(filled)));
    int64_t value = 0;
    EXPECT_TRUE(absl::IsDataLoss(ends.asking->GetInteger(&value)));
  }
}

TEST(AnswerBlocks, NoProcessChangesTheirSize) {
  OwnedFd memory;
  const auto blocks = AnswerBlocks::Make(kLowestFd, &memory);
  ASSERT_TRUE(blocks.ok()) << blocks.status();
  EXPECT_GE(memory.get(), kLowestFd);
  EXPECT_NE(ftruncate(memory.get(), 0), 0);
  EXPECT_NE(ftruncate(memory.get(), 1 << 30), 0);
  EXPECT_NE(fcntl(memory.get(), F_ADD_SEALS, F_SEAL_WRITE), 0);
}

}  // namespace
}  // namespace cubit
