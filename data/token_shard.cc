// SPDX-License-Identifier: Apache-2.0

#include "data/token_shard.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

#include "runtime/check.h"
#include "runtime/digest.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr int64_t kVerifyTokens = 1 << 20;

absl::StatusOr<TokenShardInfo> ReadInfo(Hdf5Reader& reader) {
  TokenShardInfo info;
  const std::pair<const char*, std::string*> strings[] = {
      {"tokenizer", &info.tokenizer},
      {"tokenizer_sha256", &info.tokenizer_sha256},
      {"split", &info.split},
      {"source", &info.source},
      {"tokens_xxh3_128", &info.tokens_xxh3_128},
      {"created", &info.created},
      {"writer", &info.writer},
  };
  const std::pair<const char*, int64_t*> integers[] = {
      {"vocab_size", &info.vocab_size},
      {"eot_id", &info.eot_id},
      {"num_tokens", &info.num_tokens},
      {"num_documents", &info.num_documents},
      {"max_token_id", &info.max_token_id},
  };
  for (const auto& [name, value] : strings) {
    CUBIT_ASSIGN_OR_RETURN(*value, reader.StringAttribute(name));
  }
  for (const auto& [name, value] : integers) {
    CUBIT_ASSIGN_OR_RETURN(*value, reader.IntegerAttribute(name));
  }
  return info;
}

// The version comes first: another one may have other attributes.
absl::Status CheckFinished(Hdf5Reader& reader) {
  CUBIT_ASSIGN_OR_RETURN(const int64_t version,
                         reader.IntegerAttribute("format_version"));
  if (version != kTokenShardVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat(reader.path(), ": attribute format_version is ", version,
                     ", this program reads ", kTokenShardVersion,
                     "; prepare the data again "
                     "or use the version of the program that wrote it"));
  }
  CUBIT_ASSIGN_OR_RETURN(const int64_t complete,
                         reader.IntegerAttribute("complete"));
  if (complete != 1) {
    return absl::DataLossError(
        absl::StrCat(reader.path(), ": attribute complete is ", complete,
                     ", 1 wanted: unfinished; prepare the data again"));
  }
  return absl::OkStatus();
}

absl::Status CheckInfo(const std::string& path, const TokenShardInfo& info) {
  const auto refuse = [&path](absl::string_view attribute, int64_t value,
                              absl::string_view wanted) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": attribute ", attribute, " is ", value, ", wanted ", wanted));
  };
  if (info.vocab_size < 1 || info.vocab_size > int64_t{1} << 31) {
    return refuse("vocab_size", info.vocab_size, "1 to 2^31");
  }
  if (info.eot_id < 0 || info.eot_id >= info.vocab_size) {
    return refuse("eot_id", info.eot_id, "an id of the vocabulary");
  }
  if (info.max_token_id < 0 || info.max_token_id >= info.vocab_size) {
    return refuse("max_token_id", info.max_token_id,
                  absl::StrCat("less than vocab_size, ", info.vocab_size));
  }
  if (info.num_documents < 1 || info.num_documents > info.num_tokens) {
    return refuse("num_documents", info.num_documents, "1 to num_tokens");
  }
  return absl::OkStatus();
}

absl::Status CheckArray(const std::string& path, const std::string& name,
                        const Hdf5Array& array, Hdf5Type type, int64_t size) {
  if (array.type() == type && array.size() == size) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      path, ": /", name, " is ", NameOf(array.type()), " [", array.size(),
      "], the attributes ask for ", NameOf(type), " [", size, "]"));
}

template <typename Stored>
void Widen(const std::vector<char>& stored, int64_t count, int32_t* tokens) {
  for (int64_t i = 0; i < count; ++i) {
    Stored id;
    std::memcpy(&id, stored.data() + i * static_cast<int64_t>(sizeof(id)),
                sizeof(id));
    tokens[i] = static_cast<int32_t>(id);
  }
}

}  // namespace

TokenShard::TokenShard(std::string path, TokenShardInfo info, Hdf5Array tokens,
                       Hdf5Array document_offsets)
    : path_(std::move(path)),
      info_(std::move(info)),
      tokens_(std::move(tokens)),
      document_offsets_(std::move(document_offsets)) {}

absl::StatusOr<TokenShard> TokenShard::Open(const std::string& path,
                                            int64_t cache_bytes) {
  CUBIT_ASSIGN_OR_RETURN(Hdf5Reader reader, Hdf5Reader::Open(path));
  CUBIT_RETURN_IF_ERROR(CheckFinished(reader));
  CUBIT_ASSIGN_OR_RETURN(TokenShardInfo info, ReadInfo(reader));
  CUBIT_RETURN_IF_ERROR(CheckInfo(path, info));
  CUBIT_ASSIGN_OR_RETURN(Hdf5Array tokens,
                         reader.OpenArray("tokens", cache_bytes));
  CUBIT_RETURN_IF_ERROR(CheckArray(
      path, "tokens", tokens, TokenType(info.vocab_size), info.num_tokens));
  CUBIT_ASSIGN_OR_RETURN(Hdf5Array offsets,
                         reader.OpenArray("document_offsets", 0));
  CUBIT_RETURN_IF_ERROR(CheckArray(path, "document_offsets", offsets,
                                   Hdf5Type::kUint64, info.num_documents + 1));
  return TokenShard(path, std::move(info), std::move(tokens),
                    std::move(offsets));
}

absl::Status TokenShard::ReadTokens(int64_t begin, int64_t count,
                                    int32_t* tokens) {
  buffer_.resize(static_cast<size_t>(count * SizeOf(tokens_.type())));
  CUBIT_RETURN_IF_ERROR(tokens_.Read(begin, count, buffer_.data()));
  if (tokens_.type() == Hdf5Type::kUint16) {
    Widen<uint16_t>(buffer_, count, tokens);
  } else {
    // Ids of 2^31 and more become negative, which is out of range too.
    Widen<uint32_t>(buffer_, count, tokens);
  }
  for (int64_t i = 0; i < count; ++i) {
    if (tokens[i] >= 0 && tokens[i] < info_.vocab_size) continue;
    return absl::DataLossError(absl::StrCat(
        path_, ": /tokens at offset ", begin + i, ": id ",
        static_cast<uint32_t>(tokens[i]), " is beyond the vocabulary of ",
        info_.vocab_size, "; prepare the data again"));
  }
  return absl::OkStatus();
}

absl::StatusOr<TokenShard::Range> TokenShard::DocumentRange(int64_t document) {
  CUBIT_CHECK(document >= 0 && document < info_.num_documents);
  uint64_t offsets[2];
  CUBIT_RETURN_IF_ERROR(document_offsets_.Read(document, 2, offsets));
  if (offsets[0] >= offsets[1] ||
      offsets[1] > static_cast<uint64_t>(info_.num_tokens)) {
    return absl::DataLossError(absl::StrCat(
        path_, ": /document_offsets at offset ", document, ": ", offsets[0],
        ", ", offsets[1], " do not increase within ", info_.num_tokens));
  }
  return Range{static_cast<int64_t>(offsets[0]),
               static_cast<int64_t>(offsets[1])};
}

absl::Status TokenShard::VerifyOffsets(const std::vector<int64_t>& documents,
                                       int64_t first) {
  std::vector<uint64_t> offsets(documents.size());
  const int64_t count = static_cast<int64_t>(documents.size());
  if (first + count > document_offsets_.size()) {
    return absl::DataLossError(
        absl::StrCat(path_, ": /tokens has more end-of-text ids than the ",
                     info_.num_documents, " documents of /document_offsets"));
  }
  CUBIT_RETURN_IF_ERROR(document_offsets_.Read(first, count, offsets.data()));
  for (int64_t i = 0; i < count; ++i) {
    if (offsets[i] == static_cast<uint64_t>(documents[i])) continue;
    return absl::DataLossError(absl::StrCat(
        path_, ": /document_offsets at offset ", first + i, ": is ", offsets[i],
        ", /tokens has its end-of-text id at ", documents[i]));
  }
  return absl::OkStatus();
}

absl::Status TokenShard::Verify() {
  Xxh3_128Stream digest;
  std::vector<int32_t> tokens(
      static_cast<size_t>(std::min(kVerifyTokens, info_.num_tokens)));
  std::vector<int64_t> documents;
  int64_t checked_documents = 0;
  int64_t max_token_id = 0;
  for (int64_t begin = 0; begin < info_.num_tokens; begin += kVerifyTokens) {
    const int64_t count = std::min(kVerifyTokens, info_.num_tokens - begin);
    CUBIT_RETURN_IF_ERROR(ReadTokens(begin, count, tokens.data()));
    digest.Update(buffer_.data(), buffer_.size());
    documents.clear();
    for (int64_t i = 0; i < count; ++i) {
      max_token_id = std::max<int64_t>(max_token_id, tokens[i]);
      if (tokens[i] == info_.eot_id) documents.push_back(begin + i);
    }
    CUBIT_RETURN_IF_ERROR(VerifyOffsets(documents, checked_documents));
    checked_documents += static_cast<int64_t>(documents.size());
  }
  CUBIT_RETURN_IF_ERROR(VerifyOffsets({info_.num_tokens}, checked_documents));
  if (checked_documents != info_.num_documents) {
    return absl::DataLossError(absl::StrCat(
        path_, ": /tokens has ", checked_documents,
        " end-of-text ids, attribute num_documents is ", info_.num_documents));
  }
  if (digest.Hex() != info_.tokens_xxh3_128) {
    return absl::DataLossError(
        absl::StrCat(path_, ": /tokens has digest ", digest.Hex(),
                     ", attribute tokens_xxh3_128 is ", info_.tokens_xxh3_128));
  }
  if (max_token_id != info_.max_token_id) {
    return absl::DataLossError(
        absl::StrCat(path_, ": /tokens has ids up to ", max_token_id,
                     ", attribute max_token_id is ", info_.max_token_id));
  }
  return absl::OkStatus();
}

}  // namespace cubit
