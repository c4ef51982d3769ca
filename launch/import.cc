// SPDX-License-Identifier: Apache-2.0

#include "launch/import.h"

#include <cstring>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "data/json_events.h"
#include "launch/export_config.h"
#include "parallel/safetensors.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr int64_t kMaxConfigBytes = 1 << 20;
constexpr int64_t kMaxIndexBytes = 64 << 20;
constexpr size_t kMaxListed = 5;

// Where a tensor lies.
struct Place {
  std::string path;
  SafetensorsEntry entry;
};
using Places = std::map<std::string, Place>;

absl::Status InFile(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat(path, ": ", status.message()));
}

std::string Quoted(absl::string_view text) {
  return absl::StrCat("\"", absl::CHexEscape(text.substr(0, 80)), "\"");
}

// The files that weight_map of an index names.
class IndexReader : public JsonHandler {
 public:
  absl::Status OnValue(const JsonPath& path, const JsonValue& value) override {
    if (path.size() != 2 || path[0] != "weight_map") return absl::OkStatus();
    if (value.kind != JsonValue::Kind::kString) {
      return absl::InvalidArgumentError(
          absl::StrCat("weight_map of ", Quoted(path[1]), " is ",
                       Describe(value.kind), ", a file name was wanted"));
    }
    const std::string& name = *value.string;
    // A name that leaves the folder would read files the user did not name.
    if (name.find('/') != std::string::npos ||
        !TensorNameProblem(name).empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("weight_map of ", Quoted(path[1]), " is ", Quoted(name),
                       ", the name of a file in the folder was wanted"));
    }
    names_.insert(name);
    return absl::OkStatus();
  }

  std::set<std::string> TakeNames() { return std::move(names_); }

 private:
  std::set<std::string> names_;
};

absl::StatusOr<std::set<std::string>> WeightFiles(const std::string& folder,
                                                  FileSystem& files) {
  const std::string index = JoinPath(folder, kWeightsIndexFile);
  if (!files.Exists(index)) return std::set<std::string>{kWeightsFile};
  CUBIT_ASSIGN_OR_RETURN(const std::string text,
                         ReadFile(files, index, kMaxIndexBytes));
  IndexReader reader;
  const absl::Status status = ReadJson(text, /*unique_keys=*/true, &reader);
  if (!status.ok()) return InFile(index, status);
  std::set<std::string> names = reader.TakeNames();
  if (names.empty()) {
    return InFile(index, absl::InvalidArgumentError("has no weight_map"));
  }
  return names;
}

absl::StatusOr<Places> FindTensors(const std::string& folder,
                                   FileSystem& files) {
  CUBIT_ASSIGN_OR_RETURN(const std::set<std::string> names,
                         WeightFiles(folder, files));
  Places places;
  for (const std::string& name : names) {
    const std::string path = JoinPath(folder, name);
    CUBIT_ASSIGN_OR_RETURN(SafetensorsHeader header,
                           ReadSafetensorsHeader(files, path));
    for (SafetensorsEntry& entry : header.entries) {
      const std::string tensor = entry.name;
      if (!places.try_emplace(tensor, Place{path, std::move(entry)}).second) {
        return absl::InvalidArgumentError(
            absl::StrCat(path, ": tensor ", Quoted(tensor),
                         " is also in another file of the folder"));
      }
    }
  }
  return places;
}

absl::Status CheckTensor(const Place& place, const Parameter& parameter) {
  const Shape& wanted = parameter.shard.global_shape;
  if (place.entry.shape != wanted) {
    return absl::InvalidArgumentError(absl::StrCat(
        place.path, ": tensor ", Quoted(place.entry.name), " has shape ",
        place.entry.shape.ToString(), ", this model wants ", wanted.ToString(),
        "; train with the configuration of the folder"));
  }
  if (place.entry.dtype != DType::kFloat32 &&
      place.entry.dtype != DType::kBFloat16) {
    return absl::InvalidArgumentError(absl::StrCat(
        place.path, ": tensor ", Quoted(place.entry.name), " is ",
        Name(place.entry.dtype), ", F32 or BF16 was wanted; save it as one"));
  }
  return absl::OkStatus();
}

// Every parameter has its tensor, and no tensor is left over.
absl::Status CheckTensors(const std::string& folder, const Places& places,
                          const ParameterStore& store) {
  std::vector<std::string> missing;
  std::set<std::string> wanted;
  for (const Parameter& parameter : store.parameters()) {
    const std::string name = HuggingFaceName(parameter.name);
    wanted.insert(name);
    const auto place = places.find(name);
    if (place == places.end()) {
      missing.push_back(name);
      continue;
    }
    CUBIT_RETURN_IF_ERROR(CheckTensor(place->second, parameter));
  }
  std::vector<std::string> extra;
  for (const auto& [name, place] : places) {
    if (wanted.count(name) == 0) extra.push_back(absl::CHexEscape(name));
  }
  if (missing.empty() && extra.empty()) return absl::OkStatus();
  const auto some = [](std::vector<std::string> names) {
    const size_t count = names.size();
    if (count > kMaxListed) names.resize(kMaxListed);
    return absl::StrCat(count, " (", absl::StrJoin(names, ", "),
                        count > kMaxListed ? ", ..." : "", ")");
  };
  return absl::InvalidArgumentError(absl::StrCat(
      folder, ": ", missing.size(), " tensors of this model are missing",
      missing.empty() ? "" : absl::StrCat(": ", some(missing)), ", ",
      extra.size(), " are not of this model",
      extra.empty() ? "" : absl::StrCat(": ", some(extra)),
      "; begin with --config=", JoinPath(folder, kRunConfigFile)));
}

// Elements [first, first + count) of a tensor.
absl::StatusOr<std::vector<float>> ReadValues(const Place& place, int64_t first,
                                              int64_t count,
                                              FileSystem& files) {
  std::vector<float> values(static_cast<size_t>(count));
  const int64_t size = SizeOf(place.entry.dtype);
  const int64_t offset = place.entry.offset + first * size;
  if (place.entry.dtype == DType::kFloat32) {
    CUBIT_RETURN_IF_ERROR(
        files.Read(place.path, offset, count * size, values.data()));
    return values;
  }
  std::vector<uint16_t> halves(values.size());
  CUBIT_RETURN_IF_ERROR(
      files.Read(place.path, offset, count * size, halves.data()));
  for (size_t i = 0; i < halves.size(); ++i) {
    const uint32_t bits = static_cast<uint32_t>(halves[i]) << 16;
    std::memcpy(&values[i], &bits, sizeof(bits));
  }
  return values;
}

// The elements of `shard`. What lies before the first and behind the last of
// them is not read.
absl::StatusOr<std::vector<float>> ReadLocalPart(const Place& place,
                                                 const ShardSpec& shard,
                                                 FileSystem& files) {
  int64_t rows = 1;  // of the dims before the one that is cut
  int64_t inner = 1;
  const Shape& shape = shard.global_shape;
  for (int i = 0; i < shape.rank(); ++i) {
    if (i < shard.dim) rows *= shape[i];
    if (i > shard.dim) inner *= shape[i];
  }
  const int64_t run = shard.count * inner;
  const int64_t stride = shape.num_elements() / rows;
  CUBIT_ASSIGN_OR_RETURN(
      std::vector<float> values,
      ReadValues(place, shard.begin * inner, (rows - 1) * stride + run, files));
  if (run == stride) return values;
  for (int64_t row = 1; row < rows; ++row) {
    std::memmove(&values[static_cast<size_t>(row * run)],
                 &values[static_cast<size_t>(row * stride)],
                 static_cast<size_t>(run) * sizeof(float));
  }
  values.resize(static_cast<size_t>(rows * run));
  return values;
}

}  // namespace

absl::Status ImportHuggingFace(const std::string& folder,
                               const Tokenizer& tokenizer, FileSystem& files,
                               LanguageModel* model, Stream& stream) {
  const std::string config_path = JoinPath(folder, kModelConfigFile);
  if (!files.Exists(config_path)) {
    return absl::NotFoundError(absl::StrCat(
        folder, ": has no ", kModelConfigFile,
        "; --init_from takes a folder written by //launch:export (a "
        "checkpoint goes on with --resume)"));
  }
  CUBIT_ASSIGN_OR_RETURN(const std::string config,
                         ReadFile(files, config_path, kMaxConfigBytes));
  const absl::Status status =
      CheckHuggingFaceConfig(config, model->config(), tokenizer);
  if (!status.ok()) return InFile(config_path, status);
  CUBIT_ASSIGN_OR_RETURN(const Places places, FindTensors(folder, files));
  // Of all ranks, so that every rank refuses the same folders.
  CUBIT_ASSIGN_OR_RETURN(const auto whole,
                         LanguageModel::Create(model->config()));
  CUBIT_RETURN_IF_ERROR(CheckTensors(folder, places, whole->parameters()));
  for (const Parameter& parameter : model->parameters().parameters()) {
    const Place& place = places.at(HuggingFaceName(parameter.name));
    CUBIT_ASSIGN_OR_RETURN(const std::vector<float> local,
                           ReadLocalPart(place, parameter.shard, files));
    CopyToDevice(parameter.value.raw(), local.data(),
                 parameter.value.size_bytes(), stream);
    stream.Synchronize();
  }
  model->parameters().RefreshCompute(stream);
  return absl::OkStatus();
}

}  // namespace cubit
