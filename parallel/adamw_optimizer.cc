// SPDX-License-Identifier: Apache-2.0

#include "parallel/adamw_optimizer.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

#include "ops/adamw.h"
#include "ops/elementwise.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

// The sum of squares and the factor of clipping, each aligned.
constexpr int64_t kScalarBytes = 256;

// Bytes of one of the moments, so that what follows is aligned.
int64_t MomentBytes(const ParameterStore& store) {
  return (store.buffer_bytes() + kScalarBytes - 1) / kScalarBytes *
         kScalarBytes;
}

int64_t NumGroups(const ParameterStore& store) {
  const int64_t elements = store.buffer_bytes() / SizeOf(DType::kFloat32);
  return (elements + kAdamWGroup - 1) / kAdamWGroup;
}

// One flag a group. Parameters begin where a group does, but for those that
// follow another; these must agree with it about decay.
std::vector<uint8_t> DecayFlags(const ParameterStore& store) {
  std::vector<uint8_t> flags(static_cast<size_t>(NumGroups(store)));
  int64_t end = 0;  // groups that a parameter before this one is in
  for (const Parameter& parameter : store.parameters()) {
    const int64_t count = parameter.value.num_elements();
    const int64_t first = parameter.offset / kAdamWGroup;
    const uint8_t flag = parameter.decay ? 1 : 0;
    if (first < end && count > 0) {
      CUBIT_CHECK_EQ(static_cast<int>(flags[static_cast<size_t>(first)]),
                     static_cast<int>(flag))
          << parameter.name << " shares a group with another rule of decay";
    }
    end = (parameter.offset + count + kAdamWGroup - 1) / kAdamWGroup;
    std::fill(flags.begin() + first, flags.begin() + end, flag);
  }
  return flags;
}

}  // namespace

AdamWOptimizer::AdamWOptimizer(const AdamWOptions& options,
                               ParameterStore* store)
    : options_(options), store_(store) {}

int64_t AdamWOptimizer::StateBytes(const ParameterStore& store) {
  return 2 * MomentBytes(store) + 2 * kScalarBytes + NumGroups(store);
}

absl::Status AdamWOptimizer::Allocate() {
  const int64_t bytes = MomentBytes(*store_);
  CUBIT_ASSIGN_OR_RETURN(buffer_, Buffer::Allocate(StateBytes(*store_),
                                                   MemoryCategory::kOptimizer));
  char* base = static_cast<char*>(buffer_.data());
  sum_of_squares_ = Tensor(base, DType::kFloat64, {1});
  grad_scale_ = Tensor(base + kScalarBytes, DType::kFloat32, {1});
  char* moments = base + 2 * kScalarBytes;
  m_ = Tensor(moments, DType::kFloat32, store_->flat_values().shape());
  v_ = Tensor(moments + bytes, DType::kFloat32, m_.shape());
  decay_ = Tensor(moments + 2 * bytes, DType::kUInt8, {NumGroups(*store_)});
  const std::vector<uint8_t> flags = DecayFlags(*store_);
  Stream stream;
  CopyToDevice(decay_.raw(), flags.data(), decay_.size_bytes(), stream);
  stream.Synchronize();
  return absl::OkStatus();
}

void AdamWOptimizer::ComputeGradientNorm(Stream& stream) {
  SumOfSquares(store_->flat_gradients(), sum_of_squares_, stream);
  ClipScale(sum_of_squares_, options_.grad_clip_norm, grad_scale_, stream);
}

double AdamWOptimizer::GradientNorm(Stream& stream) {
  double sum = 0;
  CopyToHost(&sum, sum_of_squares_.raw(), sizeof(sum), stream);
  stream.Synchronize();
  return std::sqrt(sum);
}

void AdamWOptimizer::Update(int64_t step, double learning_rate,
                            Stream& stream) {
  AdamWStep update;
  update.learning_rate = static_cast<float>(learning_rate);
  update.beta1 = static_cast<float>(options_.beta1);
  update.beta2 = static_cast<float>(options_.beta2);
  update.epsilon = static_cast<float>(options_.epsilon);
  update.weight_decay = static_cast<float>(options_.weight_decay);
  update.step = step;
  AdamWUpdate(update, decay_, grad_scale_, store_->flat_gradients(), m_, v_,
              store_->flat_values(), /*compute=*/Tensor(), stream);
}

std::vector<CheckpointTensor> AdamWOptimizer::State() {
  std::vector<CheckpointTensor> tensors;
  for (const Parameter& parameter : store_->parameters()) {
    const int64_t count = parameter.value.num_elements();
    const auto add = [&](const char* prefix, const Tensor& flat) {
      tensors.push_back({absl::StrCat(prefix, parameter.name), parameter.shard,
                         flat.Slice(parameter.offset, count)
                             .Reshape(parameter.value.shape())});
    };
    add("adamw.m.", m_);
    add("adamw.v.", v_);
  }
  return tensors;
}

}  // namespace cubit
