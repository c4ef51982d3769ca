// SPDX-License-Identifier: Apache-2.0

#include "launch/plan_checks.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "launch/sequence_cost.h"

namespace cubit {
namespace {

using CpWord = RunConfig::CpMethod;
using ScheduleWord = RunConfig::PipelineSchedule;

std::vector<int64_t> Divisors(int64_t n) {
  std::vector<int64_t> divisors;
  for (int64_t d = 1; d * d <= n; ++d) {
    if (n % d != 0) continue;
    divisors.push_back(d);
    if (d * d != n) divisors.push_back(n / d);
  }
  std::sort(divisors.begin(), divisors.end());
  return divisors;
}

// "1, 2, 3, 4, 6, 12": sizes that divide n, up to twice `size`.
std::string DivisorList(int64_t n, int64_t size) {
  const int64_t most = 2 * size;
  std::vector<int64_t> divisors;
  for (const int64_t d : Divisors(n)) {
    if (d <= most) divisors.push_back(d);
  }
  return absl::StrJoin(divisors, ", ");
}

std::string MultiplesAround(int64_t n, int64_t step) {
  const int64_t below = n / step * step;
  if (below == 0) return absl::StrCat(step);
  return absl::StrCat(below, " or ", below + step);
}

// The faults of one request.
class Rules {
 public:
  Rules(const LayoutRequest& request, const ModelConfig& model)
      : r_(request), model_(model), dp_(request.dp_size()) {}

  std::vector<std::string> Check() {
    if (r_.tp_size < 1 || r_.cp_size < 1 || r_.pp_size < 1 ||
        r_.world_size < 1) {
      Fail("tp_size ", r_.tp_size, ", cp_size ", r_.cp_size, ", pp_size ",
           r_.pp_size, " on ", r_.world_size,
           " ranks: every size must be at least 1");
      return std::move(faults_);
    }
    CheckWorld();
    CheckTp();
    CheckCp();
    CheckBatch();
    CheckPp();
    return std::move(faults_);
  }

 private:
  template <typename... Parts>
  void Fail(const Parts&... parts) {
    faults_.push_back(absl::StrCat(parts...));
  }

  void CheckWorld() {
    const int64_t product = r_.tp_size * r_.cp_size * r_.pp_size;
    if (dp_ > 0) return;
    Fail(r_.world_size, " ranks are no multiple of tp ", r_.tp_size, " x cp ",
         r_.cp_size, " x pp ", r_.pp_size, " = ", product, "; ",
         MultiplesAround(r_.world_size, product), " ranks are");
  }

  void CheckTpDivides(absl::string_view key, int64_t value) {
    if (value % r_.tp_size == 0) return;
    Fail("parallel.tp_size ", r_.tp_size, " does not divide ", key, " ", value,
         "; these do: ", DivisorList(value, r_.tp_size));
  }

  void CheckTp() {
    CheckTpDivides("model.num_heads", model_.num_heads);
    CheckTpDivides("model.ffn_hidden_size", model_.ffn_hidden_size);
    CheckTpDivides("the rows of the embedding (model.vocab_size)",
                   model_.vocab_size);
    const int64_t rows = r_.micro_batch_size * model_.seq_len / r_.cp_size;
    if (rows % r_.tp_size == 0) return;
    Fail("parallel.tp_size ", r_.tp_size, " does not divide the ", rows,
         " rows of a micro-batch (batch.micro_batch_size ", r_.micro_batch_size,
         " x model.seq_len ", model_.seq_len, " / cp_size ", r_.cp_size,
         "), over which norms are spread; these do: ",
         DivisorList(rows, r_.tp_size));
  }

  void CheckCp() {
    if (r_.cp_size == 1) return;
    if (model_.seq_len % (2 * r_.cp_size) != 0) {
      Fail("parallel.cp_size ", r_.cp_size, " cuts a sequence into ",
           2 * r_.cp_size, " chunks, which do not divide model.seq_len ",
           model_.seq_len, "; nearest: model.seq_len=",
           MultiplesAround(model_.seq_len, 2 * r_.cp_size));
    }
    CheckCpMethod();
  }

  void CheckCpMethod() {
    const std::string form(ShardedFormOf(model_.mixer));
    const std::string word = CpWord::Word_Name(r_.cp_method);
    const bool own = word == "wavefront" || word == "ring";
    if (own && word != form) {
      Fail("parallel.cp_method ", word, " is not one of model.mixer ",
           model_.mixer, ", which has ", form.empty() ? "" : form + " and ",
           "ulysses");
      return;
    }
    const bool needs_ulysses = word == "ulysses" || form.empty();
    const int64_t heads = model_.num_heads / r_.tp_size;
    if (!needs_ulysses || model_.num_heads % r_.tp_size != 0) return;
    if (heads % r_.cp_size == 0) return;
    Fail("ulysses gives every rank whole heads, and the ", heads,
         " heads of a tp rank (model.num_heads ", model_.num_heads, " / tp ",
         r_.tp_size, ") are no multiple of parallel.cp_size ", r_.cp_size,
         "; these divide: ", DivisorList(heads, r_.cp_size));
  }

  void CheckBatch() {
    if (dp_ == 0) return;
    if (dp_ > r_.global_batch_size) {
      Fail("dp has ", dp_, " ranks, more than the ", r_.global_batch_size,
           " sequences of batch.global_batch_size: some would have none");
      return;
    }
    const int64_t piece = r_.micro_batch_size * dp_;
    if (r_.global_batch_size % piece == 0) return;
    Fail("batch.global_batch_size ", r_.global_batch_size,
         " is not divisible by batch.micro_batch_size ", r_.micro_batch_size,
         " x dp ", dp_, " = ", piece, "; nearest: batch.global_batch_size=",
         MultiplesAround(r_.global_batch_size, piece));
  }

  void CheckPp() {
    if (r_.pp_size == 1) return;
    const int64_t parts = r_.pp_size * r_.num_chunks();
    if (parts > model_.num_layers) {
      Fail("parallel.pp_size ", r_.pp_size, " x ", r_.num_chunks(),
           " chunks need a layer each, and model.num_layers is ",
           model_.num_layers);
    }
    const int64_t piece = r_.micro_batch_size * std::max<int64_t>(dp_, 1);
    if (dp_ == 0 || r_.global_batch_size % piece != 0) return;
    PipelineShape shape;
    shape.pp_size = static_cast<int>(r_.pp_size);
    shape.num_micro_batches = r_.global_batch_size / piece;
    shape.num_chunks = r_.num_chunks();
    const absl::Status status = CheckPipeline(r_.pipeline_schedule(), shape);
    if (!status.ok()) Fail("parallel.pipeline_schedule: ", status.message());
  }

  const LayoutRequest& r_;
  const ModelConfig& model_;
  const int64_t dp_;
  std::vector<std::string> faults_;
};

// Distance of two sizes: the factor between them, in octaves.
double Octaves(int64_t a, int64_t b) {
  return std::abs(std::log2(static_cast<double>(a) /
                            static_cast<double>(std::max<int64_t>(b, 1))));
}

// How far `candidate` is from `request`. The weights order the changes: the
// micro-batch is a matter of memory alone, the global batch changes the result.
double Distance(const LayoutRequest& request, const LayoutRequest& candidate) {
  double distance =
      Octaves(candidate.tp_size, request.tp_size) +
      Octaves(candidate.cp_size, request.cp_size) +
      Octaves(candidate.pp_size, request.pp_size) +
      0.5 * Octaves(candidate.micro_batch_size, request.micro_batch_size);
  if (candidate.cp_method != request.cp_method) distance += 0.75;
  if (candidate.schedule != request.schedule) distance += 0.75;
  if (candidate.global_batch_size != request.global_batch_size) {
    distance +=
        100 + Octaves(candidate.global_batch_size, request.global_batch_size);
  }
  return distance;
}

// Keeps the nearest candidate without faults.
class Search {
 public:
  Search(const LayoutRequest& request, const ModelConfig& model)
      : request_(request),
        model_(model),
        micro_batches_(Divisors(request.global_batch_size)) {}

  void Run() {
    const int64_t world = request_.world_size;
    // Most sizes end here; what the rules are says LayoutFaults.
    for (const int64_t tp : Divisors(world)) {
      if (model_.num_heads % tp != 0) continue;
      for (const int64_t cp : Divisors(world / tp)) {
        if (cp > 1 && model_.seq_len % (2 * cp) != 0) continue;
        for (const int64_t pp : Divisors(world / tp / cp)) {
          if (pp > model_.num_layers) continue;
          LayoutRequest candidate = request_;
          candidate.tp_size = tp;
          candidate.cp_size = cp;
          candidate.pp_size = pp;
          TryBatches(candidate);
        }
      }
    }
  }
  const LayoutRequest* nearest() const { return found_ ? &nearest_ : nullptr; }

 private:
  void TryBatches(LayoutRequest candidate) {
    for (const int64_t micro : micro_batches_) {
      candidate.micro_batch_size = micro;
      TryWords(candidate);
    }
    const int64_t piece =
        std::max<int64_t>(1, request_.micro_batch_size * candidate.dp_size());
    const int64_t below = request_.global_batch_size / piece * piece;
    candidate.micro_batch_size = request_.micro_batch_size;
    for (const int64_t global : {below, below + piece}) {
      if (global == 0) continue;
      candidate.global_batch_size = global;
      TryWords(candidate);
    }
  }
  void TryWords(LayoutRequest candidate) {
    for (const auto schedule : {request_.schedule, ScheduleWord::one_f_one_b}) {
      for (const auto method : {request_.cp_method, CpWord::auto_}) {
        candidate.schedule = schedule;
        candidate.cp_method = method;
        Try(candidate);
      }
    }
  }
  void Try(const LayoutRequest& candidate) {
    const double distance = Distance(request_, candidate);
    if (found_ && distance >= distance_) return;
    if (!LayoutFaults(candidate, model_).empty()) return;
    found_ = true;
    nearest_ = candidate;
    distance_ = distance;
  }

  const LayoutRequest& request_;
  const ModelConfig& model_;
  const std::vector<int64_t> micro_batches_;
  bool found_ = false;
  LayoutRequest nearest_;
  double distance_ = 0;
};

}  // namespace

int64_t LayoutRequest::dp_size() const {
  const int64_t product = tp_size * cp_size * pp_size;
  return product >= 1 && world_size % product == 0 ? world_size / product : 0;
}

int LayoutRequest::num_chunks() const {
  return pp_size > 1 && schedule == ScheduleWord::interleaved ? 2 : 1;
}

PipelineSchedule LayoutRequest::pipeline_schedule() const {
  if (pp_size == 1) return PipelineSchedule::k1F1B;
  switch (schedule) {
    case ScheduleWord::gpipe:
      return PipelineSchedule::kGPipe;
    case ScheduleWord::one_f_one_b:
      return PipelineSchedule::k1F1B;
    case ScheduleWord::interleaved:
      return PipelineSchedule::kInterleaved1F1B;
  }
  return PipelineSchedule::k1F1B;
}

LayoutRequest RequestOf(const RunConfig& config, int world_size,
                        absl::string_view device_kind) {
  const RunConfig::Parallel& parallel = config.parallel();
  LayoutRequest request;
  request.world_size = world_size;
  request.tp_size = parallel.tp_size();
  request.cp_size = parallel.cp_size();
  request.pp_size = parallel.pp_size();
  request.cp_method = parallel.cp_method();
  request.schedule = parallel.pipeline_schedule();
  request.micro_batch_size = config.batch().micro_batch_size();
  request.global_batch_size = config.batch().global_batch_size();
  request.gpu = device_kind == "cuda";
  return request;
}

std::vector<std::string> LayoutFaults(const LayoutRequest& request,
                                      const ModelConfig& model) {
  return Rules(request, model).Check();
}

std::string NearestLayout(const LayoutRequest& request,
                          const ModelConfig& model) {
  Search search(request, model);
  search.Run();
  const LayoutRequest* nearest = search.nearest();
  if (nearest == nullptr) return "";
  std::vector<std::string> flags;
  const auto add = [&flags](absl::string_view flag, auto before, auto after,
                            const std::string& text) {
    if (before != after) flags.push_back(absl::StrCat(flag, "=", text));
  };
  const auto size = [&add](absl::string_view flag, int64_t before,
                           int64_t after) {
    add(flag, before, after, absl::StrCat(after));
  };
  size("--tp", request.tp_size, nearest->tp_size);
  size("--cp", request.cp_size, nearest->cp_size);
  size("--pp", request.pp_size, nearest->pp_size);
  add("--set parallel.cp_method", request.cp_method, nearest->cp_method,
      "auto");
  add("--set parallel.pipeline_schedule", request.schedule, nearest->schedule,
      ScheduleWord::Word_Name(nearest->schedule));
  size("--set batch.micro_batch_size", request.micro_batch_size,
       nearest->micro_batch_size);
  size("--set batch.global_batch_size", request.global_batch_size,
       nearest->global_batch_size);
  return absl::StrJoin(flags, " ");
}

}  // namespace cubit
