// SPDX-License-Identifier: Apache-2.0
//
// The wavefront solve: the table of simulated efficiencies, and a run of ranks
// that are threads of this process beside the simulation of the same schedule
// with the run's own times.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "nlohmann/json.hpp"

#include "models/mixers/registry.h"
#include "models/mixers/sharded_solve.h"
#include "ops/rotary.h"
#include "parallel/wavefront_drawing.h"
#include "parallel/wavefront_runner.h"
#include "parallel/wavefront_schedule.h"
#include "parallel/wavefront_simulator.h"
#include "parallel/wavefront_trace.h"
#include "runtime/command_line.h"
#include "runtime/communication_lane.h"
#include "runtime/communicator_threads.h"
#include "runtime/device.h"
#include "runtime/memory.h"
#include "runtime/status_macros.h"
#include "runtime/thread_pool.h"
#include "tests/benchmarks/measure.h"
#include "tests/benchmarks/write_json.h"
#include "tests/testing/numerics.h"

ABSL_FLAG(std::string, mixer, "cubit", "cubit or deltaformer");
ABSL_FLAG(int32_t, cp_size, 2, "ranks, each a thread");
ABSL_FLAG(int64_t, batch, 1, "sequences");
ABSL_FLAG(int64_t, seq_len, 2048, "tokens, a multiple of 2 * cp_size");
ABSL_FLAG(int64_t, num_heads, 8, "heads");
ABSL_FLAG(int64_t, head_dim, 64, "head dim");
ABSL_FLAG(int32_t, repeats, 5, "runs, of which the shortest counts");
ABSL_FLAG(bool, table, true, "print the table of simulated efficiencies");
ABSL_FLAG(std::string, trace, "",
          "write the measured forward to this file, one JSON object a line");
ABSL_FLAG(std::string, svg, "", "draw the measured forward into this file");
ABSL_FLAG(std::string, schedule_svg, "",
          "draw a simulated forward, 4 ranks and 2 groups, into this file");
ABSL_FLAG(std::string, backward_schedule_svg, "", "the same of the backward");
ABSL_FLAG(std::string, json, "", "also write the results to this file");

namespace cubit {
namespace {

using testing::HostTensor;
using testing::RandomNormal;

constexpr char kUsage[] = R"(Simulates and measures the wavefront solve.

Each rank computes on one thread, so a run needs --cp_size free processors.
Times of a run are from its first action to its last; "simulated" plays the same
schedule with the mean time of each kind of action in that run and messages that
take none; "whole" is the same pass over the whole sequence on one thread.

Example:
  bazel run //tests/benchmarks:wavefront_cpu -- --svg=/tmp/wavefront.svg
)";

struct Passes {
  std::vector<WavefrontSpan> forward;
  std::vector<WavefrontSpan> backward;
};

// One rank's tensors; with one rank, the whole sequence by the plain mixer.
class Rank {
 public:
  Rank(const SequenceLayout& layout, int rank)
      : layout_(layout),
        rank_(rank),
        batch_(absl::GetFlag(FLAGS_batch)),
        heads_(absl::GetFlag(FLAGS_num_heads)),
        width_(heads_ * absl::GetFlag(FLAGS_head_dim)),
        arena_(Arena::Measuring()) {
    ModelConfig config;
    config.mixer = absl::GetFlag(FLAGS_mixer);
    config.num_heads = heads_;
    config.hidden_size = width_;
    auto mixer = MakeMixer(config);
    CUBIT_CHECK_OK(mixer);
    mixer_ = *std::move(mixer);
    const auto projections = mixer_->projections();
    const int64_t columns =
        ProjectionColumn(projections, projections.size(), heads_);
    const int64_t rows = layout.local_seq_len();
    table_ =
        HostTensor<float>({layout.seq_len(), absl::GetFlag(FLAGS_head_dim)});
    RotaryTable(10000, table_.view(), stream_);
    columns_ = RandomNormal(1, "columns", {batch_, rows, columns});
    d_out_ = RandomNormal(2, "d_out", {batch_, rows, width_});
    out_ = d_out_;
    d_columns_ = columns_;
    for (const MixerScalar& scalar : mixer_->scalars()) {
      scalars_.push_back(
          HostTensor<float>({heads_}, static_cast<float>(scalar.initial)));
      d_scalars_.push_back(HostTensor<float>({heads_}));
    }
    Layout();
    auto arena =
        Arena::Create(arena_.used_bytes(), MemoryCategory::kActivations);
    CUBIT_CHECK_OK(arena);
    arena_ = *std::move(arena);
    Layout();
  }

  std::vector<Tensor> d_scalars() {
    std::vector<Tensor> views;
    for (auto& scalar : d_scalars_) views.push_back(scalar.view());
    return views;
  }

  void Whole(bool forward) {
    HostTensor<float> columns = columns_;
    if (forward) {
      mixer_->Forward(Context(), columns.view(), saved_.get(), out_.view());
      return;
    }
    mixer_->Backward(Context(), columns.view(), *saved_, out_.view(),
                     d_out_.view(), scratch_.get(), d_columns_.view(),
                     d_scalars(), /*health=*/Tensor(),
                     /*d_column_sums=*/Tensor());
  }

  absl::Status Sharded(CommunicationLane* lane, WavefrontTrace* trace) {
    ParallelContext parallel;
    parallel.cp_lane = lane;
    WavefrontObserver observer;
    observer.trace = trace;
    parallel.observer = &observer;
    const SequenceShard sequence = {layout_, rank_, &parallel};
    HostTensor<float> columns = columns_;
    mixer_->sharded()->ForwardSharded(Context(), sequence, columns.view(),
                                      saved_.get(), scratch_.get(),
                                      out_.view());
    mixer_->sharded()->BackwardSharded(
        Context(), sequence, columns.view(), *saved_, out_.view(),
        d_out_.view(), scratch_.get(), d_columns_.view(), d_scalars());
    return parallel.status;
  }

  const ShardedSolveScratch& schedules() const {
    return static_cast<const ShardedSolveScratch&>(*scratch_);
  }

 private:
  void Layout() {
    const MixerShape shape = {batch_, layout_.local_seq_len(), heads_,
                              absl::GetFlag(FLAGS_head_dim)};
    if (layout_.cp_size() == 1) {
      saved_ = mixer_->AllocateSaved(shape, arena_);
      scratch_ = mixer_->AllocateScratch(shape, arena_);
      return;
    }
    saved_ = mixer_->sharded()->AllocateShardedSaved(shape, layout_, arena_);
    scratch_ =
        mixer_->sharded()->AllocateShardedScratch(shape, layout_, arena_);
  }

  MixerContext Context() {
    MixerContext context;
    for (auto& scalar : scalars_) context.scalars.push_back(scalar.view());
    context.rotary_table = table_.view();
    context.stream = &stream_;
    return context;
  }

  const SequenceLayout layout_;
  const int rank_;
  const int64_t batch_;
  const int64_t heads_;
  const int64_t width_;
  Stream stream_;
  Arena arena_;
  std::unique_ptr<TokenMixer> mixer_;
  std::unique_ptr<MixerSaved> saved_;
  std::unique_ptr<MixerScratch> scratch_;
  HostTensor<float> table_, columns_, d_out_, out_, d_columns_;
  std::vector<HostTensor<float>> scalars_, d_scalars_;
};

// Seconds from the first action to the last.
double Makespan(const std::vector<WavefrontSpan>& spans) {
  double start = spans[0].start;
  double end = spans[0].end;
  for (const WavefrontSpan& span : spans) {
    start = std::min(start, span.start);
    end = std::max(end, span.end);
  }
  return end - start;
}

double BusySeconds(const std::vector<WavefrontSpan>& spans) {
  double busy = 0;
  for (const WavefrontSpan& span : spans) busy += span.end - span.start;
  return busy;
}

// The mean time of every kind of action, on and off the diagonal.
WavefrontCosts MeasuredCosts(const std::vector<WavefrontSpan>& spans,
                             double unit) {
  std::array<std::array<double, 2>, kNumWavefrontActionKinds> sums = {};
  std::array<std::array<double, 2>, kNumWavefrontActionKinds> counts = {};
  for (const WavefrontSpan& span : spans) {
    const auto kind = static_cast<size_t>(span.action.kind);
    const size_t diagonal = span.action.diagonal() ? 1 : 0;
    sums[kind][diagonal] += (span.end - span.start) / unit;
    counts[kind][diagonal] += 1;
  }
  WavefrontCosts costs;
  costs.broadcast = 0;
  costs.reduce = 0;
  for (size_t kind = 0; kind < sums.size(); ++kind) {
    if (counts[kind][0] > 0) {
      costs.actions[kind].pair = sums[kind][0] / counts[kind][0];
    }
    if (counts[kind][1] > 0) {
      costs.actions[kind].diagonal = sums[kind][1] / counts[kind][1];
    }
  }
  return costs;
}

// The shortest of several runs, each pass by itself.
absl::StatusOr<Passes> RunRanks(std::vector<std::unique_ptr<Rank>>& ranks) {
  const int cp_size = static_cast<int>(ranks.size());
  auto communicators =
      MakeThreadCommunicators("cp", cp_size, absl::Seconds(60));
  std::vector<std::unique_ptr<CommunicationLane>> lanes;
  for (auto& communicator : communicators) {
    lanes.push_back(
        std::make_unique<CommunicationLane>(std::move(communicator)));
  }
  // Inside a pool's loop ops run on the calling thread alone.
  ThreadPool pool(cp_size);
  Passes best;
  for (int i = 0; i <= absl::GetFlag(FLAGS_repeats); ++i) {
    WavefrontTrace trace;
    std::vector<absl::Status> status(ranks.size());
    pool.Run(cp_size, [&](int64_t rank) {
      const auto index = static_cast<size_t>(rank);
      status[index] = ranks[index]->Sharded(lanes[index].get(), &trace);
    });
    for (const absl::Status& s : status) CUBIT_RETURN_IF_ERROR(s);
    if (i == 0) continue;  // first touch
    Passes passes;
    for (const WavefrontSpan& span : trace.Spans()) {
      (IsForward(span.action.kind) ? passes.forward : passes.backward)
          .push_back(span);
    }
    const auto keep = [](std::vector<WavefrontSpan>& now,
                         std::vector<WavefrontSpan>* shortest) {
      if (shortest->empty() || Makespan(now) < Makespan(*shortest)) {
        *shortest = std::move(now);
      }
    };
    keep(passes.forward, &best.forward);
    keep(passes.backward, &best.backward);
  }
  return best;
}

nlohmann::json Compare(const char* name, const WavefrontSchedule& schedule,
                       const std::vector<WavefrontSpan>& spans,
                       double whole_seconds) {
  // In microseconds: the simulation counts in whole thousandths of its unit.
  constexpr double kUnit = 1e-6;
  const WavefrontCosts costs = MeasuredCosts(spans, kUnit);
  const auto simulated = SimulateWavefront(schedule, costs);
  CUBIT_CHECK_OK(simulated);
  const double seconds = Makespan(spans);
  const double ranks = schedule.shape.cp_size;
  const double efficiency = BusySeconds(spans) / (ranks * seconds);
  std::printf(
      "%-8s measured %8.3f ms, busy %5.1f%%; simulated %8.3f ms, busy %5.1f%%; "
      "whole on one thread %8.3f ms, %4.2f times\n",
      name, seconds * 1e3, 100 * efficiency, simulated->makespan * kUnit * 1e3,
      100 * simulated->efficiency, whole_seconds * 1e3,
      whole_seconds / seconds);
  nlohmann::json actions = nlohmann::json::object();
  for (int k = 0; k < kNumWavefrontActionKinds; ++k) {
    const auto kind = static_cast<WavefrontActionKind>(k);
    const bool forward = schedule.pass == WavefrontPass::kForward;
    if (IsForward(kind) != forward) continue;
    const WavefrontCosts::Cost cost = costs.actions[static_cast<size_t>(k)];
    std::printf("  %-16s pair %8.1f us, diagonal %8.1f us\n",
                std::string(Name(kind)).c_str(), cost.pair, cost.diagonal);
    actions[std::string(Name(kind))] = {{"pair_us", cost.pair},
                                        {"diagonal_us", cost.diagonal}};
  }
  return {{"pass", name},
          {"seconds", seconds},
          {"efficiency", efficiency},
          {"simulated_seconds", simulated->makespan * kUnit},
          {"simulated_efficiency", simulated->efficiency},
          {"whole_seconds", whole_seconds},
          {"actions", actions}};
}

// Nothing if `path` is empty.
absl::Status DrawSchedule(WavefrontPass pass, const std::string& path) {
  if (path.empty()) return absl::OkStatus();
  const WavefrontSchedule schedule =
      MakeWavefront(pass, true, WavefrontShape::Zigzag(4, 2, 2), {});
  const auto run = SimulateWavefront(schedule, {});
  CUBIT_CHECK_OK(run);
  const std::string title = absl::StrFormat(
      "%s of 8 chunks in zigzag on 4 ranks, 2 groups: %.0f%% of the time busy",
      pass == WavefrontPass::kForward ? "Forward" : "Backward",
      100 * run->efficiency);
  return WriteTextFile(path, DrawWavefront(run->timeline, title, "updates"));
}

absl::Status WritePictures(const Passes& passes) {
  const std::string trace = absl::GetFlag(FLAGS_trace);
  if (!trace.empty()) {
    CUBIT_RETURN_IF_ERROR(WriteTextFile(trace, ToJsonLines(passes.forward)));
  }
  const std::string svg = absl::GetFlag(FLAGS_svg);
  if (svg.empty()) return absl::OkStatus();
  return WriteTextFile(svg,
                       DrawWavefront(passes.forward, "Measured forward", "s"));
}

absl::Status Measure() {
  const int cp_size = absl::GetFlag(FLAGS_cp_size);
  const int64_t seq_len = absl::GetFlag(FLAGS_seq_len);
  if (cp_size < 2 || seq_len % (2 * cp_size) != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "--seq_len=%d is no multiple of twice --cp_size=%d, at least 2",
        seq_len, cp_size));
  }
  std::array<double, 2> whole = {1e30, 1e30};
  ThreadPool pool(2);
  // Two tasks make the loop a loop, inside which ops run on one thread.
  pool.Run(2, [&](int64_t task) {
    if (task != 0) return;
    Rank rank(SequenceLayout(seq_len, 1), 0);
    for (const bool forward : {true, false}) {
      whole[forward ? 0 : 1] = BestSeconds(0.5, [&] { rank.Whole(forward); });
    }
  });
  std::vector<std::unique_ptr<Rank>> ranks;
  for (int r = 0; r < cp_size; ++r) {
    ranks.push_back(
        std::make_unique<Rank>(SequenceLayout(seq_len, cp_size), r));
  }
  CUBIT_ASSIGN_OR_RETURN(const Passes passes, RunRanks(ranks));
  const ShardedSolveScratch& schedules = ranks[0]->schedules();
  std::printf(
      "%s: B %d, T %d, H %d, K %d; %d ranks, %d groups of %d sequences x %d "
      "heads, %d chunks\n",
      absl::GetFlag(FLAGS_mixer).c_str(),
      static_cast<int>(absl::GetFlag(FLAGS_batch)), static_cast<int>(seq_len),
      static_cast<int>(absl::GetFlag(FLAGS_num_heads)),
      static_cast<int>(absl::GetFlag(FLAGS_head_dim)), cp_size,
      schedules.groups.count(), static_cast<int>(schedules.groups.sequences()),
      static_cast<int>(schedules.groups.heads()),
      schedules.forward.shape.num_chunks());
  const nlohmann::json results = {
      Compare("forward", schedules.forward, passes.forward, whole[0]),
      Compare("backward", schedules.backward, passes.backward, whole[1])};
  CUBIT_RETURN_IF_ERROR(WritePictures(passes));
  return WriteJson(absl::GetFlag(FLAGS_json),
                   {{"device", QueryDevice().name}, {"results", results}});
}

absl::Status Run() {
  if (absl::GetFlag(FLAGS_table)) {
    std::printf(
        "Percent of time busy, solve alone / with attention; a message "
        "takes a tenth of an update.\n%s\n",
        WavefrontTable({}).c_str());
  }
  CUBIT_RETURN_IF_ERROR(
      DrawSchedule(WavefrontPass::kForward, absl::GetFlag(FLAGS_schedule_svg)));
  CUBIT_RETURN_IF_ERROR(DrawSchedule(
      WavefrontPass::kBackward, absl::GetFlag(FLAGS_backward_schedule_svg)));
  return Measure();
}

int Main(int argc, char** argv) {
  ParseCommandLine(argc, argv, kUsage);
  return ExitStatus(Run());
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) { return cubit::Main(argc, argv); }
