// SPDX-License-Identifier: Apache-2.0
//
// //launch:evaluate: downstream tasks and validation loss of a checkpoint.

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

#include "data/reader_process.h"
#include "launch/checkpoint_model.h"
#include "launch/config_checks.h"
#include "launch/data_setup.h"
#include "launch/device_flag.h"
#include "launch/evaluation.h"
#include "launch/evaluation_report.h"
#include "launch/model_setup.h"
#include "launch/presets.h"
#include "launch/validation.h"
#include "parallel/checkpoint.h"
#include "runtime/command_line.h"
#include "runtime/device.h"
#include "runtime/file_system.h"
#include "runtime/logging.h"
#include "runtime/status_macros.h"

ABSL_FLAG(std::string, checkpoint, "",
          "run folder, its checkpoints folder, or one step of it");
ABSL_FLAG(std::string, preset, "",
          "instead of --checkpoint: a preset with random weights, to measure "
          "speed; needs --tokenizer");
ABSL_FLAG(std::string, tokenizer, "byte",
          "with --preset: byte, or the path of tokenizer files");
ABSL_FLAG(std::string, tasks, "",
          "tasks separated by commas, each NAME or NAME=FILE; all: every task "
          "that has a file in --task_data. arc_easy, arc_challenge, hellaswag, "
          "piqa, sciq, winogrande, social_iqa, race");
ABSL_FLAG(std::string, task_data, "",
          "folder with the files of tasks, such as hellaswag_validation.jsonl "
          "(plain, .xz, .gz or .zst)");
ABSL_FLAG(int64_t, limit, 0, "only the first items of each task; 0: all");
ABSL_FLAG(bool, validation, false,
          "also the validation loss on the run's own data");
ABSL_FLAG(std::string, data, "",
          "also the validation loss on this: a folder of token shards, or text "
          "files (separated by commas)");
ABSL_FLAG(int64_t, max_batches, 0,
          "of validation data, in micro-batches; 0: all of it");
ABSL_FLAG(int64_t, max_length, 0,
          "longest input in tokens, longer ones lose their beginning; 0: what "
          "the model was trained on");
ABSL_FLAG(int64_t, batch_tokens, 0,
          "tokens of a batch; more is faster while memory lasts; 0: 4096 on a "
          "CPU, 65536 on a GPU");
ABSL_FLAG(bool, follow, false,
          "score every checkpoint of the run as it appears (the newest, where "
          "several did), until the run's last step; --json then holds a line "
          "for each, --predictions the last one's items");
ABSL_FLAG(bool, dry_run, false,
          "print what each task would take, and score nothing");
ABSL_FLAG(std::string, json, "", "write the results to this file");
ABSL_FLAG(std::string, predictions, "",
          "write one JSON line for every item to this file");

namespace cubit {
namespace {

constexpr char kUsage[] =
    R"(Scores a model on downstream tasks, zero-shot, by the rules of
lm-evaluation-harness, and measures its validation loss.

Examples:
  bazel run //launch:evaluate -- --checkpoint=runs/a --tasks=all --task_data=eval
  bazel run //launch:evaluate -- --checkpoint=runs/a \
      --tasks=hellaswag,piqa=my/piqa.jsonl --task_data=eval --limit=300 \
      --json=results.json --predictions=items.jsonl
  bazel run //launch:evaluate -- --checkpoint=runs/a --validation
  bazel run //launch:evaluate -- --checkpoint=runs/a --follow --tasks=all \
      --task_data=eval --json=runs/a/evaluation.jsonl
  bazel run //launch:evaluate -- --preset=cubit_125m_table \
      --tokenizer=gpt2-bpe --tasks=hellaswag --task_data=eval

docs/evaluation.md says what each task's file holds and how it is scored.
)";

// Between two looks at a run's folder.
constexpr absl::Duration kFollowPause = absl::Seconds(1);

constexpr int64_t kCpuBatchTokens = 4096;
constexpr int64_t kGpuBatchTokens = 65536;

absl::Status CheckFlags() {
  const auto not_negative = [](absl::string_view flag, int64_t value) {
    if (value >= 0) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("--", flag, " is ", value, "; give 0 or more"));
  };
  CUBIT_RETURN_IF_ERROR(not_negative("limit", absl::GetFlag(FLAGS_limit)));
  CUBIT_RETURN_IF_ERROR(
      not_negative("max_batches", absl::GetFlag(FLAGS_max_batches)));
  CUBIT_RETURN_IF_ERROR(
      not_negative("max_length", absl::GetFlag(FLAGS_max_length)));
  CUBIT_RETURN_IF_ERROR(
      not_negative("batch_tokens", absl::GetFlag(FLAGS_batch_tokens)));
  if (absl::GetFlag(FLAGS_checkpoint).empty() ==
      absl::GetFlag(FLAGS_preset).empty()) {
    return absl::InvalidArgumentError(
        "give either --checkpoint, a run's folder, or --preset for random "
        "weights");
  }
  if (absl::GetFlag(FLAGS_follow) &&
      (!absl::GetFlag(FLAGS_preset).empty() || absl::GetFlag(FLAGS_dry_run))) {
    return absl::InvalidArgumentError(
        "--follow waits for the checkpoints of a run; it goes with "
        "--checkpoint, and not with --preset or --dry_run");
  }
  if (absl::GetFlag(FLAGS_tasks).empty() && !absl::GetFlag(FLAGS_validation) &&
      absl::GetFlag(FLAGS_data).empty()) {
    return absl::InvalidArgumentError(
        "nothing to evaluate; give --tasks, for example --tasks=all "
        "--task_data=DIR, or --validation, or --data");
  }
  return absl::OkStatus();
}

absl::StatusOr<CheckpointModel> RandomModel(const std::string& preset) {
  CheckpointModel random;
  CUBIT_ASSIGN_OR_RETURN(random.config, LoadPreset(preset));
  CUBIT_RETURN_IF_ERROR(ValidateConfig(random.config));
  CUBIT_RETURN_IF_ERROR(SettlePrecision(DeviceKind(), &random.config));
  CUBIT_ASSIGN_OR_RETURN(random.tokenizer,
                         LoadTokenizer(absl::GetFlag(FLAGS_tokenizer)));
  CUBIT_ASSIGN_OR_RETURN(
      const ModelConfig config,
      MakeModelConfig(random.config, random.tokenizer->vocab_size()));
  CUBIT_ASSIGN_OR_RETURN(random.model, LanguageModel::Create(config));
  // A plan needs shapes alone.
  if (!absl::GetFlag(FLAGS_dry_run)) {
    CUBIT_RETURN_IF_ERROR(random.model->parameters().Allocate(
        /*with_gradients=*/false, config.activation_dtype));
    Stream stream;
    CUBIT_RETURN_IF_ERROR(
        random.model->parameters().Initialize(random.config.seed(), stream));
    stream.Synchronize();
  }
  random.info.folder = absl::StrCat("random weights of preset ", preset);
  LogWarning(absl::StrCat("evaluating ", random.info.folder));
  return random;
}

absl::StatusOr<std::vector<TaskSource>> Sources() {
  const std::string tasks = absl::GetFlag(FLAGS_tasks);
  const std::string folder = absl::GetFlag(FLAGS_task_data);
  if (tasks == kAllTasks) {
    if (folder.empty()) {
      return absl::InvalidArgumentError(
          "--tasks=all needs --task_data, the folder with the tasks' files");
    }
    return AllTaskSources(folder);
  }
  std::vector<TaskSource> sources;
  for (absl::string_view text :
       absl::StrSplit(tasks, ',', absl::SkipWhitespace())) {
    CUBIT_ASSIGN_OR_RETURN(TaskSource source, ParseTaskSource(text, folder));
    for (const TaskSource& other : sources) {
      if (other.task != source.task) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("--tasks names ", source.task->name, " twice"));
    }
    sources.push_back(std::move(source));
  }
  return sources;
}

int64_t BatchTokens() {
  const int64_t given = absl::GetFlag(FLAGS_batch_tokens);
  if (given > 0) return given;
  return DeviceKind() == "cpu" ? kCpuBatchTokens : kGpuBatchTokens;
}

absl::StatusOr<std::vector<PreparedTask>> PrepareTasks(
    const CheckpointModel& loaded) {
  CUBIT_ASSIGN_OR_RETURN(const std::vector<TaskSource> sources, Sources());
  int64_t max_length = absl::GetFlag(FLAGS_max_length);
  if (max_length == 0) max_length = loaded.config.model().seq_len();
  ItemSelection selection;
  selection.count = absl::GetFlag(FLAGS_limit);
  std::vector<PreparedTask> prepared;
  for (const TaskSource& source : sources) {
    CUBIT_ASSIGN_OR_RETURN(
        PreparedTask task,
        PrepareTask(source, selection, *loaded.tokenizer, max_length));
    prepared.push_back(std::move(task));
  }
  return prepared;
}

absl::StatusOr<ValidationResult> Validate(const CheckpointModel& loaded,
                                          SequenceScorer* scorer) {
  RunConfig config = loaded.config;
  config.mutable_evaluation()->set_max_batches(
      absl::GetFlag(FLAGS_max_batches));
  const std::string paths = absl::GetFlag(FLAGS_data);
  if (!paths.empty()) {
    config.mutable_data()->clear_path();
    for (absl::string_view path : absl::StrSplit(paths, ',')) {
      config.mutable_data()->add_path(std::string(path));
    }
  }
  CUBIT_ASSIGN_OR_RETURN(const RunData data, PrepareRunData(config));
  if (data.tokenizer->sha256() != loaded.tokenizer->sha256()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the data was tokenized with ", data.tokenizer->name(),
        " and the model was trained with ", loaded.tokenizer->name()));
  }
  CUBIT_ASSIGN_OR_RETURN(const std::unique_ptr<Validator> validator,
                         Validator::Open(data.folders, config));
  return validator->Run(
      [&](const Batch& batch) { return AllLosses(batch, config, scorer); });
}

void PrintPlan(const PreparedTask& task, const SequenceScorer& scorer) {
  const ScoringPlan plan(task.requests, BatchTokens());
  int64_t bytes = 0;
  for (size_t i = 0; i < plan.num_batches(); ++i) {
    bytes = std::max(bytes, scorer.BytesFor(plan.BatchSize(i), plan.SeqLen(i)));
  }
  const ScoringWork& work = plan.work();
  std::printf("%s\n",
              absl::StrFormat(
                  "%s: %d items, %d texts to score, %d sequences with %d "
                  "tokens (%d with padding), %d of them scored, %d batches, at "
                  "most %d bytes beside the weights",
                  task.task->name, task.items.size(), task.requests.size(),
                  work.sequences, work.tokens, work.padded_tokens, work.targets,
                  plan.num_batches(), bytes)
                  .c_str());
}

void LogTask(const ScoredTask& scored) {
  LogInfo(absl::StrFormat(
      "%s: %d items of %s, %d sequences with %d tokens (%d with padding), %d "
      "of them scored, in %.1f s (%.0f tokens/s)",
      scored.task->name, scored.result.items.size(), scored.file,
      scored.work.sequences, scored.work.tokens, scored.work.padded_tokens,
      scored.work.targets, scored.seconds,
      static_cast<double>(scored.work.tokens) / scored.seconds));
}

// Scores the model; one line for every item goes to `predictions`.
absl::StatusOr<EvaluationReport> EvaluateModel(
    const CheckpointModel& loaded, const std::vector<PreparedTask>& prepared,
    std::string* predictions) {
  EvaluationReport report;
  report.model = loaded.info.folder;
  report.step = loaded.info.step;
  report.tokens = loaded.info.tokens;
  LogInfo(
      absl::StrCat("evaluating ", report.model, " on ", QueryDevice().name));
  Stream stream;
  SequenceScorer scorer(loaded.model.get(), &stream);
  for (const PreparedTask& task : prepared) {
    CUBIT_ASSIGN_OR_RETURN(ScoredTask scored,
                           ScoreTask(task, BatchTokens(), &scorer));
    LogTask(scored);
    *predictions += PredictionLines(task, scored.result);
    report.tasks.push_back(std::move(scored));
  }
  if (absl::GetFlag(FLAGS_validation) || !absl::GetFlag(FLAGS_data).empty()) {
    CUBIT_ASSIGN_OR_RETURN(report.validation, Validate(loaded, &scorer));
  }
  std::fputs(ReportTable(report).c_str(), stdout);
  std::fflush(stdout);
  return report;
}

absl::Status Write(const std::string& path, const std::string& contents) {
  if (path.empty()) return absl::OkStatus();
  return WriteFileAtomically(FileSystem::Posix(), path, contents);
}

absl::Status EvaluateOnce() {
  const std::string preset = absl::GetFlag(FLAGS_preset);
  CUBIT_ASSIGN_OR_RETURN(
      const CheckpointModel loaded,
      preset.empty() ? LoadCheckpointModel(absl::GetFlag(FLAGS_checkpoint))
                     : RandomModel(preset));
  CUBIT_ASSIGN_OR_RETURN(const std::vector<PreparedTask> prepared,
                         PrepareTasks(loaded));
  if (absl::GetFlag(FLAGS_dry_run)) {
    Stream stream;
    const SequenceScorer scorer(loaded.model.get(), &stream);
    for (const PreparedTask& task : prepared) PrintPlan(task, scorer);
    return absl::OkStatus();
  }
  std::string predictions;
  CUBIT_ASSIGN_OR_RETURN(const EvaluationReport report,
                         EvaluateModel(loaded, prepared, &predictions));
  CUBIT_RETURN_IF_ERROR(Write(absl::GetFlag(FLAGS_json), ReportJson(report)));
  return Write(absl::GetFlag(FLAGS_predictions), predictions);
}

// The newest checkpoint in `folder` after `last_step`, once there is one.
absl::StatusOr<CheckpointModel> AwaitCheckpoint(const std::string& folder,
                                                int64_t last_step) {
  FileSystem& files = FileSystem::Posix();
  bool told = false;
  for (;;) {
    const std::vector<int64_t> steps = ListCheckpoints(files, folder);
    if (!steps.empty() && steps.back() > last_step) {
      const std::string step = CheckpointFolder(folder, steps.back());
      absl::StatusOr<CheckpointModel> loaded = LoadCheckpointModel(step);
      // The run keeps the newest ones only and may have removed this one.
      if (loaded.ok() || files.Exists(step)) return loaded;
    }
    if (!told) LogInfo(absl::StrCat("waiting for a checkpoint in ", folder));
    told = true;
    absl::SleepFor(kFollowPause);
  }
}

// Every checkpoint of a run that is still going on, up to its last step.
absl::Status Follow() {
  const std::string run = absl::GetFlag(FLAGS_checkpoint);
  if (!FileSystem::Posix().Exists(run)) {
    return absl::NotFoundError(absl::StrCat(
        run, ": does not exist; --follow takes the folder of a run"));
  }
  std::vector<PreparedTask> prepared;
  std::string lines;
  std::string predictions;
  for (int64_t step = -1;;) {
    CUBIT_ASSIGN_OR_RETURN(const CheckpointModel loaded,
                           AwaitCheckpoint(JoinPath(run, "checkpoints"), step));
    step = loaded.info.step;
    if (prepared.empty()) {
      CUBIT_ASSIGN_OR_RETURN(prepared, PrepareTasks(loaded));
    }
    CUBIT_ASSIGN_OR_RETURN(const EvaluationReport report,
                           EvaluateModel(loaded, prepared, &predictions));
    lines += ReportJsonLine(report);
    CUBIT_RETURN_IF_ERROR(Write(absl::GetFlag(FLAGS_json), lines));
    CUBIT_RETURN_IF_ERROR(Write(absl::GetFlag(FLAGS_predictions), predictions));
    predictions.clear();
    if (step >= loaded.config.schedule().total_steps()) {
      return absl::OkStatus();
    }
  }
}

absl::Status Evaluate() {
  CUBIT_RETURN_IF_ERROR(CheckDeviceFlag());
  CUBIT_RETURN_IF_ERROR(CheckFlags());
  return absl::GetFlag(FLAGS_follow) ? Follow() : EvaluateOnce();
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  if (const auto status = cubit::RunReaderProcess(argc, argv)) return *status;
  const std::vector<std::string> rest =
      cubit::ParseCommandLine(argc, argv, cubit::kUsage);
  if (!rest.empty()) {
    return cubit::ExitStatus(absl::InvalidArgumentError(absl::StrCat(
        "\"", rest[0], "\" is not a flag; --help lists all flags")));
  }
  return cubit::ExitStatus(cubit::Evaluate());
}
