// SPDX-License-Identifier: Apache-2.0

#include "data/prepare_request.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

#include "data/dataset_index.h"
#include "data/text_source.h"
#include "data/token_shard.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kFormat[] = "cubit preparation";
constexpr int kVersion = 1;
constexpr int kMaxDepth = 8;
constexpr int64_t kMinShardTokens = 1;
constexpr int64_t kMaxShardTokens = int64_t{1} << 30;
constexpr size_t kMaxSourceBytes = 4096;

std::string NameOf(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}

absl::StatusOr<PrepareInput> Describe(const std::string& path) {
  struct stat info = {};
  if (stat(path.c_str(), &info) != 0) {
    return absl::NotFoundError(
        absl::StrCat(path, ": cannot read: ", std::strerror(errno)));
  }
  PrepareInput input;
  input.path = path;
  input.bytes = info.st_size;
  input.modified_ns =
      int64_t{info.st_mtim.tv_sec} * 1000000000 + info.st_mtim.tv_nsec;
  return input;
}

// What the shards' attribute says: the first names.
std::string DescribeSource(const std::vector<std::string>& paths) {
  constexpr size_t kNames = 3;
  std::string source;
  for (size_t i = 0; i < std::min(kNames, paths.size()); ++i) {
    absl::StrAppend(&source, i == 0 ? "" : ", ", NameOf(paths[i]));
  }
  if (paths.size() > kNames) {
    absl::StrAppend(&source, " and ", paths.size() - kNames, " more");
  }
  return source;
}

absl::Status Damaged(const std::string& path) {
  return absl::InvalidArgumentError(absl::StrCat(
      path, ": is not the ", kFormat, " record of version ", kVersion,
      ": damaged or of another program. Choose another --out"));
}

bool IsString(const Json& object, const char* name) {
  return object.contains(name) && object[name].is_string();
}

bool IsInteger(const Json& object, const char* name) {
  return object.contains(name) && object[name].is_number_integer();
}

absl::StatusOr<PrepareInput> ParseInput(const Json& object,
                                        const std::string& path) {
  if (!object.is_object() || !IsString(object, "path") ||
      !IsInteger(object, "bytes") || !IsInteger(object, "modified_ns") ||
      !IsString(object, "xxh3_128")) {
    return Damaged(path);
  }
  PrepareInput input;
  input.path = object["path"].get<std::string>();
  input.bytes = object["bytes"].get<int64_t>();
  input.modified_ns = object["modified_ns"].get<int64_t>();
  input.xxh3_128 = object["xxh3_128"].get<std::string>();
  return input;
}

absl::StatusOr<bool> SameContents(FileSystem& files, const PrepareInput& found,
                                  PrepareInput* wanted) {
  if (found.bytes != wanted->bytes) return false;
  if (found.modified_ns == wanted->modified_ns) return true;
  if (wanted->xxh3_128.empty()) {
    CUBIT_ASSIGN_OR_RETURN(wanted->xxh3_128, FileDigest(files, wanted->path));
  }
  return found.xxh3_128 == wanted->xxh3_128;
}

template <typename T>
void Compare(absl::string_view what, const T& found, const T& wanted,
             std::string* difference) {
  if (found == wanted) return;
  absl::StrAppend(difference, difference->empty() ? "" : "; ", what, " ", found,
                  " there, ", wanted, " here");
}

}  // namespace

absl::Status CheckPrepareOptions(const PrepareOptions& options) {
  const auto refuse = [](const auto&... words) {
    return absl::InvalidArgumentError(absl::StrCat(words...));
  };
  if (options.out.empty()) {
    return refuse("--out is missing: the folder for the shards");
  }
  if (options.threads < 1) {
    return refuse("--threads=", options.threads, ": 1 or more wanted");
  }
  if (options.shard_tokens < kMinShardTokens ||
      options.shard_tokens > kMaxShardTokens) {
    return refuse("--shard_tokens=", options.shard_tokens, ": ",
                  kMinShardTokens, " to ", kMaxShardTokens, " wanted");
  }
  if (!(options.validation_fraction >= 0 &&
        options.validation_fraction <= 0.5)) {
    return refuse("--validation_fraction=", options.validation_fraction,
                  ": 0 (no validation split) to 0.5 wanted");
  }
  if (options.source.size() > kMaxSourceBytes ||
      absl::StrContains(options.source, '\0')) {
    return refuse("--source has ", options.source.size(), " bytes; at most ",
                  kMaxSourceBytes, " without zero bytes wanted");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> ListPrepareInputs(
    const PrepareOptions& options) {
  CUBIT_ASSIGN_OR_RETURN(const std::vector<std::string> found,
                         ListTextFiles(options.inputs));
  std::error_code error;
  const std::string out =
      std::filesystem::weakly_canonical(options.out, error).string() + "/";
  std::vector<std::string> paths;
  for (const std::string& path : found) {
    const std::string real =
        std::filesystem::weakly_canonical(path, error).string();
    if (!absl::StartsWith(real, out)) paths.push_back(path);
  }
  if (paths.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.out,
                     ": all inputs lie in --out itself; choose "
                     "another --out"));
  }
  return paths;
}

absl::StatusOr<PrepareRequest> MakePrepareRequest(
    const PrepareOptions& options, const Tokenizer& tokenizer,
    const std::vector<std::string>& paths) {
  PrepareRequest request;
  request.tokenizer = tokenizer.name();
  request.tokenizer_sha256 = tokenizer.sha256();
  request.shard_tokens = options.shard_tokens;
  request.validation_fraction = options.validation_fraction;
  request.source =
      options.source.empty() ? DescribeSource(paths) : options.source;
  for (const std::string& path : paths) {
    CUBIT_ASSIGN_OR_RETURN(PrepareInput input, Describe(path));
    request.inputs.push_back(std::move(input));
  }
  return request;
}

std::string PrepareRequestToJson(const PrepareRequest& request) {
  Json root;
  root["format"] = kFormat;
  root["format_version"] = kVersion;
  root["tokenizer"] = request.tokenizer;
  root["tokenizer_sha256"] = request.tokenizer_sha256;
  root["shard_tokens"] = request.shard_tokens;
  root["validation_fraction"] = request.validation_fraction;
  root["source"] = request.source;
  root["inputs"] = Json::array();
  for (const PrepareInput& input : request.inputs) {
    Json entry;
    entry["path"] = input.path;
    entry["bytes"] = input.bytes;
    entry["modified_ns"] = input.modified_ns;
    entry["xxh3_128"] = input.xxh3_128;
    root["inputs"].push_back(std::move(entry));
  }
  return root.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

absl::StatusOr<PrepareRequest> ParsePrepareRequest(absl::string_view json,
                                                   const std::string& path) {
  if (JsonDepth(json) > kMaxDepth) return Damaged(path);
  const Json root = Json::parse(json.begin(), json.end(), nullptr,
                                /*allow_exceptions=*/false);
  if (!root.is_object() || !IsString(root, "format") ||
      root["format"] != kFormat || !IsInteger(root, "format_version") ||
      root["format_version"] != kVersion || !IsString(root, "tokenizer") ||
      !IsString(root, "tokenizer_sha256") || !IsInteger(root, "shard_tokens") ||
      !root.contains("validation_fraction") ||
      !root["validation_fraction"].is_number() || !IsString(root, "source") ||
      !root.contains("inputs") || !root["inputs"].is_array()) {
    return Damaged(path);
  }
  PrepareRequest request;
  request.tokenizer = root["tokenizer"].get<std::string>();
  request.tokenizer_sha256 = root["tokenizer_sha256"].get<std::string>();
  request.shard_tokens = root["shard_tokens"].get<int64_t>();
  request.validation_fraction = root["validation_fraction"].get<double>();
  request.source = root["source"].get<std::string>();
  for (const Json& object : root["inputs"]) {
    CUBIT_ASSIGN_OR_RETURN(PrepareInput input, ParseInput(object, path));
    request.inputs.push_back(std::move(input));
  }
  return request;
}

absl::Status DigestInputs(FileSystem& files, const PrepareRequest* known,
                          PrepareRequest* request) {
  for (size_t i = 0; i < request->inputs.size(); ++i) {
    PrepareInput& input = request->inputs[i];
    if (!input.xxh3_128.empty()) continue;
    const PrepareInput* const old = known != nullptr && i < known->inputs.size()
                                        ? &known->inputs[i]
                                        : nullptr;
    if (old != nullptr && old->path == input.path &&
        old->bytes == input.bytes && old->modified_ns == input.modified_ns) {
      input.xxh3_128 = old->xxh3_128;
      continue;
    }
    CUBIT_ASSIGN_OR_RETURN(input.xxh3_128, FileDigest(files, input.path));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> DifferenceOf(FileSystem& files,
                                         const PrepareRequest& found,
                                         PrepareRequest* wanted) {
  std::string difference;
  Compare("tokenizer", found.tokenizer, wanted->tokenizer, &difference);
  if (difference.empty()) {
    Compare("tokenizer SHA-256", found.tokenizer_sha256,
            wanted->tokenizer_sha256, &difference);
  }
  Compare("shard_tokens", found.shard_tokens, wanted->shard_tokens,
          &difference);
  Compare("validation_fraction", found.validation_fraction,
          wanted->validation_fraction, &difference);
  Compare("source", absl::StrCat("\"", found.source, "\""),
          absl::StrCat("\"", wanted->source, "\""), &difference);
  Compare("number of inputs", found.inputs.size(), wanted->inputs.size(),
          &difference);
  if (!difference.empty()) return difference;
  for (size_t i = 0; i < found.inputs.size(); ++i) {
    const PrepareInput& old = found.inputs[i];
    PrepareInput& input = wanted->inputs[i];
    Compare(absl::StrCat("input ", i), NameOf(old.path), NameOf(input.path),
            &difference);
    if (!difference.empty()) return difference;
    CUBIT_ASSIGN_OR_RETURN(const bool same, SameContents(files, old, &input));
    if (!same) {
      return absl::StrCat("contents of ", input.path, " (", old.bytes,
                          " bytes there, ", input.bytes, " here)");
    }
  }
  return difference;
}

}  // namespace cubit
