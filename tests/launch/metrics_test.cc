// SPDX-License-Identifier: Apache-2.0

#include "launch/metrics.h"

#include <clocale>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include <nlohmann/json.hpp>

#include "runtime/file_system.h"

namespace cubit {
namespace {

using testing::HasSubstr;

std::string FreshPath() {
  std::string path = absl::StrCat(
      testing::TempDir(), "/",
      testing::UnitTest::GetInstance()->current_test_info()->name(), ".jsonl");
  EXPECT_TRUE(FileSystem::Posix().Remove(path).ok());
  return path;
}

std::string Text(const std::string& path) {
  return *ReadFile(FileSystem::Posix(), path, 1 << 20);
}

TrainMetrics Train(int64_t step, double loss) {
  TrainMetrics metrics;
  metrics.step = step;
  metrics.tokens = step * 2048;
  metrics.loss = loss;
  metrics.lr = 1e-3;
  metrics.grad_norm = 0.5;
  metrics.tokens_per_second = 1e4;
  metrics.step_seconds = 0.25;
  metrics.memory_bytes = int64_t{5} << 32;
  metrics.krr = KrrMetrics{0.1, 2, 1e-10};
  return metrics;
}

TEST(Metrics, ShowsWhereInTheDataTheRunIs) {
  const std::string path = FreshPath();
  auto writer = MetricsWriter::Create(path);
  ASSERT_TRUE(writer.ok()) << writer.status();
  TrainMetrics metrics = Train(1, 5.5);
  ASSERT_TRUE(writer->Write(metrics).ok());
  metrics.data = DataMetrics{int64_t{1} << 40, {1.5, 0.25}, 0.125};
  ASSERT_TRUE(writer->Write(metrics).ok());
  EXPECT_THAT(Text(path),
              HasSubstr("\"data\":{\"position\":1099511627776,\"epochs\":"
                        "[1.5,0.25],\"wait_seconds\":0.125}}\n"));
  const auto read = ReadMetrics(path);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_FALSE(read->train[0].data.has_value());
  ASSERT_TRUE(read->train[1].data.has_value());
  EXPECT_EQ(read->train[1].data->position, int64_t{1} << 40);
  EXPECT_EQ(read->train[1].data->epochs, (std::vector<double>{1.5, 0.25}));
  EXPECT_EQ(read->train[1].data->wait_seconds, 0.125);
}

TEST(Metrics, LinesAreThoseOfTheDocuments) {
  const std::string path = FreshPath();
  auto writer = MetricsWriter::Create(path);
  ASSERT_TRUE(writer.ok()) << writer.status();
  ASSERT_TRUE(writer->Write(Train(1, 5.5)).ok());
  TrainMetrics softmax = Train(2, 5.25);
  softmax.krr.reset();
  softmax.mfu = 0.5;
  ASSERT_TRUE(writer->Write(softmax).ok());
  ASSERT_TRUE(writer
                  ->Write(ValidationMetrics{
                      2, 5.0, 148.5, 4096, {{"0-127", 5.5}, {"128-255", 4.5}}})
                  .ok());
  ASSERT_TRUE(writer
                  ->Write(EventMetrics{"checkpoint",
                                       2,
                                       {{"folder", std::string("a \"b\"")},
                                        {"seconds", 0.5},
                                        {"bytes", int64_t{7}},
                                        {"whole", true}}})
                  .ok());
  EXPECT_EQ(
      Text(path),
      "{\"kind\":\"train\",\"step\":1,\"tokens\":2048,\"loss\":5.5,\"lr\":0."
      "001,"
      "\"grad_norm\":0.5,\"tokens_per_second\":10000.0,\"mfu\":null,"
      "\"step_seconds\":0.25,\"memory_bytes\":21474836480,"
      "\"krr\":{\"min_diagonal\":0.1,\"max_gain\":2.0,\"lambda_max\":1e-10}}\n"
      "{\"kind\":\"train\",\"step\":2,\"tokens\":4096,\"loss\":5.25,"
      "\"lr\":0.001,\"grad_norm\":0.5,\"tokens_per_second\":10000.0,"
      "\"mfu\":0.5,\"step_seconds\":0.25,\"memory_bytes\":21474836480,"
      "\"krr\":null}\n"
      "{\"kind\":\"validation\",\"step\":2,\"loss\":5.0,\"perplexity\":148.5,"
      "\"tokens\":4096,\"loss_by_position\":{\"0-127\":5.5,\"128-255\":4.5}}\n"
      "{\"kind\":\"event\",\"event\":\"checkpoint\",\"step\":2,"
      "\"folder\":\"a \\\"b\\\"\",\"seconds\":0.5,\"bytes\":7,"
      "\"whole\":true}\n");
  const auto read = ReadMetrics(path);
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->train.size(), 2u);
  EXPECT_EQ(read->train[0].krr->lambda_max, 1e-10);
  EXPECT_FALSE(read->train[0].mfu.has_value());
  EXPECT_EQ(read->train[1].mfu, 0.5);
  EXPECT_FALSE(read->train[1].krr.has_value());
  EXPECT_EQ(read->validation[0].loss_by_position[1].first, "128-255");
  EXPECT_EQ(read->events[0].event, "checkpoint");
  EXPECT_EQ(absl::get<int64_t>(read->events[0].fields[2].second), 7);
}

TEST(Metrics, DoublesKeepTheirBits) {
  const std::string path = FreshPath();
  auto writer = MetricsWriter::Create(path);
  std::mt19937_64 random(7);
  std::vector<double> values = {0.1, -0.0, 5e-324, 1.7976931348623157e308,
                                1.0 / 3};
  while (values.size() < 2000) {
    const uint64_t bits = random();
    double value = 0;
    std::memcpy(&value, &bits, sizeof(value));
    if (std::isfinite(value)) values.push_back(value);
  }
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_TRUE(writer->Write(Train(static_cast<int64_t>(i), values[i])).ok());
  }
  const auto read = ReadMetrics(path);
  ASSERT_TRUE(read.ok()) << read.status();
  for (size_t i = 0; i < values.size(); ++i) {
    // Equal, and of one sign where they are zero.
    EXPECT_EQ(read->train[i].loss, values[i]);
    EXPECT_EQ(std::signbit(read->train[i].loss), std::signbit(values[i]));
  }
}

TEST(Metrics, WhatIsNotFiniteIsNullAndAnEvent) {
  const std::string path = FreshPath();
  auto writer = MetricsWriter::Create(path);
  TrainMetrics metrics = Train(3, std::nan(""));
  metrics.grad_norm = -std::numeric_limits<double>::infinity();
  metrics.krr->max_gain = std::numeric_limits<double>::infinity();
  ASSERT_TRUE(writer->Write(metrics).ok());
  EXPECT_THAT(Text(path), HasSubstr("\"loss\":null"));
  EXPECT_THAT(
      Text(path),
      HasSubstr("{\"kind\":\"event\",\"event\":\"non_finite\",\"step\":3,"
                "\"loss\":\"nan\",\"grad_norm\":\"-inf\","
                "\"krr.max_gain\":\"inf\"}\n"));
  const auto read = ReadMetrics(path);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_TRUE(std::isnan(read->train[0].loss));
  EXPECT_EQ(read->events[0].event, "non_finite");
}

// The lines of a run of `steps` steps, by a process that began after `first`.
void WriteRun(MetricsWriter* writer, int64_t first, int64_t steps) {
  for (int64_t step = first + 1; step <= steps; ++step) {
    ASSERT_TRUE(
        writer->Write(Train(step, 6.0 / static_cast<double>(step))).ok());
    if (step % 2 == 0) {
      ASSERT_TRUE(writer->Write(ValidationMetrics{step, 1, 2, 3, {}}).ok());
    }
  }
}

TEST(Metrics, ResumedFileEqualsTheUnbrokenOne) {
  const std::string unbroken = FreshPath() + ".unbroken";
  ASSERT_TRUE(FileSystem::Posix().Remove(unbroken).ok());
  auto whole = MetricsWriter::Create(unbroken);
  WriteRun(&*whole, 0, 10);

  const std::string path = FreshPath();
  {
    auto writer = MetricsWriter::Create(path);
    WriteRun(&*writer, 0, 7);  // killed here; the last checkpoint is of 4
  }
  auto resumed = MetricsWriter::Resume(path, 4);
  ASSERT_TRUE(resumed.ok()) << resumed.status();
  WriteRun(&*resumed, 4, 10);
  EXPECT_EQ(Text(path), Text(unbroken));
}

TEST(Metrics, ResumeSurvivesATearAnywhere) {
  const std::string whole = FreshPath() + ".whole";
  ASSERT_TRUE(FileSystem::Posix().Remove(whole).ok());
  auto first = MetricsWriter::Create(whole);
  WriteRun(&*first, 0, 4);
  const std::string text = Text(whole);
  const size_t cut = text.find("{\"kind\":\"train\",\"step\":4");
  for (size_t size = cut; size <= text.size(); ++size) {
    const std::string path = FreshPath();
    ASSERT_TRUE(
        WriteFileAtomically(FileSystem::Posix(), path, text.substr(0, size))
            .ok());
    EXPECT_TRUE(ReadMetrics(path).ok()) << "cut at " << size;
    auto resumed = MetricsWriter::Resume(path, 3);
    ASSERT_TRUE(resumed.ok()) << resumed.status();
    WriteRun(&*resumed, 3, 4);
    ASSERT_EQ(Text(path), text) << "cut at " << size;
    if (size - cut > 60) size += 40;
  }
}

TEST(Metrics, ResumeDropsDamagedLinesAndStartsMissingFiles) {
  const std::string path = FreshPath();
  ASSERT_TRUE(
      WriteFileAtomically(FileSystem::Posix(), path,
                          "{\"kind\":\"event\",\"event\":\"a\",\"step\":1}\n"
                          "garbage\n[1]\n"
                          "{\"kind\":\"event\",\"event\":\"b\",\"step\":2}\n")
          .ok());
  EXPECT_EQ(ReadMetrics(path).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(ReadMetrics(path).status().message()),
              HasSubstr(":2:"));
  ASSERT_TRUE(MetricsWriter::Resume(path, 9).ok());
  EXPECT_EQ(ReadMetrics(path)->events.size(), 2u);
  ASSERT_TRUE(FileSystem::Posix().Remove(path).ok());
  EXPECT_TRUE(MetricsWriter::Resume(path, 9).ok());
  EXPECT_EQ(Text(path), "");
}

TEST(Metrics, ANewRunNeverWritesOverAnOldOne) {
  const std::string path = FreshPath();
  ASSERT_TRUE(MetricsWriter::Create(path).ok());
  EXPECT_EQ(MetricsWriter::Create(path).status().code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_FALSE(MetricsWriter::Create(path + "/x").ok());
}

TEST(Metrics, AFullDiskIsAnError) {
  auto writer = MetricsWriter::Resume("/dev/full", 0);
  if (!writer.ok()) GTEST_SKIP() << "skipped: needs /dev/full";
  const absl::Status status = writer->Write(Train(1, 1));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/dev/full"));
}

TEST(Metrics, ReaderRefusesLinesOfOtherKinds) {
  constexpr char kPositionsAsList[] =
      "{\"kind\":\"validation\",\"step\":1,\"loss\":1,\"perplexity\":1,"
      "\"tokens\":1,\"loss_by_position\":[]}";
  const std::string path = FreshPath();
  for (const char* line :
       {"{}", "{\"kind\":\"other\"}", "{\"kind\":\"train\"}",
        "{\"kind\":\"train\",\"step\":\"1\"}",
        "{\"kind\":\"event\",\"event\":\"a\",\"step\":1,\"x\":[1]}",
        kPositionsAsList}) {
    ASSERT_TRUE(
        WriteFileAtomically(FileSystem::Posix(), path, absl::StrCat(line, "\n"))
            .ok());
    EXPECT_EQ(ReadMetrics(path).status().code(), absl::StatusCode::kDataLoss)
        << line;
  }
}

}  // namespace
}  // namespace cubit
