// SPDX-License-Identifier: Apache-2.0

#include "data/tokenizer.h"

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

#include "data/bpe_tokenizer.h"
#include "data/byte_tokenizer.h"
#include "data/compressed_reader.h"
#include "data/tokenizer_files.h"
#include "data/tokenizer_json.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

// Vocabularies of 256,000 tokens have files of 20 to 35 MB.
constexpr int64_t kMaxFileBytes = 64 << 20;

constexpr char kTokenizerJson[] = "tokenizer.json";
constexpr char kTiktokenSuffix[] = ".tiktoken";

// Names under which the two files of OpenAI's format come.
struct Pair {
  const char* encoder;
  const char* merges;
};
constexpr Pair kPairs[] = {{"encoder.json", "vocab.bpe"},
                           {"vocab.json", "merges.txt"}};

constexpr char kWanted[] =
    "wanted: \"byte\", a tokenizer.json, a .tiktoken file, or a folder with "
    "one of these, with encoder.json and vocab.bpe, or saved by Cubit";

using LoadedTokenizer = absl::StatusOr<std::unique_ptr<Tokenizer>>;

absl::Status InFile(const absl::Status& status, const std::string& path) {
  return absl::Status(status.code(),
                      absl::StrCat(path, ": ", status.message()));
}

absl::StatusOr<TokenizerFile> ReadTokenizerFile(const std::string& path) {
  TokenizerFile file;
  CUBIT_ASSIGN_OR_RETURN(auto reader, OpenCompressedFile(path));
  CUBIT_ASSIGN_OR_RETURN(file.contents,
                         ReadToEnd(*reader, path, kMaxFileBytes));
  file.name = std::filesystem::path(std::string(WithoutCompressionSuffix(path)))
                  .filename()
                  .string();
  return file;
}

LoadedTokenizer MakeFrom(absl::StatusOr<BpeVocabulary> vocabulary,
                         std::vector<TokenizerFile> files,
                         const std::string& path) {
  if (!vocabulary.ok()) return InFile(vocabulary.status(), path);
  LoadedTokenizer tokenizer =
      MakeBpeTokenizer(*std::move(vocabulary), std::move(files));
  if (!tokenizer.ok()) return InFile(tokenizer.status(), path);
  return tokenizer;
}

// The kind of a single file is known by what it holds: JSON begins with "{".
LoadedTokenizer LoadFile(const std::string& path) {
  CUBIT_ASSIGN_OR_RETURN(TokenizerFile file, ReadTokenizerFile(path));
  if (file.name == kByteTokenizerFile) {
    const absl::Status status = CheckByteTokenizerFile(file.contents);
    if (!status.ok()) return InFile(status, path);
    return MakeByteTokenizer();
  }
  const size_t begin = file.contents.find_first_not_of(" \t\r\n");
  if (begin == std::string::npos) {
    return InFile(absl::InvalidArgumentError("is empty"), path);
  }
  // Saved under the names by which a folder is recognised.
  if (file.contents[begin] == '{') {
    file.name = kTokenizerJson;
    absl::StatusOr<BpeVocabulary> vocabulary =
        ParseTokenizerJson(file.contents);
    return MakeFrom(std::move(vocabulary), {std::move(file)}, path);
  }
  if (!absl::EndsWith(file.name, kTiktokenSuffix)) file.name += kTiktokenSuffix;
  absl::StatusOr<BpeVocabulary> vocabulary = ParseTiktoken(file.contents);
  return MakeFrom(std::move(vocabulary), {std::move(file)}, path);
}

LoadedTokenizer LoadPair(const std::string& encoder_path,
                         const std::string& merges_path) {
  CUBIT_ASSIGN_OR_RETURN(TokenizerFile encoder,
                         ReadTokenizerFile(encoder_path));
  CUBIT_ASSIGN_OR_RETURN(TokenizerFile merges, ReadTokenizerFile(merges_path));
  absl::StatusOr<BpeVocabulary> vocabulary =
      ParseEncoderJson(encoder.contents, merges.contents);
  return MakeFrom(std::move(vocabulary),
                  {std::move(encoder), std::move(merges)},
                  absl::StrCat(encoder_path, " with ", merges_path));
}

// The path of `name` in a folder of `names`, compressed or not; "" if none.
std::string FindFile(const std::string& folder,
                     const std::vector<std::string>& names,
                     absl::string_view name) {
  for (const std::string& candidate : names) {
    if (WithoutCompressionSuffix(candidate) == name) {
      return JoinPath(folder, candidate);
    }
  }
  return "";
}

LoadedTokenizer LoadFolder(const std::string& folder) {
  CUBIT_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                         FileSystem::Posix().List(folder));
  const std::string byte_file = FindFile(folder, names, kByteTokenizerFile);
  if (!byte_file.empty()) return LoadFile(byte_file);
  const std::string json_file = FindFile(folder, names, kTokenizerJson);
  for (const Pair& pair : kPairs) {
    const std::string encoder = FindFile(folder, names, pair.encoder);
    const std::string merges = FindFile(folder, names, pair.merges);
    if (!encoder.empty() && !merges.empty()) return LoadPair(encoder, merges);
    // Hugging Face's tokenizer.json says more than its pair.
    if (!json_file.empty()) return LoadFile(json_file);
    if (encoder.empty() != merges.empty()) {
      return absl::NotFoundError(absl::StrCat(
          folder, ": has ", encoder.empty() ? pair.merges : pair.encoder,
          " but no ", encoder.empty() ? pair.encoder : pair.merges));
    }
  }
  for (const std::string& name : names) {
    if (absl::EndsWith(WithoutCompressionSuffix(name), kTiktokenSuffix)) {
      return LoadFile(JoinPath(folder, name));
    }
  }
  return absl::NotFoundError(
      absl::StrCat(folder, ": holds no tokenizer; ", kWanted));
}

// Whether a folder is known as a tokenizer's by a file of this name.
bool IsTokenizerFile(absl::string_view name) {
  const absl::string_view plain = WithoutCompressionSuffix(name);
  for (const Pair& pair : kPairs) {
    if (plain == pair.encoder || plain == pair.merges) return true;
  }
  return plain == kByteTokenizerFile || plain == kTokenizerJson ||
         absl::EndsWith(plain, kTiktokenSuffix);
}

// A file left by another tokenizer could be the one that LoadTokenizer takes.
absl::Status CheckNoOtherTokenizer(const Tokenizer& tokenizer,
                                   FileSystem& files,
                                   const std::string& folder) {
  CUBIT_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                         files.List(folder));
  for (const std::string& name : names) {
    bool is_ours = false;
    for (const TokenizerFile& file : tokenizer.files()) {
      is_ours |= file.name == name;
    }
    if (!is_ours && IsTokenizerFile(name)) {
      return absl::FailedPreconditionError(absl::StrCat(
          JoinPath(folder, name),
          ": belongs to another tokenizer than the one to be saved there; "
          "choose another folder or remove it"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

LoadedTokenizer LoadTokenizer(const std::string& spec) {
  if (spec == "byte") return MakeByteTokenizer();
  std::error_code error;
  const std::filesystem::file_status status =
      std::filesystem::status(spec, error);
  if (!std::filesystem::exists(status)) {
    return absl::NotFoundError(
        absl::StrCat("tokenizer \"", spec, "\": no such file; ", kWanted));
  }
  return std::filesystem::is_directory(status) ? LoadFolder(spec)
                                               : LoadFile(spec);
}

absl::Status SaveTokenizer(const Tokenizer& tokenizer, FileSystem& files,
                           const std::string& folder) {
  CUBIT_RETURN_IF_ERROR(files.CreateFolders(folder));
  CUBIT_RETURN_IF_ERROR(CheckNoOtherTokenizer(tokenizer, files, folder));
  for (const TokenizerFile& file : tokenizer.files()) {
    CUBIT_RETURN_IF_ERROR(
        WriteFileAtomically(files, JoinPath(folder, file.name), file.contents));
  }
  return absl::OkStatus();
}

}  // namespace cubit
