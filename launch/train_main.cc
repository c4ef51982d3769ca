// SPDX-License-Identifier: Apache-2.0
//
// //launch:train: one pretraining run.

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

#include "data/reader_process.h"
#include "launch/bootstrap.h"
#include "launch/config.h"
#include "launch/config_checks.h"
#include "launch/data_setup.h"
#include "launch/device_flag.h"
#include "launch/gpu_probe.h"
#include "launch/machine_model.h"
#include "launch/presets.h"
#include "launch/trainer.h"
#include "launch/training_job.h"
#include "parallel/agreement.h"
#include "runtime/command_line.h"
#include "runtime/device.h"
#include "runtime/file_system.h"
#include "runtime/logging.h"
#include "runtime/status_macros.h"

ABSL_FLAG(std::string, preset, "",
          "a named configuration, such as tiny (the default) or "
          "cubit_125m_figure; --list_presets shows all");
ABSL_FLAG(std::string, config, "", "a cubit.RunConfig text proto file");
ABSL_FLAG(std::string, set, "",
          "PATH=VALUE, changes one key of the configuration, for example "
          "--set model.num_layers=2; may be given any number of times");
ABSL_FLAG(
    std::string, data, "",
    "folders of token shards, or text, jsonl or parquet files, folders or "
    "patterns (separated by commas; --set data.weight=3,1 mixes them); "
    "empty: the default corpus");
ABSL_FLAG(std::string, skip_data_range, "",
          "FIRST-LAST: the samples that these steps would have had are passed "
          "over (added to data.skip_steps), say to get past a loss spike");
ABSL_FLAG(std::string, output_dir, "",
          "where the run is written; empty: runs/NAME, the next free one");
ABSL_FLAG(int64_t, steps, 0,
          "schedule.total_steps; a longer warm-up is cut to a tenth of it");
ABSL_FLAG(int64_t, stop_at_step, 0,
          "save and exit 0 after this step, with the schedule unchanged");
ABSL_FLAG(bool, resume, false,
          "go on from the newest checkpoint of --output_dir");
ABSL_FLAG(std::string, init_from, "",
          "start from the weights of a Hugging Face folder that "
          "//launch:export wrote (with --config=FOLDER/config.textproto the "
          "model is the folder's)");
ABSL_FLAG(bool, allow_changes, false,
          "with --resume: accept another schedule, optimizer or data");
ABSL_FLAG(int32_t, metrics_port, 0,
          "serve the newest metrics to Prometheus at "
          "http://127.0.0.1:PORT/metrics; 0: do not");
ABSL_FLAG(bool, dry_run, false,
          "print parameters, memory and FLOPs per step, and train nothing");
ABSL_FLAG(std::string, device_memory, "",
          "with --dry_run: memory of the device that the run is planned for, "
          "such as 80GiB or 141GB; empty: that of the device here");
ABSL_FLAG(std::string, profile_steps, "",
          "A-B: log the device time of these steps by kind of work; where "
          "sequences run over ranks as a wavefront, also write and draw what "
          "each rank did when, into OUTPUT_DIR/profile");
ABSL_FLAG(double, operation_limit, 600,
          "seconds that a rank may wait in an operation of several ranks "
          "before the job ends with status 3");
ABSL_FLAG(double, silence_limit, 30,
          "seconds that a rank may be silent before the job ends with status "
          "3");
ABSL_FLAG(int32_t, nodes, 0, "parallel.nodes");
ABSL_FLAG(int32_t, gpus_per_node, 0, "parallel.gpus_per_node");
ABSL_FLAG(int32_t, tp, 0, "parallel.tp_size");
ABSL_FLAG(int32_t, pp, 0, "parallel.pp_size");
ABSL_FLAG(int32_t, cp, 0, "parallel.cp_size");
ABSL_FLAG(bool, list_presets, false, "print the names of all presets");

namespace cubit {
namespace {

constexpr char kDefaultPreset[] = "tiny";
constexpr char kUsage[] = R"(Trains a language model.

Examples:
  bazel run //launch:train
      tiny, on the default corpus, about two minutes on two processors
  bazel run //launch:train -- --preset=cubit_125m_figure --data=SHARDS
  bazel run //launch:train -- --data=notes/*.txt --set model.mixer=softmax
  bazel run //launch:train -- --config=run.textproto --output_dir=runs/a
  bazel run //launch:train -- --output_dir=runs/a --resume
  bazel run //launch:train -- --config=exported/config.textproto \
      --init_from=exported --data=notes/*.txt
  bazel run //launch:train -- --output_dir=runs/a --resume \
      --skip_data_range=1200-1250
  bazel run //launch:train -- --preset=cubit_1p3b --dry_run
  bazel run //launch:train -- --nodes=4
      four nodes: of a Slurm job, of --hostfile, or emulated on this machine

Exit status: 0 done; 1 a wrong request or bad input, nothing was changed;
2 the run failed and can be resumed; 3 it hung, likewise; 4 go on with other
hardware; 130, 143 interrupted after a checkpoint.
)";

// The configuration before flags, and the name that a run of it gets.
absl::StatusOr<RunConfig> BaseConfig(std::string* name) {
  const std::string preset = absl::GetFlag(FLAGS_preset);
  const std::string file = absl::GetFlag(FLAGS_config);
  const std::string output_dir = absl::GetFlag(FLAGS_output_dir);
  if (!preset.empty() && !file.empty()) {
    return absl::InvalidArgumentError(
        "--preset and --config are both given; choose one");
  }
  if (!file.empty()) {
    *name = file.substr(file.rfind('/') + 1);
    *name = name->substr(0, name->find('.'));
    return LoadConfigFile(file);
  }
  if (preset.empty() && absl::GetFlag(FLAGS_resume) && !output_dir.empty()) {
    return LoadConfigFile(JoinPath(output_dir, "config.textproto"));
  }
  *name = preset.empty() ? kDefaultPreset : preset;
  return LoadPreset(*name);
}

void ApplySizes(RunConfig* config) {
  RunConfig::Parallel* parallel = config->mutable_parallel();
  if (absl::GetFlag(FLAGS_nodes) != 0) {
    parallel->set_nodes(absl::GetFlag(FLAGS_nodes));
  }
  if (absl::GetFlag(FLAGS_gpus_per_node) != 0) {
    parallel->set_gpus_per_node(absl::GetFlag(FLAGS_gpus_per_node));
  }
  if (absl::GetFlag(FLAGS_tp) != 0) {
    parallel->set_tp_size(absl::GetFlag(FLAGS_tp));
  }
  if (absl::GetFlag(FLAGS_pp) != 0) {
    parallel->set_pp_size(absl::GetFlag(FLAGS_pp));
  }
  if (absl::GetFlag(FLAGS_cp) != 0) {
    parallel->set_cp_size(absl::GetFlag(FLAGS_cp));
  }
}

absl::Status ApplySteps(RunConfig* config) {
  const int64_t steps = absl::GetFlag(FLAGS_steps);
  if (steps < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--steps is ", steps, "; give 1 or more"));
  }
  if (steps == 0) return absl::OkStatus();
  if (SetTotalSteps(steps, config)) {
    LogInfo(absl::StrCat("warm-up is cut to ",
                         config->schedule().warmup_steps(),
                         " steps to fit --steps"));
  }
  return absl::OkStatus();
}

// Paths as they are from anywhere, so that a resumed run and a reader of the
// configuration find them.
std::string Absolute(const std::string& path) {
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(path, error);
  return error ? path : absolute.lexically_normal().string();
}

void MakePathsAbsolute(RunConfig* config) {
  RunConfig::Data* data = config->mutable_data();
  for (std::string& path : *data->mutable_path()) path = Absolute(path);
  if (!data->tokenizer().empty() && data->tokenizer() != "byte") {
    data->set_tokenizer(Absolute(data->tokenizer()));
  }
  RunConfig::Evaluation* evaluation = config->mutable_evaluation();
  if (!evaluation->task_data().empty()) {
    evaluation->set_task_data(Absolute(evaluation->task_data()));
  }
}

absl::StatusOr<RunConfig> ConfigFromFlags(
    const std::vector<std::string>& overrides, std::string* name) {
  CUBIT_ASSIGN_OR_RETURN(RunConfig config, BaseConfig(name));
  CUBIT_RETURN_IF_ERROR(ApplySteps(&config));
  for (const std::string& assignment : overrides) {
    CUBIT_RETURN_IF_ERROR(ApplyOverride(assignment, &config));
  }
  const std::string data = absl::GetFlag(FLAGS_data);
  if (!data.empty()) {
    config.mutable_data()->clear_path();
    for (absl::string_view path : absl::StrSplit(data, ',')) {
      config.mutable_data()->add_path(std::string(path));
    }
  }
  const std::string skipped = absl::GetFlag(FLAGS_skip_data_range);
  if (!skipped.empty()) config.mutable_data()->add_skip_steps(skipped);
  CUBIT_RETURN_IF_ERROR(SkippedPositions(config).status());
  MakePathsAbsolute(&config);
  ApplySizes(&config);
  CUBIT_RETURN_IF_ERROR(ValidateConfig(config));
  CUBIT_RETURN_IF_ERROR(SettlePrecision(DeviceKind(), &config));
  return config;
}

// runs/NAME, or runs/NAME-2, ... if that exists.
std::string FreeOutputDir(const std::string& name) {
  const std::string first = JoinPath("runs", name);
  std::string folder = first;
  for (int i = 2; FileSystem::Posix().Exists(folder); ++i) {
    folder = absl::StrCat(first, "-", i);
  }
  return folder;
}

// "80GiB", "141GB", "512MiB" or bytes.
absl::StatusOr<int64_t> ParseBytes(absl::string_view text) {
  constexpr std::pair<absl::string_view, double> kUnits[] = {
      {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"GB", 1e9}, {"MB", 1e6}, {"", 1}};
  for (const auto& [unit, factor] : kUnits) {
    if (!absl::EndsWith(text, unit)) continue;
    double number = 0;
    if (absl::SimpleAtod(text.substr(0, text.size() - unit.size()), &number) &&
        number > 0 && number * factor < 1e18) {
      return static_cast<int64_t>(number * factor);
    }
    break;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--device_memory is \"", text,
                   "\"; give a size such as 80GiB, 141GB or 512MiB"));
}

// What a dry run is for: a device here, or one that is elsewhere.
absl::StatusOr<PlannedDevice> DeviceOfDryRun() {
  PlannedDevice device;
  if (DeviceKind() == "cpu" || ProbeGpus().num_gpus > 0) {
    const DeviceInfo here = QueryDevice();
    device = {std::string(MachineNameOf(here)), here.memory_bytes};
  }
  const std::string asked = absl::GetFlag(FLAGS_device_memory);
  if (!asked.empty()) {
    CUBIT_ASSIGN_OR_RETURN(device.memory_bytes, ParseBytes(asked));
  }
  if (device.machine.empty()) {
    device.machine = std::string(MachineNameOfGpuWith(device.memory_bytes));
  }
  return device;
}

// "A-B" or "A" into the options; "" is none.
absl::Status ParseStepRange(const std::string& text, TrainerOptions* options) {
  if (text.empty()) return absl::OkStatus();
  const std::vector<std::string> ends = absl::StrSplit(text, '-');
  if (ends.size() <= 2 &&
      absl::SimpleAtoi(ends.front(), &options->profile_first) &&
      absl::SimpleAtoi(ends.back(), &options->profile_last) &&
      options->profile_first >= 1 &&
      options->profile_first <= options->profile_last) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--profile_steps is \"", text,
                   "\"; give two steps, first to last, such as 10-19"));
}

absl::StatusOr<TrainerOptions> OptionsFromFlags() {
  TrainerOptions options;
  options.resume = absl::GetFlag(FLAGS_resume);
  options.allow_changes = absl::GetFlag(FLAGS_allow_changes);
  options.stop_at_step = absl::GetFlag(FLAGS_stop_at_step);
  options.metrics_port = absl::GetFlag(FLAGS_metrics_port);
  options.init_from = absl::GetFlag(FLAGS_init_from);
  if (options.resume && !options.init_from.empty()) {
    return absl::InvalidArgumentError(
        "--resume and --init_from are both given: a run that goes on has its "
        "weights; leave one out");
  }
  if (options.stop_at_step < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--stop_at_step is ", options.stop_at_step,
                     "; give the step to stop after, or leave it out"));
  }
  CUBIT_RETURN_IF_ERROR(
      ParseStepRange(absl::GetFlag(FLAGS_profile_steps), &options));
  return options;
}

// Where the run goes; the same on every rank, so rank 0 finds a free folder.
absl::StatusOr<std::string> OutputDir(const std::string& name, bool resume,
                                      Communicator* control) {
  std::string output_dir = absl::GetFlag(FLAGS_output_dir);
  if (!output_dir.empty()) return Absolute(output_dir);
  if (resume) {
    return absl::InvalidArgumentError(
        "--resume needs --output_dir: the folder of the run to go on with");
  }
  return BroadcastText(control, Absolute(FreeOutputDir(name)), /*root=*/0);
}

int RanksInAll(const RunConfig& config) {
  return config.parallel().nodes() *
         std::max(1, config.parallel().gpus_per_node());
}

absl::StatusOr<int> Train(const std::vector<std::string>& overrides) {
  std::string name;
  CUBIT_RETURN_IF_ERROR(CheckDeviceFlag());
  TrainingRequest request;
  if (absl::GetFlag(FLAGS_dry_run)) {
    CUBIT_ASSIGN_OR_RETURN(request.config, ConfigFromFlags(overrides, &name));
    CUBIT_ASSIGN_OR_RETURN(const PlannedDevice device, DeviceOfDryRun());
    CUBIT_RETURN_IF_ERROR(
        PrintDryRun(request.config, RanksInAll(request.config), device));
    return kExitDone;
  }
  CUBIT_ASSIGN_OR_RETURN(Bootstrap bootstrap, StartRanks());
  CUBIT_ASSIGN_OR_RETURN(request.config, ConfigFromFlags(overrides, &name));
  CUBIT_ASSIGN_OR_RETURN(request.options, OptionsFromFlags());
  request.operation_limit_seconds = absl::GetFlag(FLAGS_operation_limit);
  request.silence_limit_seconds = absl::GetFlag(FLAGS_silence_limit);
  const RunConfig::Parallel& parallel = request.config.parallel();
  CUBIT_RETURN_IF_ERROR(CheckAgreement(bootstrap, ResolvedText(request.config),
                                       parallel.nodes(),
                                       parallel.gpus_per_node()));
  CUBIT_ASSIGN_OR_RETURN(
      request.output_dir,
      OutputDir(name, request.options.resume, bootstrap.control.get()));
  request.options.resume_command = absl::StrCat(
      "./bazelw run //launch:train -- --output_dir=", request.output_dir,
      " --resume");
  AnnounceResumeCommand(bootstrap, request.options.resume_command);
  return RunTrainingJob(request, std::move(bootstrap));
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  if (const auto status = cubit::RunReaderProcess(argc, argv)) return *status;
  const std::vector<std::string> overrides =
      cubit::TakeRepeatedFlag("set", &argc, argv);
  const std::vector<std::string> rest =
      cubit::ParseCommandLine(argc, argv, cubit::kUsage);
  if (!rest.empty()) {
    return cubit::ExitStatus(absl::InvalidArgumentError(absl::StrCat(
        "\"", rest[0], "\" is not a flag; --help lists all flags")));
  }
  if (absl::GetFlag(FLAGS_list_presets)) {
    std::printf("%s\n", absl::StrJoin(cubit::ListPresets(), "\n").c_str());
    return cubit::kExitDone;
  }
  const absl::StatusOr<int> status = cubit::Train(overrides);
  return status.ok() ? *status : cubit::ExitStatus(status.status());
}
