// SPDX-License-Identifier: Apache-2.0

#include "parallel/gradient_reducer.h"

#include <algorithm>

#include "ops/adamw.h"
#include "runtime/profile_range.h"
#include "runtime/rounding.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

bool SumsOverTp(const Parameter& parameter, const DeviceMesh& mesh) {
  return parameter.sum_over_tp && mesh.size(MeshAxis::kTp) > 1;
}

int64_t Total(const std::vector<FlatRange>& ranges) {
  int64_t total = 0;
  for (const FlatRange& range : ranges) total += range.size();
  return total;
}

}  // namespace

FlatRange RangeOf(const Parameter& parameter) {
  return {parameter.offset, parameter.offset + parameter.value.num_elements()};
}

std::vector<FlatRange> Intersect(const std::vector<FlatRange>& ranges,
                                 const FlatRange& range) {
  std::vector<FlatRange> common;
  for (const FlatRange& other : ranges) {
    const FlatRange both = {std::max(other.begin, range.begin),
                            std::min(other.end, range.end)};
    if (both.begin < both.end) common.push_back(both);
  }
  return common;
}

int64_t BucketLayout::Alignment(int group_size,
                                const GradientReducerOptions& options) {
  return options.shard ? group_size * kAdamWGroup : kAdamWGroup;
}

BucketLayout::BucketLayout(const ParameterStore& store, int group_size,
                           const GradientReducerOptions& options)
    : num_parts_(options.shard ? group_size : 1), size_(store.size()) {
  const int64_t alignment = Alignment(group_size, options);
  const int64_t wanted = options.bucket_bytes / SizeOf(DType::kFloat32);
  const int64_t bucket = std::max(alignment, wanted / alignment * alignment);
  int64_t begin = 0;
  for (const Parameter& parameter : store.parameters()) {
    if (!parameter.sum_over_ends) continue;
    const FlatRange range = RangeOf(parameter);
    const int64_t end = std::min(size_, RoundUp(range.end, alignment));
    Cut(begin, range.begin, bucket);
    Cut(range.begin, end, bucket);
    begin = end;
  }
  Cut(begin, size_, bucket);
  if (!sharded()) return;
  for (const FlatRange& range : buckets_) {
    CUBIT_CHECK_EQ(range.size() % alignment, 0)
        << "the parameter store is not aligned for ZeRO-1 over " << num_parts_
        << " ranks";
  }
}

void BucketLayout::Cut(int64_t begin, int64_t end, int64_t bucket_elements) {
  for (int64_t at = begin; at < end; at += bucket_elements) {
    buckets_.push_back({at, std::min(at + bucket_elements, end)});
  }
}

FlatRange BucketLayout::Part(size_t bucket, int rank) const {
  const FlatRange& range = buckets_[bucket];
  if (!sharded()) return range;
  CUBIT_CHECK_LT(rank, num_parts_);
  const int64_t size = range.size() / num_parts_;
  return {range.begin + rank * size, range.begin + (rank + 1) * size};
}

std::vector<FlatRange> BucketLayout::LocalRanges(int rank) const {
  if (!sharded()) return {{0, size_}};
  std::vector<FlatRange> ranges;
  for (size_t i = 0; i < buckets_.size(); ++i) ranges.push_back(Part(i, rank));
  return ranges;
}

FlatRange BucketLayout::BucketsOf(const FlatRange& range) const {
  if (range.size() <= 0) return {0, 0};
  const auto ends_before = [](const FlatRange& bucket, int64_t element) {
    return bucket.end <= element;
  };
  const auto first = std::lower_bound(buckets_.begin(), buckets_.end(),
                                      range.begin, ends_before);
  const auto last =
      std::lower_bound(first, buckets_.end(), range.end - 1, ends_before);
  return {first - buckets_.begin(), last - buckets_.begin() + 1};
}

GradientReducer::GradientReducer(const GradientReducerOptions& options,
                                 ParameterStore* store, MeshCommunicators* mesh)
    : store_(store),
      mesh_(mesh),
      layout_(*store, mesh->dp_cp().size(), options),
      parameters_in_(layout_.buckets().size()),
      ready_(store->parameters().size()) {
  const std::vector<FlatRange> local =
      layout_.LocalRanges(mesh->dp_cp().rank());
  const auto add = [&local](const FlatRange& range,
                            std::vector<FlatRange>* pieces) {
    const std::vector<FlatRange> common = Intersect(local, range);
    pieces->insert(pieces->end(), common.begin(), common.end());
  };
  for (const Parameter& parameter : store->parameters()) {
    const FlatRange range = RangeOf(parameter);
    const FlatRange buckets = layout_.BucketsOf(range);
    for (int64_t i = buckets.begin; i < buckets.end; ++i) {
      ++parameters_in_[static_cast<size_t>(i)];
    }
    if (SumsOverTp(parameter, mesh->mesh())) add(range, &tp_pieces_);
    if (parameter.sum_over_ends && mesh->embedding() != nullptr) {
      add(range, &ends_pieces_);
    }
  }
  missing_ = parameters_in_;
}

int64_t GradientReducer::WorkspaceBytes(const ParameterStore& store,
                                        const DeviceMesh& mesh) {
  int64_t elements = 0;
  for (const Parameter& parameter : store.parameters()) {
    if (SumsOverTp(parameter, mesh)) elements += RangeOf(parameter).size();
  }
  return elements * SizeOf(DType::kFloat32);
}

absl::Status GradientReducer::Allocate() {
  const int64_t bytes = WorkspaceBytes(*store_, mesh_->mesh());
  if (bytes == 0) return absl::OkStatus();
  CUBIT_ASSIGN_OR_RETURN(packed_,
                         Buffer::Allocate(bytes, MemoryCategory::kWorkspace));
  return absl::OkStatus();
}

void GradientReducer::Ready(size_t first, size_t last, Stream& stream) {
  CUBIT_CHECK_LE(last, ready_.size());
  for (size_t i = last; i > first; --i) {
    const Parameter& parameter = store_->parameters()[i - 1];
    CUBIT_CHECK(!ready_[i - 1]) << parameter.name << " is ready twice";
    ready_[i - 1] = true;
    ++num_ready_;
    const FlatRange buckets = layout_.BucketsOf(RangeOf(parameter));
    for (int64_t b = buckets.end; b > buckets.begin; --b) {
      const size_t bucket = static_cast<size_t>(b - 1);
      if (--missing_[bucket] == 0) Start(bucket, stream);
    }
  }
}

void GradientReducer::Start(size_t bucket, Stream& stream) {
  if (!reduces()) return;
  const FlatRange& range = layout_.buckets()[bucket];
  const Tensor all = store_->flat_gradients().Slice(range.begin, range.size());
  const FlatRange part = layout_.Part(bucket, mesh_->dp_cp().rank());
  const Tensor mine = store_->flat_gradients().Slice(part.begin, part.size());
  const bool sharded = layout_.sharded();
  last_ticket_ = mesh_->gradient_lane().Post(
      stream, [=](Communicator& group, Stream& lane) {
        return sharded ? group.ReduceScatter(all, mine, ReduceOp::kSum, lane)
                       : group.AllReduce(all, all, ReduceOp::kSum, lane);
      });
}

absl::Status GradientReducer::Finish(Stream& stream) {
  CUBIT_CHECK_EQ(num_ready_, ready_.size());
  missing_ = parameters_in_;
  ready_.assign(ready_.size(), false);
  num_ready_ = 0;
  const ProfileRange range("sum of gradients", stream);
  if (reduces()) {
    CommunicationLane& lane = mesh_->gradient_lane();
    if (last_ticket_ >= 0) lane.Wait(last_ticket_, stream);
    CUBIT_RETURN_IF_ERROR(lane.status());
  }
  CUBIT_RETURN_IF_ERROR(SumOverTp(stream));
  return SumOverEnds(stream);
}

// Many small pieces: one sum of all.
absl::Status GradientReducer::SumOverTp(Stream& stream) {
  const int64_t total = Total(tp_pieces_);
  if (total == 0) return absl::OkStatus();  // on every tp rank alike
  CUBIT_CHECK(packed_.data() != nullptr) << "Allocate comes first";
  const Tensor packed(packed_.data(), DType::kFloat32, {total});
  const auto copy = [&](bool pack) {
    int64_t at = 0;
    for (const FlatRange& piece : tp_pieces_) {
      const Tensor there =
          store_->flat_gradients().Slice(piece.begin, piece.size());
      const Tensor here = packed.Slice(at, piece.size());
      at += piece.size();
      CopyOnDevice((pack ? here : there).raw(), (pack ? there : here).raw(),
                   here.size_bytes(), stream);
    }
  };
  copy(/*pack=*/true);
  CUBIT_RETURN_IF_ERROR(mesh_->axis(MeshAxis::kTp)
                            .AllReduce(packed, packed, ReduceOp::kSum, stream));
  copy(/*pack=*/false);
  return absl::OkStatus();
}

// A few large pieces: summed where they lie.
absl::Status GradientReducer::SumOverEnds(Stream& stream) {
  for (const FlatRange& piece : ends_pieces_) {
    const Tensor sum =
        store_->flat_gradients().Slice(piece.begin, piece.size());
    CUBIT_RETURN_IF_ERROR(
        mesh_->embedding()->AllReduce(sum, sum, ReduceOp::kSum, stream));
  }
  return absl::OkStatus();
}

}  // namespace cubit
