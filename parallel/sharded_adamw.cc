// SPDX-License-Identifier: Apache-2.0

#include "parallel/sharded_adamw.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

#include "ops/adamw.h"
#include "ops/elementwise.h"
#include "parallel/replicas.h"
#include "runtime/profile_range.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr int64_t kAlignedBytes = 256;

int64_t AlignedBytes(int64_t bytes) {
  return (bytes + kAlignedBytes - 1) / kAlignedBytes * kAlignedBytes;
}

int64_t NumGroups(int64_t elements) {
  return (elements + kAdamWGroup - 1) / kAdamWGroup;
}

// Most ranges of a rank's parts that count in the norm: a parameter that does
// not cuts one in two.
int64_t MaxPartialSums(const ParameterStore& store,
                       const BucketLayout& layout) {
  size_t count = layout.sharded() ? layout.buckets().size() : 1;
  for (const Parameter& parameter : store.parameters()) {
    // By what the parameter is, not by the mesh: the same on every rank.
    count += parameter.sum_over_tp || parameter.sum_over_ends ||
             parameter.shard.is_whole();
  }
  return static_cast<int64_t>(count);
}

// One flag for each group of the flat buffers. Parameters begin where a group
// does, but for those that follow another; these must agree with it about
// decay.
std::vector<uint8_t> DecayFlags(const ParameterStore& store) {
  std::vector<uint8_t> flags(static_cast<size_t>(NumGroups(store.size())));
  int64_t end = 0;  // groups that a parameter before this one is in
  for (const Parameter& parameter : store.parameters()) {
    const FlatRange range = RangeOf(parameter);
    const int64_t first = range.begin / kAdamWGroup;
    const uint8_t flag = parameter.decay ? 1 : 0;
    if (first < end && range.size() > 0) {
      CUBIT_CHECK_EQ(static_cast<int>(flags[static_cast<size_t>(first)]),
                     static_cast<int>(flag))
          << parameter.name << " shares a group with another rule of decay";
    }
    end = NumGroups(range.end);
    std::fill(flags.begin() + first, flags.begin() + end, flag);
  }
  return flags;
}

// `range` without the parameters that another rank counts.
void AppendCounted(const FlatRange& range, const ParameterStore& store,
                   const MeshCommunicators& mesh,
                   std::vector<FlatRange>* counted) {
  int64_t begin = range.begin;
  for (const Parameter& parameter : store.parameters()) {
    if (IsPrimary(parameter, mesh)) continue;
    for (const FlatRange& hole : Intersect({range}, RangeOf(parameter))) {
      if (hole.begin > begin) counted->push_back({begin, hole.begin});
      begin = hole.end;
    }
  }
  if (range.end > begin) counted->push_back({begin, range.end});
}

Tensor SliceOf(const Tensor& flat, const FlatRange& range) {
  return flat.Slice(range.begin, range.size());
}

}  // namespace

ShardedAdamW::ShardedAdamW(const AdamWOptions& options,
                           const BucketLayout* layout, ParameterStore* store,
                           MeshCommunicators* mesh)
    : options_(options), layout_(layout), store_(store), mesh_(mesh) {
  const int rank = mesh->dp_cp().rank();
  int64_t local = 0;
  for (const FlatRange& range : layout->LocalRanges(rank)) {
    parts_.push_back({range, local});
    local += range.size();
    // Without sharding all ranks of the group have equal sums.
    if (layout->sharded() || rank == 0) {
      AppendCounted(range, *store, *mesh, &counted_);
    }
  }
  CUBIT_CHECK_EQ(local, layout->num_local());
}

int64_t ShardedAdamW::StateBytes(const ParameterStore& store,
                                 const BucketLayout& layout) {
  const int64_t local = layout.num_local();
  return 2 * kAlignedBytes +
         AlignedBytes(MaxPartialSums(store, layout) * SizeOf(DType::kFloat64)) +
         2 * AlignedBytes(local * SizeOf(DType::kFloat32)) + NumGroups(local);
}

absl::Status ShardedAdamW::Allocate() {
  CUBIT_ASSIGN_OR_RETURN(buffer_,
                         Buffer::Allocate(StateBytes(*store_, *layout_),
                                          MemoryCategory::kOptimizer));
  char* at = static_cast<char*>(buffer_.data());
  const auto take = [&at](DType dtype, int64_t count) {
    const Tensor tensor(at, dtype, {count});
    at += AlignedBytes(tensor.size_bytes());
    return tensor;
  };
  squared_norm_ = take(DType::kFloat64, 1);
  grad_scale_ = take(DType::kFloat32, 1);
  partial_sums_ = take(DType::kFloat64, MaxPartialSums(*store_, *layout_));
  CUBIT_CHECK_LE(static_cast<int64_t>(counted_.size()), partial_sums_.dim(0));
  m_ = take(DType::kFloat32, layout_->num_local());
  v_ = take(DType::kFloat32, layout_->num_local());
  decay_ = take(DType::kUInt8, NumGroups(layout_->num_local()));
  const std::vector<uint8_t> all = DecayFlags(*store_);
  std::vector<uint8_t> mine;
  for (const LocalPart& part : parts_) {
    mine.insert(mine.end(), all.begin() + part.range.begin / kAdamWGroup,
                all.begin() + NumGroups(part.range.end));
  }
  CUBIT_CHECK_EQ(static_cast<int64_t>(mine.size()), decay_.dim(0));
  Stream stream;
  CopyToDevice(decay_.raw(), mine.data(), decay_.size_bytes(), stream);
  stream.Synchronize();
  return absl::OkStatus();
}

absl::Status ShardedAdamW::ComputeGradientNorm(Stream& stream) {
  const ProfileRange range("gradient norm", stream);
  const Tensor gradients = store_->flat_gradients();
  if (counted_.size() == 1) {
    SumOfSquares(SliceOf(gradients, counted_[0]), squared_norm_, stream);
  } else {
    for (size_t i = 0; i < counted_.size(); ++i) {
      SumOfSquares(SliceOf(gradients, counted_[i]),
                   partial_sums_.Slice(static_cast<int64_t>(i), 1), stream);
    }
    SumInOrder(partial_sums_.Slice(0, static_cast<int64_t>(counted_.size())),
               squared_norm_, stream);
  }
  if (mesh_->world().size() > 1) {
    CUBIT_RETURN_IF_ERROR(mesh_->world().AllReduce(squared_norm_, squared_norm_,
                                                   ReduceOp::kSum, stream));
  }
  ClipScale(squared_norm_, options_.grad_clip_norm, grad_scale_, stream);
  return absl::OkStatus();
}

void ShardedAdamW::Update(int64_t step, double learning_rate, Stream& stream) {
  const ProfileRange range("optimizer", stream);
  for (size_t i = 0; i < parts_.size(); ++i) {
    UpdatePart(parts_[i], step, learning_rate, stream);
    if (layout_->sharded()) GatherWeights(i, stream);
  }
}

void ShardedAdamW::UpdatePart(const LocalPart& part, int64_t step,
                              double learning_rate, Stream& stream) {
  AdamWStep update;
  update.learning_rate = static_cast<float>(learning_rate);
  update.beta1 = static_cast<float>(options_.beta1);
  update.beta2 = static_cast<float>(options_.beta2);
  update.epsilon = static_cast<float>(options_.epsilon);
  update.weight_decay = static_cast<float>(options_.weight_decay);
  update.step = step;
  // Where weights are gathered, the copy is made of what arrives.
  const bool copies = !store_->flat_compute().empty() && !layout_->sharded();
  const int64_t size = part.range.size();
  AdamWUpdate(update, decay_.Slice(part.local / kAdamWGroup, NumGroups(size)),
              grad_scale_, SliceOf(store_->flat_gradients(), part.range),
              m_.Slice(part.local, size), v_.Slice(part.local, size),
              SliceOf(store_->flat_values(), part.range),
              copies ? SliceOf(store_->flat_compute(), part.range) : Tensor(),
              stream);
}

void ShardedAdamW::GatherWeights(size_t bucket, Stream& stream) {
  const FlatRange& range = layout_->buckets()[bucket];
  const Tensor all = SliceOf(store_->flat_values(), range);
  const Tensor mine = SliceOf(store_->flat_values(), parts_[bucket].range);
  const Tensor flat_compute = store_->flat_compute();
  const Tensor compute =
      flat_compute.empty() ? Tensor() : SliceOf(flat_compute, range);
  gathers_.resize(layout_->buckets().size());
  gathers_[bucket] = mesh_->gradient_lane().Post(
      stream, [=](Communicator& group, Stream& lane) {
        absl::Status status = group.AllGather(mine, all, lane);
        if (status.ok() && !compute.empty()) Convert(all, compute, lane);
        return status;
      });
}

void ShardedAdamW::WaitForWeights(size_t first, size_t last, Stream& stream) {
  CUBIT_CHECK_LE(last, store_->parameters().size());
  if (gathers_.empty()) return;
  // In the order of the buckets: the last one is there when all before it are.
  for (size_t i = last; i > first; --i) {
    const FlatRange range = RangeOf(store_->parameters()[i - 1]);
    if (range.size() == 0) continue;
    const int64_t bucket = layout_->BucketsOf(range).end - 1;
    const ProfileRange profile_range("weights", stream);
    mesh_->gradient_lane().Wait(gathers_[static_cast<size_t>(bucket)], stream);
    return;
  }
}

absl::Status ShardedAdamW::WaitForAllWeights(Stream& stream) {
  if (gathers_.empty()) return absl::OkStatus();
  mesh_->gradient_lane().Wait(gathers_.back(), stream);
  return mesh_->gradient_lane().status();
}

// Bucket by bucket into the place of the gradients.
absl::Status ShardedAdamW::GatherMoment(const Tensor& moment,
                                        std::vector<float>* whole,
                                        Stream& stream) {
  Communicator& group = mesh_->dp_cp();
  if (group.rank() == 0) whole->resize(static_cast<size_t>(store_->size()));
  for (size_t i = 0; i < parts_.size(); ++i) {
    const FlatRange& range = layout_->buckets()[i];
    const Tensor all = SliceOf(store_->flat_gradients(), range);
    CUBIT_RETURN_IF_ERROR(group.AllGather(
        moment.Slice(parts_[i].local, parts_[i].range.size()), all, stream));
    if (group.rank() != 0) continue;
    CopyToHost(whole->data() + range.begin, all.raw(), all.size_bytes(),
               stream);
  }
  stream.Synchronize();
  return absl::OkStatus();
}

absl::StatusOr<AdamWState> ShardedAdamW::GatherState(Stream& stream) {
  AdamWState state;
  const bool sharded = layout_->sharded();
  if (sharded) {
    CUBIT_RETURN_IF_ERROR(WaitForAllWeights(stream));  // one lane at a time
    CUBIT_RETURN_IF_ERROR(GatherMoment(m_, &state.m, stream));
    CUBIT_RETURN_IF_ERROR(GatherMoment(v_, &state.v, stream));
  }
  const Shape flat{store_->size()};
  const Tensor m = sharded ? Tensor(state.m.data(), DType::kFloat32, flat) : m_;
  const Tensor v = sharded ? Tensor(state.v.data(), DType::kFloat32, flat) : v_;
  if (mesh_->dp_cp().rank() != 0) return state;
  for (const Parameter& parameter : store_->parameters()) {
    if (!SavesParameter(parameter, *mesh_)) continue;
    const auto add = [&](const char* prefix, const Tensor& moment) {
      CheckpointTensor tensor;
      tensor.name = absl::StrCat(prefix, parameter.name);
      tensor.spec = parameter.shard;
      tensor.data =
          SliceOf(moment, RangeOf(parameter)).Reshape(parameter.value.shape());
      tensor.on_host = sharded;
      state.tensors.push_back(std::move(tensor));
    };
    add("adamw.m.", m);
    add("adamw.v.", v);
  }
  return state;
}

std::vector<CheckpointPiece> ShardedAdamW::PiecesOf(const FlatRange& whole,
                                                    const Tensor& moment) {
  std::vector<CheckpointPiece> pieces;
  for (const LocalPart& part : parts_) {
    for (const FlatRange& range : Intersect({part.range}, whole)) {
      const int64_t local = part.local + range.begin - part.range.begin;
      pieces.push_back(
          {range.begin - whole.begin, moment.Slice(local, range.size())});
    }
  }
  return pieces;
}

std::vector<CheckpointTensor> ShardedAdamW::StateToLoad() {
  std::vector<CheckpointTensor> tensors;
  for (const Parameter& parameter : store_->parameters()) {
    const auto add = [&](const char* prefix, const Tensor& moment) {
      CheckpointTensor tensor;
      tensor.name = absl::StrCat(prefix, parameter.name);
      tensor.spec = parameter.shard;
      tensor.data =
          Tensor(nullptr, DType::kFloat32, parameter.shard.local_shape());
      tensor.pieces = PiecesOf(RangeOf(parameter), moment);
      if (!tensor.pieces.empty()) tensors.push_back(std::move(tensor));
    };
    add("adamw.m.", m_);
    add("adamw.v.", v_);
  }
  return tensors;
}

}  // namespace cubit
