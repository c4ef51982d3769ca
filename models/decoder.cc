// SPDX-License-Identifier: Apache-2.0

#include "models/decoder.h"

#include <utility>

#include "ops/embedding.h"
#include "ops/rotary.h"
#include "runtime/status_macros.h"

namespace cubit {

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(
    const LanguageModel* model, int64_t max_tokens, Stream* stream) {
  CUBIT_CHECK_GE(max_tokens, 1);
  auto decoder =
      std::unique_ptr<Decoder>(new Decoder(model, max_tokens, stream));
  CUBIT_RETURN_IF_ERROR(decoder->Allocate());
  return decoder;
}

absl::Status Decoder::Allocate() {
  const ModelConfig& config = model_->config();
  const auto layout = [&](Arena& arena) {
    step_ = model_->AllocateActivations(1, 1, arena);
    step_.segment_ids = Tensor();  // one document
    caches_.clear();
    for (const Block& block : model_->blocks_) {
      caches_.push_back(block.mixer().AllocateCache(1, max_tokens_, arena));
    }
    logits_ = arena.Allocate(DType::kFloat32, {1, model_->head_->num_logits()});
    if (config.positional_encoding == PositionKind::kRope) {
      scratch_.rotary_table =
          arena.Allocate(DType::kFloat32, {max_tokens_, config.head_dim()});
    }
  };
  Arena measure = Arena::Measuring();
  layout(measure);
  CUBIT_ASSIGN_OR_RETURN(
      Arena arena,
      Arena::Create(measure.used_bytes(), MemoryCategory::kActivations));
  arena_ = std::make_unique<Arena>(std::move(arena));
  layout(*arena_);
  model_->InitializeScratch(&scratch_, *stream_);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<float>> Decoder::Start(
    absl::Span<const int32_t> prompt) {
  const auto count = static_cast<int64_t>(prompt.size());
  CUBIT_CHECK(count >= 1 && count <= max_tokens_)
      << count << " tokens, room for " << max_tokens_;
  Arena measure = Arena::Measuring();
  model_->AllocateActivations(1, count, measure);
  CUBIT_ASSIGN_OR_RETURN(
      Arena arena,
      Arena::Create(measure.used_bytes(), MemoryCategory::kActivations));
  Activations activations = model_->AllocateActivations(1, count, arena);
  activations.segment_ids = Tensor();
  CopyToDevice(activations.inputs.raw(), prompt.data(),
               activations.inputs.size_bytes(), *stream_);
  const LayerContext context =
      model_->ContextFor(activations, scratch_, *stream_);
  model_->ForwardTrunk(context, &activations);
  for (size_t layer = 0; layer < caches_.size(); ++layer) {
    model_->blocks_[layer].mixer().FillCache(
        context, activations.blocks[layer].mixer, &caches_[layer]);
  }
  length_ = count;
  return LogitsOf(context, activations.final_norm.y.Slice(count - 1, 1));
}

std::vector<float> Decoder::Append(int32_t token) {
  CUBIT_CHECK_LT(length_, max_tokens_) << "no room for another token";
  CopyToDevice(step_.inputs.raw(), &token, sizeof(token), *stream_);
  const LayerContext context = model_->ContextFor(step_, scratch_, *stream_);
  EmbeddingForward(step_.inputs.Reshape({1}), model_->embedding_->value,
                   step_.embedded, *stream_);
  for (size_t layer = 0; layer < caches_.size(); ++layer) {
    model_->blocks_[layer].Decode(context, length_,
                                  LanguageModel::BlockInput(step_, layer),
                                  &step_.blocks[layer], &caches_[layer]);
  }
  model_->final_norm_->Forward(context,
                               LanguageModel::BlockInput(step_, caches_.size()),
                               &step_.final_norm);
  ++length_;
  return LogitsOf(context, step_.final_norm.y);
}

std::vector<float> Decoder::LogitsOf(const LayerContext& context,
                                     ConstTensor hidden) {
  model_->head_->Logits(context, hidden, logits_);
  std::vector<float> logits(static_cast<size_t>(model_->config().valid_vocab));
  CopyToHost(logits.data(), logits_.raw(),
             model_->config().valid_vocab * SizeOf(DType::kFloat32), *stream_);
  stream_->Synchronize();
  return logits;
}

}  // namespace cubit
