// SPDX-License-Identifier: Apache-2.0
//
// One thread fills a queue of `prefetch` micro-batches. It is the only user of
// the data set; Next and the destructor touch the queue alone.

#include "data/batch_loader.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

// The value that the cross-entropy ignores (ops/cross_entropy.h); data lies
// below ops, so a test holds the two equal.
constexpr int32_t kIgnoredTarget = -100;

}  // namespace

// std::mutex, because ThreadSanitizer does not see into the distribution's
// absl::Mutex.
struct BatchLoader::State {
  State(BlendedDataset* samples, const BatchLoaderOptions& loader_options)
      : dataset(samples),
        options(loader_options),
        tokens(static_cast<size_t>(options.seq_len) + 1) {}

  // Where the loader was given a single data set.
  std::unique_ptr<BlendedDataset> owned;
  BlendedDataset* const dataset;
  const BatchLoaderOptions options;
  std::vector<int32_t> tokens;  // [T + 1], used by the thread alone

  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Batch> batches;  // by mutex, as all below
  absl::Status error;         // ends the thread
  bool stopping = false;
  double wait_seconds = 0;
  std::thread thread;

  absl::StatusOr<Batch> Read(int64_t first_position);
  absl::Status ReadRow(int64_t position, int64_t row, Batch* batch);
  void Run();
};

absl::Status BatchLoader::State::ReadRow(int64_t position, int64_t row,
                                         Batch* batch) {
  const int64_t seq_len = options.seq_len;
  int32_t* const inputs = batch->inputs.data() + row * seq_len;
  int32_t* const targets = batch->targets.data() + row * seq_len;
  CUBIT_RETURN_IF_ERROR(dataset->ReadSample(
      dataset->SampleAt(options.shuffle_seed, options.shuffle, position),
      tokens.data(), batch->segment_ids.data() + row * seq_len));
  const int32_t eot_id = dataset->info().eot_id;
  for (int64_t i = 0; i < seq_len; ++i) {
    inputs[i] = tokens[static_cast<size_t>(i)];
    targets[i] = tokens[static_cast<size_t>(i) + 1];
    if (options.mask_across_documents && targets[i] == eot_id) {
      targets[i] = kIgnoredTarget;
    } else {
      ++batch->valid_tokens;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Batch> BatchLoader::State::Read(int64_t first_position) {
  const size_t size =
      static_cast<size_t>(options.micro_batch_size * options.seq_len);
  Batch batch;
  batch.inputs.resize(size);
  batch.targets.resize(size);
  batch.segment_ids.resize(size);
  for (int64_t row = 0; row < options.micro_batch_size; ++row) {
    CUBIT_RETURN_IF_ERROR(ReadRow(first_position + row, row, &batch));
  }
  return batch;
}

void BatchLoader::State::Run() {
  for (int64_t position = options.first_position;; position += options.stride) {
    {
      std::unique_lock<std::mutex> lock(mutex);
      changed.wait(lock, [this] {
        return stopping ||
               batches.size() < static_cast<size_t>(options.prefetch);
      });
      if (stopping) return;
    }
    absl::StatusOr<Batch> batch =
        Read(SkipPositions(options.skipped, position));
    const std::lock_guard<std::mutex> lock(mutex);
    if (batch.ok()) {
      batches.push_back(*std::move(batch));
    } else {
      error = batch.status();
    }
    changed.notify_all();
    if (!error.ok()) return;
  }
}

BatchLoader::BatchLoader(BlendedDataset* dataset,
                         const BatchLoaderOptions& options)
    : state_(std::make_unique<State>(dataset, options)) {
  Start();
}

BatchLoader::BatchLoader(TokenDataset* dataset,
                         const BatchLoaderOptions& options) {
  auto owned = std::make_unique<BlendedDataset>(dataset);
  state_ = std::make_unique<State>(owned.get(), options);
  state_->owned = std::move(owned);
  Start();
}

void BatchLoader::Start() {
  const BatchLoaderOptions& options = state_->options;
  CUBIT_CHECK_GE(options.micro_batch_size, 1);
  CUBIT_CHECK_EQ(options.seq_len, state_->dataset->info().seq_len);
  CUBIT_CHECK_GE(options.first_position, 0);
  CUBIT_CHECK_GE(options.stride, 1);
  CUBIT_CHECK_GE(options.prefetch, 1);
  state_->thread = std::thread([state = state_.get()] { state->Run(); });
}

BatchLoader::~BatchLoader() {
  {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->stopping = true;
  }
  state_->changed.notify_all();
  state_->thread.join();
}

absl::StatusOr<Batch> BatchLoader::Next() {
  const auto start = std::chrono::steady_clock::now();
  std::unique_lock<std::mutex> lock(state_->mutex);
  state_->changed.wait(
      lock, [this] { return !state_->batches.empty() || !state_->error.ok(); });
  state_->wait_seconds +=
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
          .count();
  // Batches read before the error are good.
  if (state_->batches.empty()) return state_->error;
  Batch batch = std::move(state_->batches.front());
  state_->batches.pop_front();
  state_->changed.notify_all();
  return batch;
}

double BatchLoader::wait_seconds() const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->wait_seconds;
}

}  // namespace cubit
