// SPDX-License-Identifier: Apache-2.0

#include "tests/parallel/optimizer_testing.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

#include "ops/adamw_reference.h"
#include "runtime/check.h"
#include "runtime/communicator_threads.h"
#include "runtime/philox.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(60);
constexpr uint64_t kSeed = 17;
constexpr int64_t kHidden = 21;
constexpr int64_t kInner = 36;
constexpr int64_t kVocabulary = 44;

struct Declaration {
  std::string name;
  Shape shape;
  int tp_dim = -1;  // cut by tp along this dim; -1: whole on every tp rank
  bool decay = true;
  bool follow = false;
  bool at_ends = false;
  bool padded = false;
};

// Of stage `stage` of `stages`; with one stage all, with the embedding once.
std::vector<Declaration> Declarations(int stage, int stages) {
  const Declaration embedding = {
      "embedding", {kVocabulary, kHidden}, 0, true, false, true, false};
  std::vector<Declaration> list;
  if (stage == 0) list.push_back(embedding);
  for (int layer = 0; layer < 2; ++layer) {
    if (layer * stages / 2 != stage) continue;
    const std::string prefix = absl::StrCat("layers.", layer, ".");
    list.push_back({prefix + "norm", {kHidden}, -1, false});
    list.push_back({prefix + "q_proj", {kInner, kHidden}, 0, true});
    list.push_back({prefix + "k_proj", {12, kHidden}, 0, true, true});
    list.back().padded = true;
    list.push_back({prefix + "o_proj", {kHidden, kInner}, 1, true});
    list.push_back({prefix + "bias", {kHidden}, -1, false});
  }
  if (stage + 1 == stages) {
    list.push_back({"final_norm", {kHidden}, -1, false});
    if (stages > 1) list.push_back(embedding);
  }
  return list;
}

// One term of the gradient's sum. `end` and `tp` are 0 where the parameter is
// not summed over that axis.
Philox GradientTerm(const std::string& name, int64_t step, int dp_cp, int tp,
                    int end) {
  return Philox(kSeed, absl::StrCat("gradient ", name, " ", step, " ", dp_cp,
                                    " ", tp, " ", end));
}

// Calls visit(local index, global index).
template <typename Visitor>
void VisitElements(const ShardSpec& spec, Visitor visit) {
  int64_t inner = 1;
  for (int i = spec.dim + 1; i < spec.global_shape.rank(); ++i) {
    inner *= spec.global_shape[i];
  }
  const int64_t block = spec.count * inner;
  const int64_t count = spec.local_shape().num_elements();
  for (int64_t i = 0; i < count; ++i) {
    visit(static_cast<size_t>(i),
          static_cast<size_t>(i / block * spec.global_shape[spec.dim] * inner +
                              spec.begin * inner + i % block));
  }
}

}  // namespace

std::string MeshSizes::ToString() const {
  return absl::StrCat("Dp", dp, "Cp", cp, "Tp", tp, "Pp", pp);
}

std::vector<absl::Status> RunOnMesh(
    const MeshSizes& sizes,
    const std::function<absl::Status(MeshCommunicators&)>& body) {
  const int world = sizes.world();
  const auto mesh = DeviceMesh::Create(world, sizes.tp, sizes.cp, sizes.pp);
  CUBIT_CHECK(mesh.ok()) << mesh.status();
  auto worlds = MakeThreadCommunicators("world", world, kTimeout);
  auto controls = MakeThreadCommunicators("control", world, kTimeout);
  std::vector<absl::Status> statuses(static_cast<size_t>(world));
  std::vector<std::unique_ptr<MeshCommunicators>> meshes(
      static_cast<size_t>(world));
  std::vector<std::thread> threads;
  for (size_t i = 0; i < statuses.size(); ++i) {
    threads.emplace_back([&, i] {
      auto created = MeshCommunicators::Create(*mesh, std::move(worlds[i]),
                                               std::move(controls[i]));
      CUBIT_CHECK(created.ok()) << created.status();
      meshes[i] = std::move(*created);
      // So that no rank gives up while another is not yet part of the mesh;
      // whether one has given up by now is for `body` to see.
      Stream stream;
      meshes[i]->control().Barrier(stream).IgnoreError();
      statuses[i] = body(*meshes[i]);
      if (!statuses[i].ok()) meshes[i]->Abort(statuses[i]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return statuses;
}

AdamWOptions TestAdamW() {
  AdamWOptions options;
  options.grad_clip_norm = 2.0;
  return options;
}

RankModel::RankModel(MeshCommunicators* mesh,
                     const GradientReducerOptions& options, DType compute_dtype)
    : mesh_(mesh) {
  Declare();
  store_.AlignTo(BucketLayout::Alignment(mesh->dp_cp().size(), options));
  CUBIT_CHECK_OK(store_.Allocate(/*with_gradients=*/true, compute_dtype));
  CUBIT_CHECK_OK(store_.Initialize(kSeed, stream_));
  reducer_ = std::make_unique<GradientReducer>(options, &store_, mesh);
  CUBIT_CHECK_OK(reducer_->Allocate());
  optimizer_ = std::make_unique<ShardedAdamW>(TestAdamW(), &reducer_->layout(),
                                              &store_, mesh);
  CUBIT_CHECK_OK(optimizer_->Allocate());
}

void RankModel::Declare() {
  const MeshCoordinate& at = mesh_->coordinate();
  for (const Declaration& declaration :
       Declarations(at.pp, mesh_->size(MeshAxis::kPp))) {
    Parameter* parameter =
        Add(declaration.name, declaration.shape, declaration.tp_dim,
            declaration.decay, declaration.follow);
    parameter->sum_over_tp = declaration.tp_dim < 0;
    parameter->sum_over_ends = declaration.at_ends;
    if (declaration.padded) store_.Pad(kHidden);
  }
}

Parameter* RankModel::Add(const std::string& name, Shape shape, int tp_dim,
                          bool decay, bool follow) {
  ShardSpec spec = ShardSpec::Whole(shape);
  const int tp_size = mesh_->size(MeshAxis::kTp);
  if (tp_dim >= 0) {
    CUBIT_CHECK_EQ(shape[tp_dim] % tp_size, 0);
    spec.dim = tp_dim;
    spec.count = shape[tp_dim] / tp_size;
    spec.begin = mesh_->coordinate().tp * spec.count;
  }
  return store_.Add(name, spec, Initializer::Normal(0.1), decay, follow);
}

Parameter& RankModel::Find(const std::string& name) {
  for (Parameter& parameter : store_.parameters()) {
    if (parameter.name == name) return parameter;
  }
  CUBIT_CHECK(false) << name;
  return store_.parameters()[0];
}

void RankModel::FillGradients(int64_t step) {
  SetZero(store_.flat_gradients().raw(), store_.flat_gradients().size_bytes(),
          stream_);
  for (const Parameter& parameter : store_.parameters()) {
    FillGradient(parameter, step);
  }
}

void RankModel::FillGradient(const Parameter& parameter, int64_t step) {
  const MeshCoordinate& at = mesh_->coordinate();
  const Philox term =
      GradientTerm(parameter.name, step, mesh_->dp_cp().rank(),
                   parameter.sum_over_tp ? at.tp : 0,
                   parameter.sum_over_ends && at.pp > 0 ? 1 : 0);
  float* gradient = parameter.gradient.data<float>();
  VisitElements(parameter.shard, [&](size_t local, size_t global) {
    gradient[local] = static_cast<float>(term.Normal(global));
  });
}

void RankModel::ReportReady() {
  // Two parameters a call, as a block reports several at once.
  for (size_t last = num_parameters(); last > 0;) {
    const size_t first = last < 2 ? 0 : last - 2;
    reducer_->Ready(first, last, stream_);
    last = first;
  }
}

absl::Status RankModel::Step(int64_t step) {
  FillGradients(step);
  ReportReady();
  return SumAndUpdate(step);
}

absl::Status RankModel::StepOneByOne(int64_t step) {
  SetZero(store_.flat_gradients().raw(), store_.flat_gradients().size_bytes(),
          stream_);
  CommunicationLane& lane = mesh_->gradient_lane();
  for (size_t i = num_parameters(); i > 0; --i) {
    lane.Wait(lane.Post(stream_, [](Communicator&,
                                    Stream&) { return absl::OkStatus(); }),
              stream_);
    FillGradient(store_.parameters()[i - 1], step);
    reducer_->Ready(i - 1, i, stream_);
  }
  return SumAndUpdate(step);
}

absl::Status RankModel::SumAndUpdate(int64_t step) {
  CUBIT_RETURN_IF_ERROR(reducer_->Finish(stream_));
  CUBIT_RETURN_IF_ERROR(optimizer_->ComputeGradientNorm(stream_));
  optimizer_->Update(step, kTestLearningRate, stream_);
  return optimizer_->WaitForAllWeights(stream_);
}

double RankModel::SquaredNorm() {
  double squared_norm = 0;
  CopyToHost(&squared_norm, optimizer_->squared_norm().raw(),
             sizeof(squared_norm), stream_);
  stream_.Synchronize();
  return squared_norm;
}

bool RankModel::MergeValues(ModelValues* whole) {
  bool equal = true;
  for (const Parameter& parameter : store_.parameters()) {
    equal &= Merge(parameter.name, parameter.shard,
                   parameter.value.data<float>(), whole);
  }
  return equal;
}

uint32_t BitsOf(float x) {
  uint32_t bits = 0;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

bool Merge(const std::string& name, const ShardSpec& spec, const float* local,
           ModelValues* whole) {
  // What nobody has given yet.
  const float kNone = std::numeric_limits<float>::infinity();
  Values& values = (*whole)[name];
  values.resize(static_cast<size_t>(spec.global_shape.num_elements()), kNone);
  bool equal = true;
  VisitElements(spec, [&](size_t i, size_t global) {
    if (values[global] == kNone) values[global] = local[i];
    equal &= BitsOf(values[global]) == BitsOf(local[i]);
  });
  return equal;
}

// The terms of all ranks of a parameter's gradient.
void AddGradientTerms(const MeshSizes& sizes, const Declaration& declaration,
                      int64_t step, std::vector<double>* sum) {
  const int tp_terms = declaration.tp_dim < 0 ? sizes.tp : 1;
  const int end_terms = declaration.at_ends && sizes.pp > 1 ? 2 : 1;
  const int terms = sizes.dp * sizes.cp * tp_terms * end_terms;
  for (int term = 0; term < terms; ++term) {
    const Philox random =
        GradientTerm(declaration.name, step, term / (tp_terms * end_terms),
                     term % tp_terms, term / tp_terms % end_terms);
    for (size_t i = 0; i < sum->size(); ++i) {
      (*sum)[i] += static_cast<float>(random.Normal(i));
    }
  }
}

ExpectedRun RunReference(const MeshSizes& sizes, int64_t num_steps) {
  using Element = reference::AdamWElement<double>;
  std::map<std::string, std::vector<Element>> state;
  std::map<std::string, Declaration> declarations;
  for (const Declaration& declaration : Declarations(0, 1)) {
    const std::string& name = declaration.name;
    declarations[name] = declaration;
    const Philox random(kSeed, name);
    for (int64_t i = 0; i < declaration.shape.num_elements(); ++i) {
      const double weight =
          static_cast<float>(0.1 * random.Normal(static_cast<uint64_t>(i)));
      state[name].push_back({0, 0, weight});
    }
  }
  ExpectedRun run;
  const AdamWOptions options = TestAdamW();
  for (int64_t step = 1; step <= num_steps; ++step) {
    std::map<std::string, std::vector<double>> gradients;
    double squared_norm = 0;
    for (const auto& [name, declaration] : declarations) {
      std::vector<double>& sum = gradients[name];
      sum.resize(state[name].size());
      AddGradientTerms(sizes, declaration, step, &sum);
      for (double value : sum) squared_norm += value * value;
    }
    run.squared_norms.push_back(squared_norm);
    const double scale =
        std::min(1.0, options.grad_clip_norm / std::sqrt(squared_norm));
    AdamWStep update;
    update.learning_rate = static_cast<float>(kTestLearningRate);
    update.weight_decay = static_cast<float>(options.weight_decay);
    update.step = step;
    for (auto& [name, elements] : state) {
      for (size_t i = 0; i < elements.size(); ++i) {
        elements[i] = reference::AdamWUpdate<double>(
            update, declarations[name].decay, scale, gradients[name][i],
            elements[i]);
      }
    }
  }
  for (const auto& [name, elements] : state) {
    for (const Element& element : elements) {
      run.values[name].push_back(static_cast<float>(element.weight));
    }
  }
  return run;
}

}  // namespace cubit
