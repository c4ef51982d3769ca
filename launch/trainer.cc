// SPDX-License-Identifier: Apache-2.0

#include "launch/trainer.h"

#include <signal.h>

#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

#include "launch/config.h"
#include "launch/config_checks.h"
#include "launch/import.h"
#include "launch/interrupt.h"
#include "launch/lr_schedule.h"
#include "launch/metrics_server.h"
#include "launch/model_setup.h"
#include "launch/sampler.h"
#include "launch/tensorboard.h"
#include "ops/matmul.h"
#include "parallel/checkpoint.h"
#include "runtime/command_line.h"
#include "runtime/file_system.h"
#include "runtime/logging.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr int64_t kMaxSkippedInARow = 10;
// A choice of algorithms under load costs 10 to 20 seconds and saves about 2%
// of what comes after it, so it is made in runs that go on for this long, once
// the time of a step is known.
constexpr int64_t kStepsBeforeChoice = 20;
constexpr double kSecondsWorthChoice = 1800;
// Lower than //launch:generate's: a sample shows what was learnt.
constexpr double kSampleTemperature = 0.6;
constexpr char kSkippedSteps[] = "skipped_steps";

double SecondsSince(absl::Time start) {
  return absl::ToDoubleSeconds(absl::Now() - start);
}

int64_t ValidTokens(const std::vector<Batch>& batches) {
  int64_t tokens = 0;
  for (const Batch& batch : batches) tokens += batch.valid_tokens;
  return tokens;
}

bool IsDue(int64_t step, int64_t every_steps) {
  return every_steps > 0 && step % every_steps == 0;
}

}  // namespace

Trainer::Trainer(const RunConfig& config, const TrainerOptions& options,
                 RunData data, RunDirectory directory,
                 const ParallelPlan& layout, MeshCommunicators* mesh)
    : config_(config),
      options_(options),
      data_(std::move(data)),
      directory_(std::move(directory)),
      layout_(layout),
      mesh_(mesh) {}

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(
    const RunConfig& config, const TrainerOptions& options, RunData data,
    RunDirectory directory, const ParallelPlan& layout,
    MeshCommunicators* mesh) {
  CUBIT_ASSIGN_OR_RETURN(const ModelConfig model_config,
                         MakeModelConfig(config, data.tokenizer->vocab_size()));
  CUBIT_ASSIGN_OR_RETURN(const auto whole, LanguageModel::Create(model_config));
  CUBIT_ASSIGN_OR_RETURN(
      auto model,
      LanguageModel::Create(model_config, layout.ShardOf(mesh->rank())));
  auto trainer = std::unique_ptr<Trainer>(new Trainer(
      config, options, std::move(data), std::move(directory), layout, mesh));
  AlignParameters(config, layout, model.get());
  trainer->plan_ = MakePlan(config, layout, mesh->rank(), *model);
  trainer->model_flops_ = whole->TrainFlops(config.batch().global_batch_size(),
                                            model_config.seq_len);
  trainer->peak_flops_ = QueryDevice().peak_flops;
  LogInfo(trainer->plan_.ToString());
  CUBIT_ASSIGN_OR_RETURN(
      trainer->state_,
      TrainState::Create(config, layout, std::move(model), mesh));
  trainer->profiler_ = std::make_unique<StepProfiler>(
      options.profile_first, options.profile_last,
      JoinPath(trainer->directory_.path(), "profile"), trainer->state_.get());
  if (options.watch != nullptr) {
    trainer->state_->observer().watch =
        [trainer = trainer.get()](const WavefrontAction* action) {
          trainer->WatchWavefront(action);
        };
  }
  if (options.resume) {
    CUBIT_RETURN_IF_ERROR(trainer->Resume());
  } else {
    CUBIT_RETURN_IF_ERROR(trainer->InitializeWeights());
  }
  CUBIT_RETURN_IF_ERROR(trainer->OpenData());
  CUBIT_ASSIGN_OR_RETURN(
      trainer->tasks_,
      TrainingEvaluation::Create(config, *trainer->data_.tokenizer));
  if (trainer->is_main()) CUBIT_RETURN_IF_ERROR(trainer->OpenMetrics());
  return trainer;
}

bool Trainer::has_whole_model() const {
  return mesh_->mesh().world_size() == mesh_->size(MeshAxis::kDp);
}

absl::Status Trainer::InitializeWeights() {
  LanguageModel& model = state_->model();
  if (options_.init_from.empty()) {
    return model.parameters().Initialize(config_.seed(), state_->stream());
  }
  CUBIT_RETURN_IF_ERROR(ImportHuggingFace(options_.init_from, *data_.tokenizer,
                                          FileSystem::Posix(), &model,
                                          state_->stream()));
  LogInfo(absl::StrCat("weights of ", options_.init_from));
  return absl::OkStatus();
}

absl::Status Trainer::OpenMetrics() {
  const std::string path = directory_.metrics_path();
  CUBIT_ASSIGN_OR_RETURN(metrics_, options_.resume
                                       ? MetricsWriter::Resume(path, step_)
                                       : MetricsWriter::Create(path));
  CUBIT_RETURN_IF_ERROR(WriteFileAtomically(
      FileSystem::Posix(), directory_.config_path(), ResolvedText(config_)));
  CUBIT_ASSIGN_OR_RETURN(
      auto event_file,
      TensorBoardWriter::Create(JoinPath(directory_.path(), "tensorboard"),
                                options_.resume ? step_ + 1 : 0));
  metrics_->AddSink(std::move(event_file));
  if (options_.metrics_port != 0) {
    CUBIT_ASSIGN_OR_RETURN(auto server,
                           MetricsServer::Start(options_.metrics_port));
    LogInfo(absl::StrFormat("metrics at http://127.0.0.1:%d/metrics",
                            server->port()));
    metrics_->AddSink(std::move(server));
  }
  if (!options_.init_from.empty()) {
    return Event("init_from", "folder", options_.init_from);
  }
  if (!options_.resume) return absl::OkStatus();
  return Event("resume", "folder",
               CheckpointFolder(directory_.checkpoints_path(), step_));
}

absl::Status Trainer::Event(const std::string& event, const std::string& key,
                            const std::string& value) {
  if (!is_main()) return absl::OkStatus();
  EventMetrics line;
  line.event = event;
  line.step = step_;
  line.fields = {{key, value}};
  return metrics_->Write(line);
}

absl::Status Trainer::OpenData() {
  BatchLoaderOptions options;
  options.micro_batch_size = config_.batch().micro_batch_size();
  options.stride = options.micro_batch_size * mesh_->size(MeshAxis::kDp);
  options.seq_len = config_.model().seq_len();
  options.shuffle_seed = config_.data().shuffle_seed();
  options.first_position =
      position_ + mesh_->coordinate().dp * options.micro_batch_size;
  CUBIT_ASSIGN_OR_RETURN(skipped_data_, SkippedPositions(config_));
  options.skipped = skipped_data_;
  options.mask_across_documents = config_.data().document_mask();
  loader_ = std::make_unique<BatchLoader>(data_.train.get(), options);
  const DatasetInfo& info = data_.train->info();
  LogInfo(absl::StrFormat("training on %d tokens of %d documents (%s)",
                          info.num_tokens, info.num_documents, info.tokenizer));
  absl::StatusOr<std::unique_ptr<Validator>> validator =
      Validator::Open(data_.folders, config_);
  if (validator.ok()) {
    validator_ = *std::move(validator);
  } else if (absl::IsFailedPrecondition(validator.status())) {
    LogWarning(absl::StrCat("training without validation: ",
                            validator.status().message()));
  } else {
    return validator.status();
  }
  return absl::OkStatus();
}

absl::Status Trainer::Resume() {
  CUBIT_ASSIGN_OR_RETURN(const RunConfig saved,
                         LoadConfigFile(directory_.config_path()));
  CUBIT_RETURN_IF_ERROR(CheckResume(saved, config_, options_.allow_changes));
  CUBIT_ASSIGN_OR_RETURN(
      const CheckpointInfo info,
      LoadNewestCheckpoint(FileSystem::Posix(), directory_.checkpoints_path(),
                           state_->StateToLoad(), &mesh_->control()));
  step_ = info.step;
  tokens_ = info.tokens;
  position_ = info.position;
  CUBIT_RETURN_IF_ERROR(CheckSkippedOnResume(saved, config_, position_));
  saved_step_ = step_;
  const auto skipped = info.state.find(kSkippedSteps);
  if (skipped == info.state.end() ||
      !absl::SimpleAtoi(skipped->second, &skipped_steps_)) {
    return absl::DataLossError(absl::StrCat(
        info.folder, ": the manifest has no number ", kSkippedSteps));
  }
  state_->model().parameters().RefreshCompute(state_->stream());
  LogInfo(absl::StrFormat("resumed at step %d from %s", step_, info.folder));
  return absl::OkStatus();
}

absl::StatusOr<int> Trainer::Run() {
  absl::StatusOr<int> status = RunSteps();
  if (!replicas_differ_) return status;
  // Every rank has found it, so none waits for another.
  LogError(status.status().message());
  return kExitOtherHardware;
}

absl::StatusOr<int> Trainer::RunSteps() {
  CUBIT_RETURN_IF_ERROR(CompareReplicas());
  if (step_ == 0) CUBIT_RETURN_IF_ERROR(Validate());
  const int64_t total_steps = config_.schedule().total_steps();
  while (step_ < total_steps) {
    CUBIT_ASSIGN_OR_RETURN(const StepResult result, TrainStep());
    CUBIT_RETURN_IF_ERROR(Report(result));
    CUBIT_RETURN_IF_ERROR(ReportProfile());
    CUBIT_RETURN_IF_ERROR(CheckFinite(result));
    if (result.signal != 0) return StopEarly(result.signal);
    CUBIT_RETURN_IF_ERROR(AfterStep());
    ChooseProducts(result.seconds);
    if (step_ == options_.stop_at_step && step_ < total_steps) {
      return StopEarly(0);
    }
  }
  CUBIT_RETURN_IF_ERROR(Finish());
  return kExitDone;
}

// One step, as docs/architecture.md tells it.
absl::StatusOr<Trainer::StepResult> Trainer::TrainStep() {
  const absl::Time start = absl::Now();
  CUBIT_ASSIGN_OR_RETURN(const std::vector<Batch> batches, NextBatches());
  CUBIT_ASSIGN_OR_RETURN(const int64_t tokens, CountTokens(batches));
  CUBIT_RETURN_IF_ERROR(profiler_->Begin(step_ + 1));
  state_->BeginStep();

  // The loss is a mean over all tokens of the step that count, so it is divided
  // once, by their number.
  CUBIT_RETURN_IF_ERROR(state_->ForwardBackward(
      batches, 1.0f / static_cast<float>(tokens),
      [this](const PipelineAction& action) { Watch(action.ToString()); }));
  Watch("update");
  ++step_;
  tokens_ += tokens;
  position_ += config_.batch().global_batch_size();
  StepResult result;
  result.learning_rate = LearningRate(
      config_.schedule(), config_.optimizer().learning_rate(), step_);
  CUBIT_RETURN_IF_ERROR(
      state_->Update(step_ - skipped_steps_, result.learning_rate));
  CUBIT_ASSIGN_OR_RETURN(const StepOutcome outcome,
                         state_->FinishStep(InterruptSignal()));
  profiler_->End(step_);

  result.loss = outcome.loss / static_cast<double>(tokens);
  result.grad_norm = outcome.grad_norm;
  result.health = outcome.health;
  result.signal = outcome.signal;
  // The device saw the norm and changed nothing.
  result.skipped = !std::isfinite(result.grad_norm);
  if (result.skipped) ++skipped_steps_;
  result.seconds = SecondsSince(start);
  return result;
}

absl::StatusOr<std::vector<Batch>> Trainer::NextBatches() {
  std::vector<Batch> batches;
  for (int64_t i = 0; i < plan_.num_micro_batches; ++i) {
    CUBIT_ASSIGN_OR_RETURN(Batch batch, loader_->Next());
    batches.push_back(std::move(batch));
  }
  return batches;
}

absl::StatusOr<int64_t> Trainer::CountTokens(
    const std::vector<Batch>& batches) {
  CUBIT_ASSIGN_OR_RETURN(const int64_t tokens,
                         state_->SumOverDp(ValidTokens(batches)));
  if (tokens > 0) return tokens;
  return absl::FailedPreconditionError(absl::StrCat(
      "step ", step_ + 1,
      " has no target that counts: every document is "
      "one token long; turn data.document_mask off or use other text"));
}

void Trainer::Watch(const std::string& activity) {
  if (options_.watch == nullptr) return;
  activity_ = activity;
  options_.watch(step_ + 1, activity);
}

void Trainer::WatchWavefront(const WavefrontAction* action) const {
  options_.watch(step_ + 1,
                 action == nullptr
                     ? activity_
                     : absl::StrCat(activity_, ", block ", action->ToString()));
}

absl::Status Trainer::CheckFinite(const StepResult& result) {
  if (!result.skipped) {
    if (!std::isfinite(result.loss)) {
      return absl::DataLossError(absl::StrFormat(
          "step %d: the loss is %g although every gradient is finite: a token "
          "or target lies outside the vocabulary. Verify the data (bazel run "
          "//data:inspect -- DIR --verify) and go on from the last checkpoint: "
          "%s",
          step_, result.loss, options_.resume_command));
    }
    skipped_in_a_row_ = 0;
    return absl::OkStatus();
  }
  ++skipped_in_a_row_;
  const std::string bad = state_->FirstBadGradient();
  const std::string what = absl::StrFormat(
      "step %d: loss %g, gradient norm %g; first bad gradient: %s; no update",
      step_, result.loss, result.grad_norm, bad.empty() ? "none" : bad);
  LogWarning(what);
  CUBIT_RETURN_IF_ERROR(Event("skipped_step", "reason", what));
  if (skipped_in_a_row_ < kMaxSkippedInARow) return absl::OkStatus();
  return absl::AbortedError(
      absl::StrCat(kMaxSkippedInARow,
                   " steps in a row had no finite loss and gradient (", what,
                   "). Lower optimizer.learning_rate and go on from the last "
                   "checkpoint: ",
                   options_.resume_command));
}

absl::Status Trainer::Report(const StepResult& result) {
  if (!is_main()) return absl::OkStatus();
  TrainMetrics line;
  line.step = step_;
  line.tokens = tokens_;
  line.loss = result.loss;
  line.lr = result.learning_rate;
  line.grad_norm = result.grad_norm;
  line.tokens_per_second =
      static_cast<double>(plan_.step_tokens) / result.seconds;
  if (peak_flops_ > 0) {
    line.mfu = model_flops_ / mesh_->mesh().world_size() / result.seconds /
               peak_flops_;
  }
  line.step_seconds = result.seconds;
  line.memory_bytes = PeakMemoryBytes();
  if (result.health.has_value()) {
    line.krr = KrrMetrics{result.health->min_diagonal, result.health->max_gain,
                          result.health->lambda_max};
  }
  const int64_t position = SkipPositions(skipped_data_, position_);
  const double waited = loader_->wait_seconds();
  line.data = DataMetrics{position, data_.train->Epochs(position),
                          waited - data_wait_seconds_};
  data_wait_seconds_ = waited;
  CUBIT_RETURN_IF_ERROR(metrics_->Write(line));
  const int64_t total = config_.schedule().total_steps();
  const std::string text = absl::StrFormat(
      "step %d/%d  loss %.4f  lr %.2e  grad_norm %.3f  %.0f tokens/s  left %s",
      step_, total, result.loss, result.learning_rate, result.grad_norm,
      line.tokens_per_second,
      absl::FormatDuration(absl::Seconds(
          std::ceil(static_cast<double>(total - step_) * result.seconds))));
  if (IsDue(step_, config_.log().every_steps()) || step_ == 1 ||
      step_ == total) {
    LogInfo(text);
  } else {
    ShowProgress(text);
  }
  return absl::OkStatus();
}

absl::Status Trainer::ReportProfile() {
  CUBIT_ASSIGN_OR_RETURN(const EventMetrics event, profiler_->Report(step_));
  if (!is_main() || event.fields.empty()) return absl::OkStatus();
  return metrics_->Write(event);
}

void Trainer::ChooseProducts(double step_seconds) {
  ++steps_run_;
  const int64_t steps_left = config_.schedule().total_steps() - step_;
  if (steps_run_ != kStepsBeforeChoice ||
      static_cast<double>(steps_left) * step_seconds < kSecondsWorthChoice) {
    return;
  }
  const int kinds = ChooseProductsUnderLoad();
  if (kinds == 0) return;
  LogInfo(absl::StrFormat(
      "the next step times the algorithms of %d kinds of matrix products under "
      "load, which takes some seconds",
      kinds));
}

absl::Status Trainer::AfterStep() {
  if (step_ == config_.schedule().total_steps()) return absl::OkStatus();
  if (IsDue(step_, config_.evaluation().every_steps())) {
    CUBIT_RETURN_IF_ERROR(Validate());
    CUBIT_RETURN_IF_ERROR(EvaluateTasks());
  }
  if (IsDue(step_, config_.log().sample_every_steps())) {
    CUBIT_RETURN_IF_ERROR(Sample());
  }
  if (!IsDue(step_, config_.checkpoint().every_steps())) {
    return absl::OkStatus();
  }
  CUBIT_RETURN_IF_ERROR(CompareReplicas());
  // A full disk now may have room at the next checkpoint; the last one of the
  // run is not forgiven.
  absl::Status saved = Save();
  if (saved.ok()) return saved;
  LogWarning(absl::StrCat("no checkpoint at step ", step_, ": ",
                          saved.message(), "; training goes on"));
  return Event("checkpoint_failed", "reason", std::string(saved.message()));
}

absl::Status Trainer::Validate() {
  if (validator_ == nullptr) return absl::OkStatus();
  Watch("validation");
  CUBIT_ASSIGN_OR_RETURN(const ValidationResult result,
                         validator_->Run(state_.get()));
  if (!is_main()) return absl::OkStatus();
  LogInfo(absl::StrFormat(
      "validation at step %d: loss %.4f, perplexity %.2f (%d tokens)", step_,
      result.loss, std::exp(result.loss), result.tokens));
  ValidationMetrics line;
  line.step = step_;
  line.loss = result.loss;
  line.perplexity = std::exp(result.loss);
  line.tokens = result.tokens;
  line.loss_by_position = result.loss_by_position;
  return metrics_->Write(line);
}

absl::Status Trainer::EvaluateTasks() {
  if (tasks_ == nullptr) return absl::OkStatus();
  // The plan has refused layouts whose ranks hold parts.
  CUBIT_RETURN_IF_ERROR(state_->WaitForWeights());
  if (!is_main()) return absl::OkStatus();
  const absl::StatusOr<EventMetrics> result =
      tasks_->Run(state_->model(), step_, state_->stream());
  if (!result.ok()) {
    // A run is worth more than one of its scores.
    LogWarning(absl::StrCat("no scores of tasks at step ", step_, ": ",
                            result.status().message(), "; training goes on"));
    return Event("evaluation_failed", "reason",
                 std::string(result.status().message()));
  }
  std::string line = absl::StrFormat("tasks at step %d:", step_);
  for (const auto& [name, value] : result->fields) {
    if (const auto* number = absl::get_if<double>(&value)) {
      absl::StrAppend(&line, absl::StrFormat(" %s %.4g", name, *number));
    }
  }
  LogInfo(line);
  return metrics_->Write(*result);
}

absl::Status Trainer::Sample() {
  CUBIT_RETURN_IF_ERROR(state_->WaitForWeights());
  if (!is_main()) return absl::OkStatus();
  if (!has_whole_model()) {
    LogInfo(absl::StrCat(
        "no sample at step ", step_, ": no rank of ", layout_.mesh.ToString(),
        " holds the whole model; //launch:generate reads the checkpoint"));
    return absl::OkStatus();
  }
  SamplingOptions options;
  options.temperature = kSampleTemperature;
  options.seed = config_.seed();
  CUBIT_ASSIGN_OR_RETURN(
      const std::vector<GeneratedText> texts,
      GenerateTexts(state_->model(), *data_.tokenizer, {""}, options,
                    state_->stream(), nullptr, nullptr));
  const std::string& text = texts[0].text;
  LogInfo(absl::StrCat("sample at step ", step_, ":\n", text));
  return Event("sample", "text", text);
}

absl::Status Trainer::CompareReplicas() {
  if (compared_step_ == step_) return absl::OkStatus();
  Watch("comparison of weights");
  absl::Status status = state_->CompareReplicas();
  if (status.ok()) compared_step_ = step_;
  if (!absl::IsDataLoss(status)) return status;
  replicas_differ_ = true;
  const std::string advice =
      compared_step_ < 0
          ? "No step was made of them; start again without that host"
          : absl::StrCat(
                "They were equal at step ", compared_step_,
                " and are not saved; go on from the last checkpoint without "
                "that host: ",
                options_.resume_command);
  return absl::DataLossError(
      absl::StrCat("step ", step_, ": ", status.message(), ". ", advice));
}

absl::Status Trainer::Save() {
  if (saved_step_ == step_) return absl::OkStatus();
  CheckpointInfo info;
  info.step = step_;
  info.tokens = tokens_;
  info.position = position_;
  info.config = ResolvedText(config_);
  info.state[kSkippedSteps] = absl::StrCat(skipped_steps_);
  std::map<std::string, std::string> extra_files = {
      {"config.textproto", info.config}};
  for (const TokenizerFile& file : data_.tokenizer->files()) {
    extra_files["tokenizer/" + file.name] = file.contents;
  }
  const std::string& folder = directory_.checkpoints_path();
  Watch("checkpoint");
  CUBIT_ASSIGN_OR_RETURN(const SavedState saved, state_->GatherState());
  CUBIT_RETURN_IF_ERROR(SaveCheckpoint(FileSystem::Posix(), folder, info,
                                       saved.tensors, extra_files,
                                       CheckpointOptions(), &mesh_->control()));
  saved_step_ = step_;
  if (!is_main()) return absl::OkStatus();
  CUBIT_RETURN_IF_ERROR(
      Event("checkpoint", "folder", CheckpointFolder(folder, step_)));
  return PruneCheckpoints(FileSystem::Posix(), folder,
                          config_.checkpoint().keep_last(),
                          config_.checkpoint().keep_every());
}

absl::StatusOr<int> Trainer::StopEarly(int signal) {
  CUBIT_RETURN_IF_ERROR(CompareReplicas());
  CUBIT_RETURN_IF_ERROR(Save());
  LogInfo(absl::StrFormat(
      "stopped after step %d, saved in %s\nresume with: %s", step_,
      CheckpointFolder(directory_.checkpoints_path(), step_),
      options_.resume_command));
  if (signal == SIGINT) return kExitInterrupted;
  return signal == SIGTERM ? kExitTerminated : kExitDone;
}

absl::Status Trainer::Finish() {
  CUBIT_RETURN_IF_ERROR(CompareReplicas());
  CUBIT_RETURN_IF_ERROR(Save());
  CUBIT_RETURN_IF_ERROR(Validate());
  CUBIT_RETURN_IF_ERROR(EvaluateTasks());
  CUBIT_RETURN_IF_ERROR(Sample());
  LogInfo(absl::StrFormat(
      "done: %d steps, %d tokens. Everything is in %s: metrics.jsonl, log.txt, "
      "checkpoints/",
      step_, tokens_, directory_.path()));
  return absl::OkStatus();
}

}  // namespace cubit
