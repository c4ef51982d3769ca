// SPDX-License-Identifier: Apache-2.0

#include "data/byte_tokenizer.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

#include "data/json_events.h"
#include "runtime/digest.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr int32_t kEndOfTextId = 256;
constexpr int64_t kVersion = 1;

class ByteTokenizer : public Tokenizer {
 public:
  ByteTokenizer()
      : name_("byte"),
        // Text rather than a table: there is nothing else to define.
        sha256_(Sha256Hex("cubit-byte-1\n")),
        files_({{kByteTokenizerFile,
                 absl::StrCat("{\"type\": \"byte\", \"version\": ", kVersion,
                              "}\n")}}) {}

  void Encode(absl::string_view text,
              std::vector<int32_t>* ids) const override {
    ids->reserve(ids->size() + text.size());
    for (const char c : text) ids->push_back(static_cast<unsigned char>(c));
  }

  void Decode(absl::Span<const int32_t> ids, std::string* text) const override {
    for (const int32_t id : ids) {
      if (id >= 0 && id < kEndOfTextId) text->push_back(static_cast<char>(id));
    }
  }

  const std::string& name() const override { return name_; }
  int64_t vocab_size() const override { return kEndOfTextId + 1; }
  int32_t eot_id() const override { return kEndOfTextId; }
  const std::string& sha256() const override { return sha256_; }
  const std::vector<TokenizerFile>& files() const override { return files_; }

 private:
  const std::string name_;
  const std::string sha256_;
  const std::vector<TokenizerFile> files_;
};

class FieldReader : public JsonHandler {
 public:
  absl::Status OnValue(const JsonPath& path, const JsonValue& value) override {
    if (path.size() != 1) return absl::OkStatus();
    if (path[0] == "type" && value.kind == JsonValue::Kind::kString) {
      type = *value.string;
    }
    if (path[0] == "version" && value.kind == JsonValue::Kind::kInteger) {
      version = value.integer;
    }
    return absl::OkStatus();
  }

  std::string type;
  int64_t version = 0;
};

}  // namespace

const char kByteTokenizerFile[] = "byte_tokenizer.json";

std::unique_ptr<Tokenizer> MakeByteTokenizer() {
  return std::make_unique<ByteTokenizer>();
}

absl::Status CheckByteTokenizerFile(absl::string_view contents) {
  FieldReader reader;
  CUBIT_RETURN_IF_ERROR(ReadJson(contents, /*unique_keys=*/true, &reader));
  if (reader.type != "byte") {
    return absl::InvalidArgumentError("has no field \"type\": \"byte\"");
  }
  if (reader.version != kVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat("has version ", reader.version, ", this program reads ",
                     kVersion, "; prepare the data again"));
  }
  return absl::OkStatus();
}

}  // namespace cubit
