// SPDX-License-Identifier: Apache-2.0

#include "parallel/checkpoint_manifest.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include <nlohmann/json.hpp>

#include "parallel/safetensors.h"
#include "runtime/digest.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

using Json = nlohmann::ordered_json;

constexpr absl::string_view kFormat = "cubit checkpoint";
constexpr absl::string_view kPrefix = "{\"xxh3_128\":\"";
constexpr absl::string_view kMiddle = "\",\"manifest\":";
constexpr absl::string_view kSuffix = "}\n";
constexpr size_t kDigestDigits = 32;
constexpr int kMaxDepth = 8;

absl::Status Damaged(absl::string_view problem) {
  return absl::DataLossError(absl::StrCat("manifest is damaged: ", problem));
}

Json FileToJson(const ManifestFile& file) {
  return {{"name", file.name},
          {"size_bytes", file.size_bytes},
          {"xxh3_128", file.xxh3_128}};
}

Json TensorToJson(const ManifestTensor& tensor) {
  Json shape = Json::array();
  for (int i = 0; i < tensor.shape.rank(); ++i) {
    shape.push_back(tensor.shape[i]);
  }
  Json slices = Json::array();
  for (const ManifestSlice& slice : tensor.slices) {
    slices.push_back({{"file", slice.file},
                      {"key", slice.key},
                      {"dim", slice.dim},
                      {"begin", slice.begin},
                      {"count", slice.count},
                      {"xxh3_128", slice.xxh3_128}});
  }
  return {{"name", tensor.name},
          {"dtype", std::string(Name(tensor.dtype))},
          {"shape", std::move(shape)},
          {"slices", std::move(slices)}};
}

// Members of an object, by name and kind. The first that is not there or of
// another kind is remembered; the values then read are empty.
class Members {
 public:
  Members(const Json& json, std::string* problem)
      : json_(json), problem_(problem) {}

  std::string Text(const char* name) {
    const Json* value = Find(name, Json::value_t::string);
    return value == nullptr ? "" : value->get<std::string>();
  }
  // Not negative.
  int64_t Number(const char* name) {
    const Json* value = Find(name, Json::value_t::number_unsigned);
    if (value == nullptr) return 0;
    const uint64_t number = value->get<uint64_t>();
    if (number <= static_cast<uint64_t>(INT64_MAX)) {
      return static_cast<int64_t>(number);
    }
    Problem(absl::StrCat(name, " is beyond 2^63"));
    return 0;
  }
  const Json& List(const char* name) {
    static const Json& empty = *new Json(Json::array());
    const Json* value = Find(name, Json::value_t::array);
    return value == nullptr ? empty : *value;
  }
  const Json& Object(const char* name) {
    static const Json& empty = *new Json(Json::object());
    const Json* value = Find(name, Json::value_t::object);
    return value == nullptr ? empty : *value;
  }
  void Problem(std::string problem) {
    if (problem_->empty()) *problem_ = std::move(problem);
  }

 private:
  const Json* Find(const char* name, Json::value_t kind) {
    if (json_.is_object()) {
      const auto found = json_.find(name);
      if (found != json_.end() && found->type() == kind) return &*found;
    }
    Problem(absl::StrCat("no ", name, " of the right kind"));
    return nullptr;
  }

  const Json& json_;
  std::string* problem_;
};

std::string FileNameProblem(const std::string& name) {
  const std::string problem = TensorNameProblem(name);
  if (problem.empty()) return "";
  return absl::StrCat("a file name ", problem);
}

ManifestFile FileFromJson(const Json& json, std::string* problem) {
  Members members(json, problem);
  ManifestFile file;
  file.name = members.Text("name");
  file.size_bytes = members.Number("size_bytes");
  file.xxh3_128 = members.Text("xxh3_128");
  members.Problem(FileNameProblem(file.name));
  return file;
}

ManifestSlice SliceFromJson(const Json& json, std::string* problem) {
  Members members(json, problem);
  ManifestSlice slice;
  slice.file = members.Text("file");
  slice.key = members.Text("key");
  slice.dim = static_cast<int>(
      std::min<int64_t>(members.Number("dim"), Shape::kMaxRank));
  slice.begin = members.Number("begin");
  slice.count = members.Number("count");
  slice.xxh3_128 = members.Text("xxh3_128");
  return slice;
}

void ShapeFromJson(const Json& json, ManifestTensor* tensor,
                   std::string* problem) {
  Members members(json, problem);
  int64_t bytes = SizeOf(tensor->dtype);
  for (const Json& dim : members.List("shape")) {
    if (!dim.is_number_unsigned() || tensor->shape.rank() == Shape::kMaxRank ||
        dim.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
      members.Problem("a shape that no tensor has");
      return;
    }
    tensor->shape.Append(dim.get<int64_t>());
    if (__builtin_mul_overflow(bytes, dim.get<int64_t>(), &bytes)) {
      members.Problem("a shape beyond 2^63 bytes");
      return;
    }
  }
}

ManifestTensor TensorFromJson(const Json& json, bool whole,
                              std::string* problem) {
  Members members(json, problem);
  ManifestTensor tensor;
  tensor.name = members.Text("name");
  members.Problem(TensorNameProblem(tensor.name));
  const std::string word = members.Text("dtype");
  bool known = false;
  for (DType dtype : {DType::kFloat32, DType::kFloat64, DType::kBFloat16,
                      DType::kInt32, DType::kInt64, DType::kUInt8}) {
    if (Name(dtype) != word) continue;
    tensor.dtype = dtype;
    known = true;
  }
  if (!known) members.Problem(absl::StrCat("unknown dtype \"", word, "\""));
  ShapeFromJson(json, &tensor, problem);
  for (const Json& slice : members.List("slices")) {
    tensor.slices.push_back(SliceFromJson(slice, problem));
  }
  if (whole && problem->empty()) {
    members.Problem(CoverageProblem(tensor.shape, tensor.slices));
  }
  return tensor;
}

// Whether brackets nest deeper than any manifest's; strings are skipped.
bool TooDeep(absl::string_view json) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

// The body, once frame and digest are right.
absl::StatusOr<absl::string_view> CheckedBody(absl::string_view text) {
  const size_t frame =
      kPrefix.size() + kDigestDigits + kMiddle.size() + kSuffix.size();
  if (text.size() < frame) return Damaged("it is cut short");
  const absl::string_view digest = text.substr(kPrefix.size(), kDigestDigits);
  absl::string_view rest = text.substr(kPrefix.size() + kDigestDigits);
  if (!absl::StartsWith(text, kPrefix) || !absl::StartsWith(rest, kMiddle) ||
      !absl::EndsWith(rest, kSuffix)) {
    return Damaged("it is cut short or no manifest");
  }
  rest.remove_prefix(kMiddle.size());
  rest.remove_suffix(kSuffix.size());
  const std::string found = Xxh3_128Hex(rest.data(), rest.size());
  if (found != digest) {
    return Damaged(absl::StrCat("its digest is ", found, ", it says ", digest));
  }
  return rest;
}

absl::Status CheckVersion(const Json& json) {
  std::string problem;
  Members members(json, &problem);
  const std::string format = members.Text("format");
  const int64_t version = members.Number("format_version");
  if (!problem.empty() || format != kFormat) {
    return Damaged("it is no checkpoint's");
  }
  if (version == kCheckpointFormatVersion) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "the checkpoint has format version ", version, ", this build reads ",
      kCheckpointFormatVersion, "; use a build that reads version ", version));
}

// What only the lists together can tell.
std::string CrossProblem(const CheckpointManifest& manifest) {
  absl::flat_hash_set<std::string> files;
  for (const ManifestFile& file : manifest.data_files) {
    if (!files.insert(file.name).second) return "a file stands there twice";
  }
  absl::flat_hash_set<std::string> names;
  for (const ManifestTensor& tensor : manifest.tensors) {
    if (!names.insert(tensor.name).second) {
      return absl::StrCat("tensor ", tensor.name, " stands there twice");
    }
    for (const ManifestSlice& slice : tensor.slices) {
      if (!files.contains(slice.file)) {
        return absl::StrCat("tensor ", tensor.name, " lies in a file \"",
                            slice.file, "\" that is not listed");
      }
    }
  }
  for (const ManifestFile& file : manifest.extra_files) {
    if (!files.insert(file.name).second) return "a file stands there twice";
  }
  return "";
}

absl::StatusOr<CheckpointManifest> Parse(absl::string_view text, bool whole) {
  CUBIT_ASSIGN_OR_RETURN(const absl::string_view body, CheckedBody(text));
  if (TooDeep(body)) return Damaged("it nests too deep");
  const Json json = Json::parse(body.begin(), body.end(), nullptr,
                                /*allow_exceptions=*/false);
  if (json.is_discarded()) return Damaged("it is no JSON");
  CUBIT_RETURN_IF_ERROR(CheckVersion(json));
  std::string problem;
  Members members(json, &problem);
  CheckpointManifest manifest;
  manifest.info.step = members.Number("step");
  manifest.info.tokens = members.Number("tokens");
  manifest.info.position = members.Number("position");
  manifest.info.config = members.Text("config");
  for (const auto& [key, value] : members.Object("state").items()) {
    if (!value.is_string()) members.Problem("a state that is no text");
    if (value.is_string()) manifest.info.state[key] = value.get<std::string>();
  }
  for (const Json& file : members.List("data_files")) {
    manifest.data_files.push_back(FileFromJson(file, &problem));
  }
  for (const Json& file : members.List("extra_files")) {
    manifest.extra_files.push_back(FileFromJson(file, &problem));
  }
  for (const Json& tensor : members.List("tensors")) {
    manifest.tensors.push_back(TensorFromJson(tensor, whole, &problem));
    if (!problem.empty()) break;
  }
  if (problem.empty()) problem = CrossProblem(manifest);
  if (!problem.empty()) return Damaged(problem);
  return manifest;
}

}  // namespace

std::string SerializeManifest(const CheckpointManifest& manifest) {
  Json tensors = Json::array();
  for (const ManifestTensor& tensor : manifest.tensors) {
    tensors.push_back(TensorToJson(tensor));
  }
  Json data_files = Json::array();
  for (const ManifestFile& file : manifest.data_files) {
    data_files.push_back(FileToJson(file));
  }
  Json extra_files = Json::array();
  for (const ManifestFile& file : manifest.extra_files) {
    extra_files.push_back(FileToJson(file));
  }
  const CheckpointInfo& info = manifest.info;
  const Json json = {{"format", std::string(kFormat)},
                     {"format_version", kCheckpointFormatVersion},
                     {"step", info.step},
                     {"tokens", info.tokens},
                     {"position", info.position},
                     {"config", info.config},
                     {"state", Json(info.state)},
                     {"data_files", std::move(data_files)},
                     {"extra_files", std::move(extra_files)},
                     {"tensors", std::move(tensors)}};
  const std::string body = json.dump();
  return absl::StrCat(kPrefix, Xxh3_128Hex(body.data(), body.size()), kMiddle,
                      body, kSuffix);
}

absl::StatusOr<CheckpointManifest> ParseManifest(absl::string_view text) {
  return Parse(text, /*whole=*/true);
}

absl::StatusOr<CheckpointManifest> ParseManifestPart(absl::string_view text) {
  return Parse(text, /*whole=*/false);
}

bool IsUtf8(const std::string& text) {
  // The two ways to write bytes that are no UTF-8 differ only if there are any.
  using Handler = Json::error_handler_t;
  return Json(text).dump(-1, ' ', false, Handler::ignore) ==
         Json(text).dump(-1, ' ', false, Handler::replace);
}

Shape SliceShape(const Shape& shape, const ManifestSlice& slice) {
  Shape local;
  for (int i = 0; i < shape.rank(); ++i) {
    local.Append(i == slice.dim ? slice.count : shape[i]);
  }
  return local;
}

std::string CoverageProblem(const Shape& shape,
                            const std::vector<ManifestSlice>& slices) {
  if (slices.empty()) return "a tensor without slices";
  const int dim = slices[0].dim;
  if (dim != 0 && dim >= shape.rank())
    return "a slice of a dim beyond the rank";
  const int64_t extent = shape.rank() == 0 ? 1 : shape[dim];
  int64_t end = 0;
  for (const ManifestSlice& slice : slices) {
    if (slice.dim != dim) return "slices along different dims";
    if (slice.begin != end || slice.count < 0 || slice.count > extent - end) {
      return "slices that overlap, leave holes or go beyond the tensor";
    }
    end += slice.count;
  }
  return end == extent ? "" : "slices that do not cover the tensor";
}

}  // namespace cubit
