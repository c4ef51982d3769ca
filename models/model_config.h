// SPDX-License-Identifier: Apache-2.0
//
// What function is trained, as plain values. launch/config.h makes one from the
// run's configuration; nothing here knows files or flags.

#ifndef CUBIT_MODELS_MODEL_CONFIG_H_
#define CUBIT_MODELS_MODEL_CONFIG_H_

#include <cstdint>
#include <string>

#include "runtime/dtype.h"

namespace cubit {

enum class NormKind { kLayerNorm, kRmsNorm };
enum class MlpKind { kGelu, kSwiGlu };
enum class PositionKind { kRope, kNone };
// Which projection takes the place of w in DeltaFormer's system.
enum class DeltaWeights { kOwn, kKey, kQuery };
enum class DeltaBeta { kSigmoid, kLinear };

// Products of the triangular solves (ops/solve_precision.h): of the activations
// as they are, or of fp32 copies.
enum class KrrPrecision { kActivations, kTFloat32, kBFloat16x3 };

struct CubitOptions {
  bool share = false;  // r = k: no projection of its own
  bool lrr = true;     // values scaled per token and head
  double lambda_init = 1e-10;
};

struct SoftmaxOptions {
  bool qk_norm = false;
};

struct DeltaFormerOptions {
  DeltaWeights w = DeltaWeights::kOwn;
  DeltaBeta beta = DeltaBeta::kSigmoid;
};

struct ModelConfig {
  std::string mixer = "cubit";  // a registered mixer (mixers/registry.h)
  CubitOptions cubit;
  SoftmaxOptions softmax;
  DeltaFormerOptions deltaformer;

  int64_t num_layers = 0;
  int64_t hidden_size = 0;
  int64_t num_heads = 0;
  int64_t ffn_hidden_size = 0;
  int64_t vocab_size = 0;   // rows of the embedding, with padding
  int64_t valid_vocab = 0;  // ids that exist; logits beyond are masked out
  int64_t seq_len = 0;

  NormKind norm = NormKind::kLayerNorm;
  double norm_epsilon = 1e-5;
  MlpKind mlp = MlpKind::kGelu;
  PositionKind positional_encoding = PositionKind::kRope;
  double rope_base = 10000;
  bool tied_embeddings = false;
  bool bias = true;
  double z_loss = 0;
  double init_std = 0;  // 0: the small initialisation (initialization.h)
  bool document_mask = false;

  // Of activations and their gradients, and of the weights that products read:
  // fp32 or bf16. Everything else is fp32 (ops/matmul.h).
  DType activation_dtype = DType::kFloat32;
  KrrPrecision krr_precision = KrrPrecision::kActivations;
  // Logits that exist at once (language_head.h).
  int64_t logits_chunk_bytes = 64 << 20;

  int64_t head_dim() const { return hidden_size / num_heads; }
};

}  // namespace cubit

#endif  // CUBIT_MODELS_MODEL_CONFIG_H_
