// SPDX-License-Identifier: Apache-2.0
//
// Every schedule over real messages, with the memory that PipelineBuffers
// gives: a slot or a gradient that was used too early or too late shows in the
// sums.

#include "parallel/pipeline_runner.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"

#include "runtime/communicator_threads.h"

namespace cubit {
namespace {

Tensor Number(float* value) { return Tensor(value, DType::kFloat32, {1}); }

// 1 + 2 + ... + n.
int64_t SumTo(int64_t n) { return n * (n + 1) / 2; }

// Part s adds s + 1 to its input; the first input is 1000 times the
// micro-batch. The gradient begins as the last output and gains 1 in each part.
class AddingStage : public PipelineStage {
 public:
  AddingStage(const std::vector<PipelineAction>& actions,
              const PipelineShape& shape, int rank)
      : shape_(shape), rank_(rank), buffers_(actions, shape) {
    for (int chunk = 0; chunk < shape.num_chunks; ++chunk) {
      inputs_.emplace_back(static_cast<size_t>(buffers_.num_slots(chunk)));
    }
    outputs_ = inputs_;
    gradients_.resize(static_cast<size_t>(buffers_.num_gradients()));
  }

  void Forward(int64_t micro_batch, int chunk) override {
    float& input = Value(&inputs_, micro_batch, chunk);
    if (Part(chunk) == 0) input = 1000.0f * static_cast<float>(micro_batch);
    Value(&outputs_, micro_batch, chunk) =
        input + static_cast<float>(Part(chunk) + 1);
  }
  void Backward(int64_t micro_batch, int chunk) override {
    // What the forward left is still there.
    const int part = Part(chunk);
    const float before = static_cast<float>(1000 * micro_batch + SumTo(part));
    EXPECT_EQ(Value(&inputs_, micro_batch, chunk), before);
    float& gradient = Gradient(micro_batch, chunk);
    if (part + 1 == shape_.pp_size * shape_.num_chunks) {
      gradient = Value(&outputs_, micro_batch, chunk);
    }
    gradient += 1;
    if (part == 0) first_gradients_.push_back(gradient);
  }
  Tensor Input(int64_t micro_batch, int chunk) override {
    return Number(&Value(&inputs_, micro_batch, chunk));
  }
  ConstTensor Output(int64_t micro_batch, int chunk) override {
    return Number(&Value(&outputs_, micro_batch, chunk));
  }
  Tensor OutputGradient(int64_t micro_batch, int chunk) override {
    return Number(&Gradient(micro_batch, chunk));
  }
  ConstTensor InputGradient(int64_t micro_batch, int chunk) override {
    return Number(&Gradient(micro_batch, chunk));
  }

  const PipelineBuffers& buffers() const { return buffers_; }
  // Of part 0, in the order of the backwards.
  const std::vector<float>& first_gradients() const { return first_gradients_; }

 private:
  using Slots = std::vector<std::vector<float>>;

  int Part(int chunk) const { return chunk * shape_.pp_size + rank_; }
  float& Value(Slots* slots, int64_t micro_batch, int chunk) {
    return slots->at(static_cast<size_t>(chunk))
        .at(static_cast<size_t>(buffers_.slot(chunk, micro_batch)));
  }
  float& Gradient(int64_t micro_batch, int chunk) {
    return gradients_.at(
        static_cast<size_t>(buffers_.gradient(chunk, micro_batch)));
  }

  PipelineShape shape_;
  int rank_;
  PipelineBuffers buffers_;
  Slots inputs_;
  Slots outputs_;
  std::vector<float> gradients_;
  std::vector<float> first_gradients_;
};

void RunAndCheck(PipelineSchedule schedule, const PipelineShape& shape) {
  SCOPED_TRACE(absl::StrCat(Name(schedule), " p ", shape.pp_size, " m ",
                            shape.num_micro_batches, " v ", shape.num_chunks));
  const auto programs = MakePipeline(schedule, shape);
  ASSERT_TRUE(programs.ok()) << programs.status();
  auto ranks = MakeThreadCommunicators("pp", shape.pp_size, absl::Seconds(30));
  std::vector<std::unique_ptr<AddingStage>> stages;
  for (int r = 0; r < shape.pp_size; ++r) {
    stages.push_back(std::make_unique<AddingStage>(
        (*programs)[static_cast<size_t>(r)], shape, r));
  }
  std::vector<std::thread> threads;
  std::vector<int64_t> watched(stages.size());
  for (size_t r = 0; r < stages.size(); ++r) {
    threads.emplace_back([&, r] {
      Stream stream;
      const absl::Status connected = ConnectPipeline(*ranks[r], stream);
      EXPECT_TRUE(connected.ok()) << connected;
      const absl::Status status =
          RunPipeline((*programs)[r], stages[r].get(), *ranks[r], stream,
                      [&](const PipelineAction&) { ++watched[r]; });
      EXPECT_TRUE(status.ok()) << status;
    });
  }
  for (std::thread& thread : threads) thread.join();
  const int parts = shape.pp_size * shape.num_chunks;
  const std::vector<float>& found = stages[0]->first_gradients();
  ASSERT_EQ(static_cast<int64_t>(found.size()), shape.num_micro_batches);
  for (size_t m = 0; m < found.size(); ++m) {
    EXPECT_EQ(found[m], static_cast<float>(1000 * m) +
                            static_cast<float>(SumTo(parts) + parts));
  }
  for (size_t r = 0; r < stages.size(); ++r) {
    EXPECT_EQ(watched[r], static_cast<int64_t>((*programs)[r].size()));
  }
}

TEST(RunPipeline, PassesValuesAndGradientsThroughEveryPart) {
  for (const int p : {1, 2, 3, 4}) {
    for (const int64_t m : {1, 2, 5, 8}) {
      RunAndCheck(PipelineSchedule::kGPipe, {p, m, 1});
      RunAndCheck(PipelineSchedule::k1F1B, {p, m, 1});
    }
  }
  for (const int v : {2, 3}) {
    RunAndCheck(PipelineSchedule::kInterleaved1F1B, {2, 6, v});
    RunAndCheck(PipelineSchedule::kInterleaved1F1B, {4, 8, v});
  }
}

TEST(RunPipeline, ReturnsTheErrorOfALostPeer) {
  const PipelineShape shape = {2, 4, 1};
  const auto programs = MakePipeline(PipelineSchedule::k1F1B, shape);
  ASSERT_TRUE(programs.ok());
  auto ranks = MakeThreadCommunicators("pp", 2, absl::Seconds(30));
  ranks[1].reset();
  AddingStage stage((*programs)[0], shape, 0);
  Stream stream;
  const absl::Status status = RunPipeline((*programs)[0], &stage, *ranks[0],
                                          stream, [](const PipelineAction&) {});
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
}

// Every rank has had a message from both neighbours, in both directions, when
// it returns: nobody returns while one of them has not come.
TEST(ConnectPipeline, WaitsForBothNeighbours) {
  for (const size_t p : {2, 3, 4}) {
    auto ranks =
        MakeThreadCommunicators("pp", static_cast<int>(p), absl::Seconds(30));
    std::vector<std::thread> threads;
    std::vector<char> ok(p);
    std::atomic<int> arrived = 0;
    for (size_t r = 0; r < p; ++r) {
      threads.emplace_back([&, r] {
        if (r == p - 1) absl::SleepFor(absl::Milliseconds(20));
        ++arrived;
        Stream stream;
        const absl::Status status = ConnectPipeline(*ranks[r], stream);
        // The last rank is everybody's neighbour, but for p = 4.
        const bool met = p == 4 || arrived == static_cast<int>(p);
        ok[r] = status.ok() && met ? 1 : 0;
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (size_t r = 0; r < p; ++r) EXPECT_TRUE(ok[r]) << p << ", rank " << r;
  }
}

TEST(ConnectPipeline, ReturnsTheErrorOfALostPeer) {
  auto ranks = MakeThreadCommunicators("pp", 2, absl::Seconds(30));
  ranks[1].reset();
  Stream stream;
  const absl::Status status = ConnectPipeline(*ranks[0], stream);
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
}

TEST(PipelineBuffers, OneSlotServesOneStage) {
  const PipelineShape shape = {1, 8, 1};
  const auto programs = MakePipeline(PipelineSchedule::k1F1B, shape);
  ASSERT_TRUE(programs.ok());
  const PipelineBuffers buffers((*programs)[0], shape);
  EXPECT_EQ(buffers.num_slots(0), 1);
  EXPECT_EQ(buffers.num_gradients(), 1);
}

// An input that arrives while the last backward runs needs a slot of its own.
TEST(PipelineBuffers, HoldsLittleMoreThanTheScheduleKeepsAlive) {
  for (const int p : {2, 4, 8}) {
    const PipelineShape shape = {p, 16, 1};
    const auto programs = MakePipeline(PipelineSchedule::k1F1B, shape);
    ASSERT_TRUE(programs.ok());
    for (int r = 0; r < p; ++r) {
      const PipelineBuffers buffers((*programs)[static_cast<size_t>(r)], shape);
      EXPECT_LE(buffers.num_slots(0),
                MaxLiveActivations(PipelineSchedule::k1F1B, shape, r) + 1);
      EXPECT_LE(buffers.num_gradients(), 2);
    }
  }
}

}  // namespace
}  // namespace cubit
