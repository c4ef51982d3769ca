// SPDX-License-Identifier: Apache-2.0
//
// The loop of a run: batch, forward and backward, update, metrics, validation,
// samples, checkpoints. Holds no mathematics. Every rank of a run has one and
// takes the same steps; rank 0 writes what a user reads.

#ifndef CUBIT_LAUNCH_TRAINER_H_
#define CUBIT_LAUNCH_TRAINER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/optional.h"

#include "data/batch_loader.h"
#include "launch/data_setup.h"
#include "launch/metrics.h"
#include "launch/parallel_plan.h"
#include "launch/run.pb.h"
#include "launch/run_directory.h"
#include "launch/step_profiler.h"
#include "launch/train_state.h"
#include "launch/training_evaluation.h"
#include "launch/validation.h"
#include "parallel/mesh_communicators.h"
#include "parallel/wavefront_schedule.h"

namespace cubit {

struct TrainerOptions {
  bool resume = false;
  // Whether a resumed run may differ in what changes its result (schedule,
  // optimizer, data).
  bool allow_changes = false;
  // Ends there as a time limit would: checkpoint, schedule unchanged. 0: never.
  int64_t stop_at_step = 0;
  // Steps of which a profile is made (step_profiler.h); none if the last is 0.
  int64_t profile_first = 0;
  int64_t profile_last = 0;
  // A Hugging Face folder whose weights a new run starts from (import.h); "":
  // random ones.
  std::string init_from;
  // Where the newest metrics are served on the loopback interface
  // (metrics_server.h); 0: nowhere.
  int metrics_port = 0;
  // What a user types to go on; printed when the run stops early.
  std::string resume_command;
  // Told what this rank does in which step, for a watchdog; may be empty.
  std::function<void(int64_t step, const std::string& activity)> watch;
};

class Trainer {
 public:
  // `config` is complete and valid, `layout` made of it. With options.resume
  // the newest checkpoint of `directory` that is whole is loaded. `mesh` must
  // outlive the trainer.
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(
      const RunConfig& config, const TrainerOptions& options, RunData data,
      RunDirectory directory, const ParallelPlan& layout,
      MeshCommunicators* mesh);

  // Trains to the end, stop_at_step or a signal; the program's exit status.
  // That is kExitOtherHardware, after saying why, on every rank if weights
  // differ that must be equal: they are compared at the start and before every
  // checkpoint, so none is made of them.
  absl::StatusOr<int> Run();

 private:
  struct StepResult {
    double loss = 0;  // nats per token
    double learning_rate = 0;
    double grad_norm = 0;
    double seconds = 0;
    bool skipped = false;  // gradient not finite: no update
    int signal = 0;        // that any rank was given
    absl::optional<MixerHealth> health;
  };

  Trainer(const RunConfig& config, const TrainerOptions& options, RunData data,
          RunDirectory directory, const ParallelPlan& layout,
          MeshCommunicators* mesh);

  // Whether this rank writes what a user reads.
  bool is_main() const { return mesh_->rank() == 0; }
  // Whether a rank holds the whole model.
  bool has_whole_model() const;
  absl::StatusOr<int> RunSteps();
  absl::Status OpenData();
  absl::Status Resume();
  absl::Status InitializeWeights();
  absl::Status OpenMetrics();
  absl::StatusOr<StepResult> TrainStep();
  absl::StatusOr<std::vector<Batch>> NextBatches();
  // Targets that count, of all dp ranks.
  absl::StatusOr<int64_t> CountTokens(const std::vector<Batch>& batches);
  // The activity, and what of a wavefront is done in it; null: nothing.
  void Watch(const std::string& activity);
  void WatchWavefront(const WavefrontAction* action) const;
  // A line of metrics.jsonl after the last profiled step.
  absl::Status ReportProfile();
  // Counts a skipped update; an error once there were too many in a row.
  absl::Status CheckFinite(const StepResult& result);
  absl::Status Report(const StepResult& result);
  // Early in a run that goes on for long: ChooseProductsUnderLoad.
  void ChooseProducts(double step_seconds);
  // What is due after the step that was just done.
  absl::Status AfterStep();
  absl::Status Validate();
  absl::Status EvaluateTasks();
  absl::Status Sample();
  // Sets replicas_differ_ with the error that says so.
  absl::Status CompareReplicas();
  absl::Status Save();
  absl::Status Event(const std::string& event, const std::string& key,
                     const std::string& value);
  // Checkpoint and message of a run that ends before its last step.
  absl::StatusOr<int> StopEarly(int signal);
  absl::Status Finish();

  RunConfig config_;
  TrainerOptions options_;
  RunData data_;
  RunDirectory directory_;
  ParallelPlan layout_;
  MeshCommunicators* mesh_;
  std::unique_ptr<TrainState> state_;
  std::unique_ptr<BatchLoader> loader_;
  std::unique_ptr<Validator> validator_;  // absent: too little held-out text
  std::unique_ptr<TrainingEvaluation> tasks_;  // absent: none are asked for
  absl::optional<MetricsWriter> metrics_;      // of the main rank

  std::unique_ptr<StepProfiler> profiler_;
  RunPlan plan_;
  double model_flops_ = 0;  // of a step, all ranks
  double peak_flops_ = 0;   // of a rank's device
  int64_t step_ = 0;        // steps done
  int64_t steps_run_ = 0;   // of these, by this process
  int64_t tokens_ = 0;      // seen in those
  // Next sample in the order of samples without the skipped ones.
  int64_t position_ = 0;
  std::vector<PositionRange> skipped_data_;
  std::string activity_;          // as Watch was told
  double data_wait_seconds_ = 0;  // of all steps
  int64_t skipped_steps_ = 0;
  int64_t skipped_in_a_row_ = 0;
  int64_t saved_step_ = -1;
  int64_t compared_step_ = -1;
  bool replicas_differ_ = false;
};

}  // namespace cubit

#endif  // CUBIT_LAUNCH_TRAINER_H_
