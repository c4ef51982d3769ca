// SPDX-License-Identifier: Apache-2.0

#include "parallel/parameter.h"

#include <algorithm>
#include <array>
#include <utility>

#include "ops/elementwise.h"
#include "ops/zero_ranges.h"
#include "runtime/philox.h"
#include "runtime/rounding.h"
#include "runtime/status_macros.h"
#include "runtime/thread_pool.h"

namespace cubit {
namespace {

constexpr int64_t kAlignedElements = 64;  // 256 bytes of fp32
constexpr int64_t kInitGrain = 16384;
// Initial values that are on their way to the device at once: 16 MiB.
constexpr int64_t kStagedElements = int64_t{4} << 20;

struct Staging {
  PinnedBuffer host;
  Event sent;
};

// Elements of the local part that lie one after the other in the global tensor,
// again and again.
int64_t BlockOf(const ShardSpec& shard) {
  int64_t inner = 1;
  for (int i = shard.dim + 1; i < shard.global_shape.rank(); ++i) {
    inner *= shard.global_shape[i];
  }
  return shard.count * inner;
}

// Index in the global tensor of element `local` of the local part.
int64_t GlobalIndex(const ShardSpec& shard, int64_t block, int64_t local) {
  const int64_t inner = block / shard.count;
  const int64_t outer = local / block;
  return outer * shard.global_shape[shard.dim] * inner + shard.begin * inner +
         local % block;
}

// Elements [begin, end) of the local part.
void FillPiece(const Parameter& parameter, const Philox& random, int64_t begin,
               int64_t end, float* out) {
  const Initializer& init = parameter.init;
  const ShardSpec& shard = parameter.shard;
  if (init.stddev == 0) {
    std::fill_n(out, end - begin, static_cast<float>(init.mean));
    return;
  }
  const int64_t block = shard.is_whole() ? end : BlockOf(shard);
  while (begin < end) {
    const int64_t count = std::min(end - begin, block - begin % block);
    const int64_t index =
        shard.is_whole() ? begin : GlobalIndex(shard, block, begin);
    random.FillNormal(static_cast<uint64_t>(index), count, init.mean,
                      init.stddev, out);
    begin += count;
    out += count;
  }
}

Tensor Fused(const std::vector<Parameter*>& parameters,
             Tensor Parameter::*member) {
  if (parameters.empty()) return Tensor();
  const Tensor& first = parameters[0]->*member;
  int64_t rows = 0;
  int64_t offset = parameters[0]->offset;
  for (const Parameter* parameter : parameters) {
    CUBIT_CHECK_EQ(parameter->offset, offset) << parameter->name;
    offset += (parameter->*member).num_elements();
    rows += (parameter->*member).dim(0);
  }
  Shape shape;
  shape.Append(rows);
  for (int i = 1; i < first.shape().rank(); ++i) shape.Append(first.dim(i));
  CUBIT_CHECK_EQ(shape.num_elements(), offset - parameters[0]->offset);
  return Tensor(first.raw(), first.dtype(), shape);
}

}  // namespace

Parameter* ParameterStore::Add(std::string name, ShardSpec shard,
                               Initializer init, bool decay, bool follow) {
  if (!follow) size_ = RoundUp(size_, kAlignedElements);
  Parameter parameter;
  parameter.name = std::move(name);
  parameter.shard = shard;
  parameter.init = init;
  parameter.decay = decay;
  parameter.offset = size_;
  parameter.value = Tensor(nullptr, DType::kFloat32, shard.local_shape());
  parameter.gradient = parameter.value;
  parameter.compute = parameter.value;
  size_ += parameter.value.num_elements();
  parameters_.push_back(std::move(parameter));
  return &parameters_.back();
}

void ParameterStore::AlignTo(int64_t elements) {
  CUBIT_CHECK_EQ(elements % kAlignedElements, 0);
  CUBIT_CHECK(values_.data() == nullptr) << "AlignTo comes before Allocate";
  int64_t shift = 0;
  const auto align = [&](const Parameter& parameter) {
    CUBIT_CHECK_EQ(parameter.offset % kAlignedElements, 0)
        << parameter.name << " follows another";
    const int64_t offset = parameter.offset + shift;
    shift += RoundUp(offset, elements) - offset;
  };
  bool after_ends = false;
  for (Parameter& parameter : parameters_) {
    if (parameter.sum_over_ends || after_ends) align(parameter);
    parameter.offset += shift;
    after_ends = parameter.sum_over_ends;
  }
  size_ = RoundUp(size_ + shift, elements);
}

int64_t ParameterStore::buffer_bytes() const {
  return size_ * SizeOf(DType::kFloat32);
}

int64_t ParameterStore::compute_bytes(DType compute_dtype) const {
  return compute_dtype == DType::kFloat32 ? 0 : size_ * SizeOf(compute_dtype);
}

int64_t ParameterStore::num_elements() const {
  int64_t count = 0;
  for (const Parameter& parameter : parameters_) {
    count += parameter.value.num_elements();
  }
  return count;
}

absl::Status ParameterStore::Allocate(bool with_gradients,
                                      DType compute_dtype) {
  CUBIT_ASSIGN_OR_RETURN(
      values_, Buffer::Allocate(buffer_bytes(), MemoryCategory::kParameters));
  flat_values_ = Tensor(values_.data(), DType::kFloat32, {size_});
  if (with_gradients) {
    CUBIT_ASSIGN_OR_RETURN(
        gradients_,
        Buffer::Allocate(buffer_bytes(), MemoryCategory::kGradients));
    flat_gradients_ = Tensor(gradients_.data(), DType::kFloat32, {size_});
  }
  if (compute_dtype != DType::kFloat32) {
    CUBIT_ASSIGN_OR_RETURN(compute_,
                           Buffer::Allocate(compute_bytes(compute_dtype),
                                            MemoryCategory::kParameters));
    flat_compute_ = Tensor(compute_.data(), compute_dtype, {size_});
  }
  for (Parameter& parameter : parameters_) {
    const int64_t count = parameter.value.num_elements();
    const Shape shape = parameter.value.shape();
    const auto view = [&](const Tensor& flat) {
      return flat.Slice(parameter.offset, count).Reshape(shape);
    };
    parameter.value = view(flat_values_);
    if (with_gradients) parameter.gradient = view(flat_gradients_);
    parameter.compute =
        flat_compute_.empty() ? parameter.value : view(flat_compute_);
  }
  return absl::OkStatus();
}

absl::Status ParameterStore::Initialize(uint64_t seed, Stream& stream) {
  // Numbers of a piece are made while those of the one before it go out.
  std::array<Staging, 2> stagings;
  for (Staging& staging : stagings) {
    CUBIT_ASSIGN_OR_RETURN(
        staging.host,
        PinnedBuffer::Allocate(kStagedElements * SizeOf(DType::kFloat32)));
    staging.sent.Record(stream);
  }
  size_t next = 0;
  for (const Parameter& parameter : parameters_) {
    const Philox random(seed, parameter.name);
    const int64_t count = parameter.value.num_elements();
    for (int64_t begin = 0; begin < count; begin += kStagedElements) {
      const int64_t end = std::min(count, begin + kStagedElements);
      Staging& staging = stagings[next++ % stagings.size()];
      staging.sent.Synchronize();
      auto* const host = static_cast<float*>(staging.host.data());
      ParallelFor(end - begin, kInitGrain, [&](int64_t from, int64_t to) {
        FillPiece(parameter, random, begin + from, begin + to, host + from);
      });
      CopyToDevice(parameter.value.data<float>() + begin, host,
                   (end - begin) * SizeOf(DType::kFloat32), stream);
      staging.sent.Record(stream);
    }
  }
  stream.Synchronize();  // the host's copies are read until then
  RefreshCompute(stream);
  return absl::OkStatus();
}

void ParameterStore::ZeroGradients(Stream& stream) const {
  float* const gradients = flat_gradients_.data<float>();
  std::vector<FloatRange> ranges;
  int64_t begin = 0;
  const auto zero_until = [&](int64_t end) {
    if (end == begin) return;
    ranges.push_back({gradients + begin, end - begin});
  };
  for (const Parameter& parameter : parameters_) {
    if (!parameter.gradient_is_written) continue;
    zero_until(parameter.offset);
    begin = parameter.offset + parameter.gradient.num_elements();
  }
  zero_until(size_);
  ZeroRanges(ranges, stream);
}

void ParameterStore::RefreshCompute(Stream& stream) const {
  if (flat_compute_.empty()) return;
  Convert(flat_values_, flat_compute_, stream);
}

Tensor FusedValue(const std::vector<Parameter*>& parameters) {
  return Fused(parameters, &Parameter::value);
}
Tensor FusedGradient(const std::vector<Parameter*>& parameters) {
  return Fused(parameters, &Parameter::gradient);
}
Tensor FusedCompute(const std::vector<Parameter*>& parameters) {
  return Fused(parameters, &Parameter::compute);
}

}  // namespace cubit
