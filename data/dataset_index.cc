// SPDX-License-Identifier: Apache-2.0

#include "data/dataset_index.h"

#include <algorithm>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "nlohmann/json.hpp"

#include "runtime/status_macros.h"

namespace cubit {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kFormat[] = "cubit token shards";
constexpr int64_t kMaxIndexBytes = int64_t{256} << 20;
constexpr int kMaxDepth = 8;

// Members of one object, with errors that name it.
class Members {
 public:
  Members(const Json& object, std::string where)
      : object_(object), where_(std::move(where)) {}

  absl::Status Get(const char* name, std::string* value) const {
    const auto found = object_.find(name);
    if (found == object_.end() || !found->is_string()) {
      return Error(name, "a string");
    }
    *value = found->get<std::string>();
    return absl::OkStatus();
  }

  absl::Status Get(const char* name, int64_t* value) const {
    const auto found = object_.find(name);
    if (found == object_.end() || !found->is_number_integer() ||
        found->get<double>() < 0 || found->get<double>() > 9e18) {
      return Error(name, "an integer of 0 or more");
    }
    *value = found->get<int64_t>();
    return absl::OkStatus();
  }

  absl::Status Error(absl::string_view name, absl::string_view wanted) const {
    return absl::InvalidArgumentError(
        absl::StrCat(where_, ": member \"", name, "\" is missing or not ",
                     wanted, "; prepare the data again"));
  }

 private:
  const Json& object_;
  std::string where_;
};

absl::StatusOr<ShardEntry> ParseEntry(const Json& object, size_t number,
                                      const std::string& path) {
  const std::string where = absl::StrCat(path, ": shards[", number, "]");
  if (!object.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": is not an object; prepare the data again"));
  }
  const Members members(object, where);
  ShardEntry entry;
  CUBIT_RETURN_IF_ERROR(members.Get("file", &entry.file));
  CUBIT_RETURN_IF_ERROR(members.Get("split", &entry.split));
  CUBIT_RETURN_IF_ERROR(members.Get("tokens", &entry.tokens));
  CUBIT_RETURN_IF_ERROR(members.Get("documents", &entry.documents));
  CUBIT_RETURN_IF_ERROR(members.Get("bytes", &entry.bytes));
  CUBIT_RETURN_IF_ERROR(members.Get("xxh3_128", &entry.xxh3_128));
  CUBIT_RETURN_IF_ERROR(members.Get("tokens_xxh3_128", &entry.tokens_xxh3_128));
  const std::string wanted = TokenShardName(static_cast<int64_t>(number));
  if (entry.file != wanted) {
    return absl::InvalidArgumentError(absl::StrCat(
        where, ": file is \"", entry.file, "\", \"", wanted,
        "\" wanted: shards were reordered; prepare the data again"));
  }
  return entry;
}

absl::Status CheckFormat(const Members& members, const std::string& path) {
  std::string format;
  int64_t version = 0;
  CUBIT_RETURN_IF_ERROR(members.Get("format", &format));
  CUBIT_RETURN_IF_ERROR(members.Get("format_version", &version));
  if (format == kFormat && version == kTokenShardVersion) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat(path, ": is \"", format, "\" version ", version,
                   ", this program reads \"", kFormat, "\" version ",
                   kTokenShardVersion, "; prepare the data again"));
}

// Names and sizes in the folder against the index.
absl::Status CheckFolder(FileSystem& files, const std::string& folder,
                         const DatasetIndex& index) {
  CUBIT_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                         files.List(folder));
  const std::set<std::string> present(names.begin(), names.end());
  std::set<std::string> listed;
  for (const ShardEntry& entry : index.shards) {
    const std::string path = JoinPath(folder, entry.file);
    listed.insert(entry.file);
    if (present.count(entry.file) == 0) {
      return absl::FailedPreconditionError(absl::StrCat(
          path, ": is missing; ", kIndexName, " lists ", index.shards.size(),
          " shards. Put it back or prepare the data again"));
    }
    CUBIT_ASSIGN_OR_RETURN(const int64_t bytes, files.FileSize(path));
    if (bytes != entry.bytes) {
      return absl::DataLossError(absl::StrCat(
          path, ": has ", bytes, " bytes, ", kIndexName, " says ", entry.bytes,
          ": truncated or exchanged. Prepare the data again"));
    }
  }
  for (const std::string& name : names) {
    if (!IsShardName(name) || listed.count(name) != 0) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        JoinPath(folder, name), ": is not listed in ", kIndexName,
        ": it was added later. Remove it or prepare the data again"));
  }
  return absl::OkStatus();
}

}  // namespace

bool IsShardName(absl::string_view name) {
  return absl::ConsumePrefix(&name, "shard_") &&
         absl::ConsumeSuffix(&name, ".h5") && name.size() >= 5 &&
         std::all_of(name.begin(), name.end(), absl::ascii_isdigit);
}

int JsonDepth(absl::string_view json) {
  int depth = 0;
  int deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      deepest = std::max(deepest, ++depth);
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return deepest;
}

ShardEntry MakeShardEntry(int64_t number, const WrittenShard& shard) {
  ShardEntry entry;
  entry.file = TokenShardName(number);
  entry.split = shard.info.split;
  entry.tokens = shard.info.num_tokens;
  entry.documents = shard.info.num_documents;
  entry.bytes = shard.bytes;
  entry.xxh3_128 = shard.xxh3_128;
  entry.tokens_xxh3_128 = shard.info.tokens_xxh3_128;
  return entry;
}

std::string DatasetIndexToJson(const DatasetIndex& index) {
  Json root;
  root["format"] = kFormat;
  root["format_version"] = kTokenShardVersion;
  root["tokenizer"] = index.tokenizer;
  root["tokenizer_sha256"] = index.tokenizer_sha256;
  root["vocab_size"] = index.vocab_size;
  root["eot_id"] = index.eot_id;
  root["source"] = index.source;
  root["shards"] = Json::array();
  for (const ShardEntry& shard : index.shards) {
    Json entry;
    entry["file"] = shard.file;
    entry["split"] = shard.split;
    entry["tokens"] = shard.tokens;
    entry["documents"] = shard.documents;
    entry["bytes"] = shard.bytes;
    entry["xxh3_128"] = shard.xxh3_128;
    entry["tokens_xxh3_128"] = shard.tokens_xxh3_128;
    root["shards"].push_back(std::move(entry));
  }
  // Invalid UTF-8 (in a path used as the source) is replaced: JSON has none.
  return root.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

absl::StatusOr<DatasetIndex> ParseDatasetIndex(absl::string_view json,
                                               const std::string& path) {
  if (JsonDepth(json) > kMaxDepth) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is nested deeper than ", kMaxDepth,
                     " levels; prepare the data again"));
  }
  const Json root = Json::parse(json.begin(), json.end(), nullptr,
                                /*allow_exceptions=*/false);
  if (!root.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": is not a JSON object: damaged; prepare the data again"));
  }
  const Members members(root, path);
  CUBIT_RETURN_IF_ERROR(CheckFormat(members, path));
  DatasetIndex index;
  CUBIT_RETURN_IF_ERROR(members.Get("tokenizer", &index.tokenizer));
  CUBIT_RETURN_IF_ERROR(
      members.Get("tokenizer_sha256", &index.tokenizer_sha256));
  CUBIT_RETURN_IF_ERROR(members.Get("vocab_size", &index.vocab_size));
  CUBIT_RETURN_IF_ERROR(members.Get("eot_id", &index.eot_id));
  CUBIT_RETURN_IF_ERROR(members.Get("source", &index.source));
  const auto shards = root.find("shards");
  if (shards == root.end() || !shards->is_array() || shards->empty()) {
    return members.Error("shards", "a list of shards");
  }
  for (size_t i = 0; i < shards->size(); ++i) {
    CUBIT_ASSIGN_OR_RETURN(ShardEntry entry, ParseEntry((*shards)[i], i, path));
    index.shards.push_back(std::move(entry));
  }
  return index;
}

absl::StatusOr<DatasetIndex> ReadDatasetIndex(FileSystem& files,
                                              const std::string& folder) {
  const std::string path = JoinPath(folder, kIndexName);
  if (!files.Exists(folder)) {
    return absl::NotFoundError(absl::StrCat(
        folder, ": no such folder; a folder written by //data:prepare wanted"));
  }
  if (!files.Exists(path)) {
    return absl::FailedPreconditionError(absl::StrCat(
        folder, ": has no ", kIndexName,
        ": not token shards, or an unfinished preparation (then run "
        "//data:prepare again)"));
  }
  CUBIT_ASSIGN_OR_RETURN(const std::string json,
                         ReadFile(files, path, kMaxIndexBytes));
  CUBIT_ASSIGN_OR_RETURN(DatasetIndex index, ParseDatasetIndex(json, path));
  CUBIT_RETURN_IF_ERROR(CheckFolder(files, folder, index));
  return index;
}

absl::Status CheckShardAgainstIndex(const TokenShard& shard,
                                    const ShardEntry& entry,
                                    const DatasetIndex& index) {
  const TokenShardInfo& info = shard.info();
  const auto compare = [&shard](absl::string_view attribute, const auto& found,
                                const auto& wanted) {
    if (found == wanted) return absl::OkStatus();
    return absl::FailedPreconditionError(absl::StrCat(
        shard.path(), ": attribute ", attribute, " is ", found, ", ",
        kIndexName, " says ", wanted,
        ": a shard of another data set or place. Prepare the data again"));
  };
  CUBIT_RETURN_IF_ERROR(compare("tokenizer_sha256", info.tokenizer_sha256,
                                index.tokenizer_sha256));
  CUBIT_RETURN_IF_ERROR(compare("tokenizer", info.tokenizer, index.tokenizer));
  CUBIT_RETURN_IF_ERROR(
      compare("vocab_size", info.vocab_size, index.vocab_size));
  CUBIT_RETURN_IF_ERROR(compare("eot_id", info.eot_id, index.eot_id));
  CUBIT_RETURN_IF_ERROR(compare("split", info.split, entry.split));
  CUBIT_RETURN_IF_ERROR(compare("num_tokens", info.num_tokens, entry.tokens));
  CUBIT_RETURN_IF_ERROR(
      compare("num_documents", info.num_documents, entry.documents));
  return compare("tokens_xxh3_128", info.tokens_xxh3_128,
                 entry.tokens_xxh3_128);
}

}  // namespace cubit
