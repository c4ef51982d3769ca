// SPDX-License-Identifier: Apache-2.0

#include "launch/export_config.h"

#include <cmath>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include <nlohmann/json.hpp>

#include "data/json_events.h"
#include "runtime/status_macros.h"

namespace cubit {

const char kModelingFile[] = "modeling_cubit.py";
const char kWeightsFile[] = "model.safetensors";
const char kWeightsIndexFile[] = "model.safetensors.index.json";
const char kModelConfigFile[] = "config.json";
const char kRunConfigFile[] = "config.textproto";
const char kModelTypeWord[] = "cubit";

namespace {

using Json = nlohmann::ordered_json;

// One field of config.json that the function depends on, and the key of the
// run's configuration that it comes from.
struct Field {
  std::string name;
  Json value;
  std::string key;
};

const char* WordOf(DeltaWeights w) {
  switch (w) {
    case DeltaWeights::kOwn:
      return "own";
    case DeltaWeights::kKey:
      return "k";
    case DeltaWeights::kQuery:
      return "q";
  }
  return "own";
}

void AddMixerFields(const ModelConfig& config, std::vector<Field>* fields) {
  fields->push_back({"mixer", config.mixer, "model.mixer"});
  if (config.mixer == "cubit") {
    fields->push_back({"cubit_share", config.cubit.share, "model.cubit.share"});
    fields->push_back({"cubit_lrr", config.cubit.lrr, "model.cubit.lrr"});
  } else if (config.mixer == "softmax") {
    fields->push_back(
        {"softmax_qk_norm", config.softmax.qk_norm, "model.softmax.qk_norm"});
  } else if (config.mixer == "deltaformer") {
    fields->push_back(
        {"deltaformer_w", WordOf(config.deltaformer.w), "model.deltaformer.w"});
    fields->push_back(
        {"deltaformer_beta",
         config.deltaformer.beta == DeltaBeta::kSigmoid ? "sigmoid" : "linear",
         "model.deltaformer.beta"});
  }
}

// Everything the function depends on but the weights.
std::vector<Field> FunctionFields(const ModelConfig& config,
                                  const Tokenizer& tokenizer) {
  std::vector<Field> fields;
  AddMixerFields(config, &fields);
  const bool rope = config.positional_encoding == PositionKind::kRope;
  const std::vector<Field> rest = {
      {"num_hidden_layers", config.num_layers, "model.num_layers"},
      {"hidden_size", config.hidden_size, "model.hidden_size"},
      {"num_attention_heads", config.num_heads, "model.num_heads"},
      {"intermediate_size", config.ffn_hidden_size, "model.ffn_hidden_size"},
      {"vocab_size", config.vocab_size, "model.vocab_size"},
      {"valid_vocab_size", config.valid_vocab, "data.tokenizer"},
      {"tokenizer_sha256", tokenizer.sha256(), "data.tokenizer"},
      {"norm", config.norm == NormKind::kLayerNorm ? "layer_norm" : "rms_norm",
       "model.norm"},
      {"norm_epsilon", config.norm_epsilon, "model.norm_epsilon"},
      {"mlp", config.mlp == MlpKind::kGelu ? "gelu" : "swiglu", "model.mlp"},
      {"positional_encoding", rope ? "rope" : "none",
       "model.positional_encoding"},
      {"rope_base", config.rope_base, "model.rope_base"},
      {"tie_word_embeddings", config.tied_embeddings, "model.tied_embeddings"},
      {"use_bias", config.bias, "model.bias"},
  };
  fields.insert(fields.end(), rest.begin(), rest.end());
  return fields;
}

// The scalar members of the outermost object.
class TopFields : public JsonHandler {
 public:
  absl::Status OnValue(const JsonPath& path, const JsonValue& value) override {
    if (path.empty() && value.kind != JsonValue::Kind::kObject) {
      return absl::InvalidArgumentError(
          absl::StrCat("is ", Describe(value.kind), ", an object was wanted"));
    }
    if (path.size() == 1) values_[path[0]] = ToJson(value);
    return absl::OkStatus();
  }

  // Null if it is absent.
  const Json* Find(const std::string& name) const {
    const auto found = values_.find(name);
    return found == values_.end() ? nullptr : &found->second;
  }

 private:
  static Json ToJson(const JsonValue& value) {
    switch (value.kind) {
      case JsonValue::Kind::kBool:
        return value.boolean;
      case JsonValue::Kind::kInteger:
        return value.integer;
      case JsonValue::Kind::kReal:
        return value.real;
      case JsonValue::Kind::kString:
        return *value.string;
      default:
        return nullptr;
    }
  }

  std::map<std::string, Json> values_;
};

// A value for a message; the bytes may be anything.
std::string Shown(const Json& value) {
  return value.dump(-1, ' ', /*ensure_ascii=*/true,
                    Json::error_handler_t::replace);
}

const char* TorchName(DType dtype) {
  return dtype == DType::kBFloat16 ? "bfloat16" : "float32";
}

}  // namespace

std::string HuggingFaceName(absl::string_view parameter) {
  if (parameter == "embedding.weight") return "model.embed_tokens.weight";
  if (parameter == "head.weight") return "lm_head.weight";
  if (absl::ConsumePrefix(&parameter, "final_norm.")) {
    return absl::StrCat("model.norm.", parameter);
  }
  return absl::StrCat("model.", parameter);
}

std::string HuggingFaceConfig(const ModelConfig& config,
                              const Tokenizer& tokenizer, DType dtype) {
  Json json;
  json["model_type"] = std::string(kModelTypeWord);
  json["architectures"] = {"CubitForCausalLM"};
  json["auto_map"] = {
      {"AutoConfig", "modeling_cubit.CubitConfig"},
      {"AutoModel", "modeling_cubit.CubitModel"},
      {"AutoModelForCausalLM", "modeling_cubit.CubitForCausalLM"}};
  json["dtype"] = TorchName(dtype);
  for (const Field& field : FunctionFields(config, tokenizer)) {
    json[field.name] = field.value;
  }
  json["max_position_embeddings"] = config.seq_len;
  json["bos_token_id"] = tokenizer.eot_id();
  json["eos_token_id"] = tokenizer.eot_id();
  json["pad_token_id"] = tokenizer.eot_id();
  json["use_cache"] = true;
  return json.dump(2) + "\n";
}

absl::Status CheckHuggingFaceConfig(absl::string_view text,
                                    const ModelConfig& config,
                                    const Tokenizer& tokenizer) {
  TopFields fields;
  CUBIT_RETURN_IF_ERROR(ReadJson(text, /*unique_keys=*/true, &fields));
  const Json* type = fields.Find("model_type");
  if (type == nullptr || *type != std::string(kModelTypeWord)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "model_type is ", type == nullptr ? "missing" : Shown(*type), ", \"",
        kModelTypeWord,
        "\" was wanted; only folders written by //launch:export are read"));
  }
  for (const Field& field : FunctionFields(config, tokenizer)) {
    const Json* found = fields.Find(field.name);
    if (found != nullptr && *found == field.value) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        field.name, " is ", found == nullptr ? "missing" : Shown(*found),
        ", this run has ", Shown(field.value), "; change ", field.key,
        ", or begin with --config=FOLDER/", kRunConfigFile));
  }
  return absl::OkStatus();
}

}  // namespace cubit
