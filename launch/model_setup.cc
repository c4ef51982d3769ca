// SPDX-License-Identifier: Apache-2.0

#include "launch/model_setup.h"

#include "absl/strings/str_cat.h"

#include "launch/config.h"
#include "runtime/device.h"
#include "runtime/dtype.h"

namespace cubit {
namespace {

// Logits that exist at once. Every chunk of rows reads and writes the whole
// gradient of the vocabulary's weights (fp32, 155 MB at 125M): on a GPU, a few
// large chunks keep that far below the products (64 MiB are 670 rows). A CPU's
// caches want small chunks, and its products are at full rate at once.
constexpr int64_t kGpuLogitsBytes = int64_t{1} << 30;
constexpr int64_t kCpuLogitsBytes = int64_t{64} << 20;

DeltaWeights DeltaWeightsFrom(RunConfig::DeltaWeight::Word word) {
  switch (word) {
    case RunConfig::DeltaWeight::own:
      return DeltaWeights::kOwn;
    case RunConfig::DeltaWeight::k:
      return DeltaWeights::kKey;
    case RunConfig::DeltaWeight::q:
      return DeltaWeights::kQuery;
  }
  return DeltaWeights::kOwn;
}

KrrPrecision KrrPrecisionFrom(const RunConfig::Precision& precision) {
  switch (precision.krr_precision()) {
    case RunConfig::KrrPrecision::tf32:
      return KrrPrecision::kTFloat32;
    case RunConfig::KrrPrecision::bf16x3:
      return KrrPrecision::kBFloat16x3;
    case RunConfig::KrrPrecision::bf16:
    case RunConfig::KrrPrecision::auto_:
      return KrrPrecision::kActivations;
  }
  return KrrPrecision::kActivations;
}

void CopyMixer(const RunConfig::Model& model, ModelConfig* out) {
  out->mixer = RunConfig::Mixer::Word_Name(model.mixer());
  out->cubit.share = model.cubit().share();
  out->cubit.lrr = model.cubit().lrr();
  out->cubit.lambda_init = model.cubit().lambda_init();
  out->softmax.qk_norm = model.softmax().qk_norm();
  out->deltaformer.w = DeltaWeightsFrom(model.deltaformer().w());
  out->deltaformer.beta =
      model.deltaformer().beta() == RunConfig::DeltaBeta::sigmoid
          ? DeltaBeta::kSigmoid
          : DeltaBeta::kLinear;
}

}  // namespace

absl::StatusOr<ModelConfig> MakeModelConfig(const RunConfig& config,
                                            int64_t vocab_size) {
  const RunConfig resolved = ResolveConfig(config);
  const RunConfig::Model& model = resolved.model();
  if (model.vocab_size() > 0 && model.vocab_size() < vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "model.vocab_size is ", model.vocab_size(), ", but the tokenizer has ",
        vocab_size, " ids; set it to at least ", PaddedVocabSize(vocab_size),
        ", or to 0 to derive it"));
  }
  ModelConfig out;
  CopyMixer(model, &out);
  out.num_layers = model.num_layers();
  out.hidden_size = model.hidden_size();
  out.num_heads = model.num_heads();
  out.ffn_hidden_size = model.ffn_hidden_size();
  out.vocab_size =
      model.vocab_size() > 0 ? model.vocab_size() : PaddedVocabSize(vocab_size);
  out.valid_vocab = vocab_size;
  out.seq_len = model.seq_len();
  out.norm = model.norm() == RunConfig::Norm::layer_norm ? NormKind::kLayerNorm
                                                         : NormKind::kRmsNorm;
  out.norm_epsilon = model.norm_epsilon();
  out.mlp =
      model.mlp() == RunConfig::Mlp::gelu ? MlpKind::kGelu : MlpKind::kSwiGlu;
  out.positional_encoding =
      model.positional_encoding() == RunConfig::PositionalEncoding::rope
          ? PositionKind::kRope
          : PositionKind::kNone;
  out.rope_base = model.rope_base();
  out.tied_embeddings = model.tied_embeddings();
  out.bias = model.bias();
  out.z_loss = model.z_loss();
  out.init_std = model.init_std();
  out.document_mask = config.data().document_mask();
  out.activation_dtype =
      config.precision().compute() == RunConfig::Compute::bf16
          ? DType::kBFloat16
          : DType::kFloat32;
  out.krr_precision = KrrPrecisionFrom(config.precision());
  out.logits_chunk_bytes =
      DeviceKind() == "cuda" ? kGpuLogitsBytes : kCpuLogitsBytes;
  return out;
}

}  // namespace cubit
