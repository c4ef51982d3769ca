// SPDX-License-Identifier: Apache-2.0

#include "launch/tensorboard.h"

#include <signal.h>
#include <sys/resource.h>

#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "launch/tensorboard.pb.h"
#include "runtime/file_system.h"
#include "tests/testing/program.h"

namespace cubit {
namespace {

using testing::NewFolder;
using testing::ReadText;

uint32_t Unmask(uint32_t masked) {
  const uint32_t rotated = masked - 0xa282ead8;
  return (rotated >> 17) | (rotated << 15);
}

template <typename T>
T IntegerAt(const std::string& bytes, size_t at) {
  T value = 0;
  std::memcpy(&value, bytes.data() + at, sizeof(value));
  return value;
}

// The events of the newest file of `folder`, every checksum checked.
std::vector<tensorboard::Event> ReadEvents(const std::string& folder) {
  std::vector<tensorboard::Event> events;
  const auto names = FileSystem::Posix().List(folder);
  EXPECT_TRUE(names.ok() && !names->empty());
  const std::string bytes = ReadText(folder + "/" + names->back());
  size_t at = 0;
  while (at < bytes.size()) {
    const auto length = IntegerAt<uint64_t>(bytes, at);
    EXPECT_EQ(Unmask(IntegerAt<uint32_t>(bytes, at + 8)),
              Crc32c(bytes.substr(at, 8)));
    const std::string payload = bytes.substr(at + 12, length);
    EXPECT_EQ(payload.size(), length);
    EXPECT_EQ(Unmask(IntegerAt<uint32_t>(bytes, at + 12 + length)),
              Crc32c(payload));
    tensorboard::Event event;
    EXPECT_TRUE(event.ParseFromString(payload));
    events.push_back(event);
    at += 16 + length;
  }
  return events;
}

float ValueOf(const tensorboard::Event& event, const std::string& tag) {
  for (const auto& value : event.summary().value()) {
    if (value.tag() == tag) return value.simple_value();
  }
  ADD_FAILURE() << "no " << tag;
  return 0;
}

TEST(Crc32c, GivesTheCheckValuesOfRfc3720) {
  EXPECT_EQ(Crc32c("123456789"), 0xe3069283);
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8a9136aa);
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62a8ab43);
  EXPECT_EQ(Crc32c(""), 0u);
}

TEST(TfRecord, FramesAPayload) {
  // Of the format's own example: an empty record.
  const std::string record = TfRecord("");
  ASSERT_EQ(record.size(), 16u);
  EXPECT_EQ(IntegerAt<uint64_t>(record, 0), 0u);
  EXPECT_EQ(IntegerAt<uint32_t>(record, 12), 0xa282ead8);
}

TEST(TensorBoardWriter, BeginsWithVersionAndStart) {
  const std::string folder = NewFolder() + "/tensorboard";
  ASSERT_TRUE(TensorBoardWriter::Create(folder, 101).ok());
  const auto events = ReadEvents(folder);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].file_version(), "brain.Event:2");
  EXPECT_EQ(events[1].session_log().status(), tensorboard::SessionLog::START);
  EXPECT_EQ(events[1].step(), 101);
  EXPECT_GT(events[1].wall_time(), 1e9);
}

TEST(TensorBoardWriter, SeesEveryNumberOfTheMetrics) {
  const std::string folder = NewFolder();
  auto metrics = MetricsWriter::Create(folder + "/metrics.jsonl");
  ASSERT_TRUE(metrics.ok()) << metrics.status();
  auto writer = TensorBoardWriter::Create(folder + "/tensorboard", 0);
  ASSERT_TRUE(writer.ok()) << writer.status();
  metrics->AddSink(*std::move(writer));

  TrainMetrics train;
  train.step = 7;
  train.tokens = 1 << 20;
  train.loss = 2.5;
  train.grad_norm = NAN;
  train.krr = KrrMetrics{0.25, INFINITY, 1e-10};
  train.data.emplace().epochs = {0, 3};
  ValidationMetrics validation;
  validation.step = 8;
  validation.loss_by_position = {{"0-127", 3.5}, {"128-255", 3.25}};
  EventMetrics event;
  event.step = 9;
  event.event = "evaluation";
  event.fields = {
      {"task", std::string("piqa")}, {"acc", 0.5}, {"n", int64_t{4}}};
  ASSERT_TRUE(metrics->Write(train).ok());
  ASSERT_TRUE(metrics->Write(validation).ok());
  ASSERT_TRUE(metrics->Write(event).ok());

  const auto events = ReadEvents(folder + "/tensorboard");
  ASSERT_EQ(events.size(), 5u);
  EXPECT_EQ(events[2].step(), 7);
  EXPECT_EQ(ValueOf(events[2], "train/loss"), 2.5f);
  EXPECT_EQ(ValueOf(events[2], "train/tokens"), 1048576.0f);
  EXPECT_TRUE(std::isnan(ValueOf(events[2], "train/grad_norm")));
  EXPECT_EQ(ValueOf(events[2], "train/krr/min_diagonal"), 0.25f);
  EXPECT_TRUE(std::isinf(ValueOf(events[2], "train/krr/max_gain")));
  EXPECT_EQ(ValueOf(events[2], "train/data/epochs/1"), 3.0f);
  EXPECT_EQ(events[3].step(), 8);
  EXPECT_EQ(ValueOf(events[3], "validation/loss_by_position/128-255"), 3.25f);
  EXPECT_EQ(events[4].step(), 9);
  EXPECT_EQ(ValueOf(events[4], "evaluation/acc"), 0.5f);
  EXPECT_EQ(events[4].summary().value_size(), 2) << "a text is no scalar";
}

TEST(TensorBoardWriter, AFullDiskEndsTheFileAndNotTheRun) {
  const std::string folder = NewFolder() + "/tensorboard";
  auto writer = TensorBoardWriter::Create(folder, 0);
  ASSERT_TRUE(writer.ok()) << writer.status();
  struct rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, SIG_IGN);
  struct rlimit small = before;
  small.rlim_cur = 256;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  for (int64_t step = 0; step < 20; ++step) {
    (*writer)->OnScalars(step, {{"train/loss", 1.0}});
  }
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  (*writer)->OnScalars(20, {{"train/loss", 2.0}});
  const auto names = FileSystem::Posix().List(folder);
  EXPECT_EQ(ReadText(folder + "/" + names->front()).size(), 256u);
}

}  // namespace
}  // namespace cubit
