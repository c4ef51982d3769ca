// SPDX-License-Identifier: Apache-2.0

#include "models/decoder.h"

#include <utility>

#include "ops/elementwise.h"
#include "runtime/status_macros.h"

namespace cubit {

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(
    const LanguageModel* model, int64_t num_texts, int64_t max_tokens,
    Stream* stream) {
  CUBIT_CHECK(num_texts >= 1 && num_texts <= kMaxTexts) << num_texts;
  CUBIT_CHECK_GE(max_tokens, 1);
  auto decoder = std::unique_ptr<Decoder>(
      new Decoder(model, num_texts, max_tokens, stream));
  CUBIT_RETURN_IF_ERROR(decoder->Allocate());
  return decoder;
}

absl::Status Decoder::Allocate() {
  const ModelConfig& config = model_->config();
  const auto layout = [&](Arena& arena) {
    step_ = model_->AllocateActivations(kMaxTexts, 1, arena);
    step_.segment_ids = Tensor();  // one document each
    caches_.clear();
    for (int64_t text = 0; text < num_texts_; ++text) {
      caches_.emplace_back();
      for (const Block& block : model_->blocks_) {
        caches_.back().push_back(
            block.mixer().AllocateCache(max_tokens_, arena));
      }
    }
    logits_ = arena.Allocate(config.activation_dtype,
                             {kMaxTexts, model_->head_->num_logits()});
    if (config.activation_dtype != DType::kFloat32) {
      logits32_ = arena.Allocate(DType::kFloat32, logits_.shape());
    }
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
    int64_t text, absl::Span<const int32_t> prompt) {
  const auto count = static_cast<int64_t>(prompt.size());
  CUBIT_CHECK(text >= 0 && text < num_texts_) << text << " of " << num_texts_;
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
  const ChunkContext chunk_context = {stream_, nullptr};
  const LayerContext context =
      model_->ContextFor(activations, scratch_, chunk_context);
  model_->ForwardChunk(0, chunk_context, &activations, &scratch_);
  std::vector<MixerLayerCache>& caches = caches_[static_cast<size_t>(text)];
  for (size_t layer = 0; layer < caches.size(); ++layer) {
    model_->blocks_[layer].mixer().FillCache(
        context, activations.blocks[layer].mixer, &caches[layer]);
  }
  lengths_[static_cast<size_t>(text)] = count;
  model_->head_->Logits(context, activations.final_norm.y.Slice(count - 1, 1),
                        logits_.Slice(0, 1));
  std::vector<float> logits;
  CopyLogits(0, &logits);
  stream_->Synchronize();
  return logits;
}

std::vector<DecodeRow> Decoder::RowsOf(absl::Span<const Next> next,
                                       size_t layer) {
  std::vector<DecodeRow> rows;
  for (const Next& item : next) {
    const auto text = static_cast<size_t>(item.text);
    rows.push_back({item.text, lengths_[text], &caches_[text][layer]});
  }
  return rows;
}

std::vector<std::vector<float>> Decoder::Append(absl::Span<const Next> next) {
  std::array<int32_t, kMaxTexts> tokens = {};
  std::array<bool, kMaxTexts> seen = {};
  for (const Next& item : next) {
    CUBIT_CHECK(item.text >= 0 && item.text < num_texts_) << item.text;
    const auto text = static_cast<size_t>(item.text);
    CUBIT_CHECK(!seen[text]) << "text " << text << " twice in one step";
    CUBIT_CHECK(lengths_[text] >= 1 && lengths_[text] < max_tokens_)
        << "text " << text << " has " << lengths_[text] << " tokens, room for "
        << max_tokens_;
    tokens[text] = item.token;
    seen[text] = true;
  }
  CopyToDevice(step_.inputs.raw(), tokens.data(), step_.inputs.size_bytes(),
               *stream_);
  const LayerContext context =
      model_->ContextFor(step_, scratch_, {stream_, nullptr});
  model_->embedding_->Forward(context, step_.inputs.Reshape({kMaxTexts}),
                              step_.embedded);
  for (size_t layer = 0; layer < model_->blocks_.size(); ++layer) {
    model_->blocks_[layer].Decode(context, RowsOf(next, layer),
                                  LanguageModel::BlockInput(step_, layer),
                                  &step_.blocks[layer]);
  }
  model_->final_norm_->Forward(
      context, LanguageModel::BlockInput(step_, model_->blocks_.size()),
      &step_.final_norm);
  model_->head_->Logits(context, step_.final_norm.y, logits_);
  std::vector<std::vector<float>> logits(next.size());
  for (size_t i = 0; i < next.size(); ++i) {
    ++lengths_[static_cast<size_t>(next[i].text)];
    CopyLogits(next[i].text, &logits[i]);
  }
  stream_->Synchronize();
  return logits;
}

void Decoder::CopyLogits(int64_t row, std::vector<float>* logits) {
  const int64_t valid = model_->config().valid_vocab;
  logits->resize(static_cast<size_t>(valid));
  Tensor fp32 = logits_.Slice(row, 1);
  if (!logits32_.empty()) {
    Convert(fp32, logits32_.Slice(row, 1), *stream_);
    fp32 = logits32_.Slice(row, 1);
  }
  CopyToHost(logits->data(), fp32.raw(), valid * SizeOf(DType::kFloat32),
             *stream_);
}

}  // namespace cubit
