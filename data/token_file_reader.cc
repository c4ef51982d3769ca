// SPDX-License-Identifier: Apache-2.0

#include "data/token_file_reader.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

#include "data/text_format.h"
#include "runtime/file_system.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr int64_t kBlockElements = 256 << 10;

absl::Status Refuse(const std::string& path, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

template <typename Integer>
Integer Load(const char* bytes) {
  Integer value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

// A run of little-endian integers in a file, read in blocks.
class IntegerArray {
 public:
  enum class Type { kUint8, kUint16, kInt16, kInt32, kUint32, kInt64 };
  static int64_t SizeOf(Type type) {
    switch (type) {
      case Type::kUint8:
        return 1;
      case Type::kUint16:
      case Type::kInt16:
        return 2;
      case Type::kInt32:
      case Type::kUint32:
        return 4;
      case Type::kInt64:
        return 8;
    }
    return 8;
  }

  // `count` elements from byte `offset` of `path`.
  IntegerArray(std::string path, int64_t offset, Type type, int64_t count)
      : path_(std::move(path)), offset_(offset), type_(type), count_(count) {}

  const std::string& path() const { return path_; }
  int64_t count() const { return count_; }
  int64_t element_bytes() const { return SizeOf(type_); }

  absl::StatusOr<int64_t> At(int64_t index) {
    if (index < begin_ || index >= end_) {
      CUBIT_RETURN_IF_ERROR(ReadBlock(index));
    }
    const char* const at = block_.data() + (index - begin_) * element_bytes();
    switch (type_) {
      case Type::kUint8:
        return static_cast<uint8_t>(*at);
      case Type::kUint16:
        return Load<uint16_t>(at);
      case Type::kInt16:
        return Load<int16_t>(at);
      case Type::kInt32:
        return Load<int32_t>(at);
      case Type::kUint32:
        return Load<uint32_t>(at);
      case Type::kInt64:
        return Load<int64_t>(at);
    }
    return absl::InternalError("an element type without a size");
  }

 private:
  absl::Status ReadBlock(int64_t index) {
    begin_ = index;
    end_ = std::min(count_, index + kBlockElements);
    const int64_t bytes = (end_ - begin_) * element_bytes();
    block_.resize(static_cast<size_t>(bytes));
    absl::Status status = FileSystem::Posix().Read(
        path_, offset_ + begin_ * element_bytes(), bytes, block_.data());
    if (!status.ok()) end_ = begin_;
    return status;
  }

  const std::string path_;
  const int64_t offset_;
  const Type type_;
  const int64_t count_;
  std::vector<char> block_;  // elements [begin_, end_)
  int64_t begin_ = 0;
  int64_t end_ = 0;
};

absl::Status CheckId(const std::string& path, int64_t at, int64_t id,
                     const TokenVocabulary& vocabulary) {
  if (id >= 0 && id < vocabulary.size) return absl::OkStatus();
  return Refuse(
      path, absl::StrCat("token ", at, " is ", id,
                         ", the tokenizer has ids 0 to ", vocabulary.size - 1,
                         "; give the --tokenizer that made the file"));
}

absl::Status CheckLength(const std::string& path, size_t length, int64_t at) {
  if (static_cast<int64_t>(length) < kMaxDocumentTokens) {
    return absl::OkStatus();
  }
  return Refuse(path, absl::StrCat("has no end of text in the ",
                                   kMaxDocumentTokens, " tokens before token ",
                                   at, "; a document may not be longer"));
}

// A stream of ids with an end of text before each document.
class LlmcSource : public TokenSource {
 public:
  LlmcSource(IntegerArray tokens, const TokenVocabulary& vocabulary)
      : tokens_(std::move(tokens)), vocabulary_(vocabulary) {}

  absl::StatusOr<bool> Next(std::vector<int32_t>* ids) override {
    ids->clear();
    if (at_ == tokens_.count()) return false;
    CUBIT_ASSIGN_OR_RETURN(const int64_t first, tokens_.At(at_));
    // The file may begin inside a document.
    if (first == vocabulary_.eot_id) ++at_;
    for (; at_ < tokens_.count(); ++at_) {
      CUBIT_ASSIGN_OR_RETURN(const int64_t id, tokens_.At(at_));
      if (id == vocabulary_.eot_id) break;
      CUBIT_RETURN_IF_ERROR(CheckId(tokens_.path(), at_, id, vocabulary_));
      CUBIT_RETURN_IF_ERROR(CheckLength(tokens_.path(), ids->size(), at_));
      ids->push_back(static_cast<int32_t>(id));
    }
    return true;
  }

 private:
  IntegerArray tokens_;
  const TokenVocabulary vocabulary_;
  int64_t at_ = 0;
};

absl::StatusOr<std::unique_ptr<TokenSource>> OpenLlmc(
    const std::string& path, const TokenVocabulary& vocabulary) {
  constexpr int64_t kHeaderBytes = kLlmcHeaderInts * 4;
  FileSystem& files = FileSystem::Posix();
  CUBIT_ASSIGN_OR_RETURN(const int64_t bytes, files.FileSize(path));
  if (bytes < kHeaderBytes) {
    return Refuse(path, absl::StrCat("has ", bytes, " bytes, less than the ",
                                     kHeaderBytes, " of llm.c's header"));
  }
  char header[12];
  CUBIT_RETURN_IF_ERROR(files.Read(path, 0, sizeof(header), header));
  const auto magic = Load<int32_t>(header);
  const auto version = Load<int32_t>(header + 4);
  const int64_t count = Load<int32_t>(header + 8);
  const bool wide = magic == kLlmcMagic32 && version == kLlmcVersion32;
  if (!wide && (magic != kLlmcMagic16 || version != kLlmcVersion16)) {
    return Refuse(
        path, absl::StrCat("begins with ", magic, ", version ", version,
                           "; llm.c's token files begin with ", kLlmcMagic16,
                           ", version ", kLlmcVersion16, ", or ", kLlmcMagic32,
                           ", version ", kLlmcVersion32,
                           ". (For Megatron's, name the .idx)"));
  }
  const auto type =
      wide ? IntegerArray::Type::kUint32 : IntegerArray::Type::kUint16;
  const int64_t wanted = kHeaderBytes + count * IntegerArray::SizeOf(type);
  if (count < 0 || bytes != wanted) {
    return Refuse(path, absl::StrCat("has ", bytes, " bytes, its header's ",
                                     count, " tokens make ", wanted,
                                     bytes < wanted ? ": truncated" : ""));
  }
  return std::make_unique<LlmcSource>(
      IntegerArray(path, kHeaderBytes, type, count), vocabulary);
}

// Documents of runs of sequences.
class MegatronSource : public TokenSource {
 public:
  MegatronSource(IntegerArray lengths, IntegerArray offsets,
                 IntegerArray documents, IntegerArray tokens,
                 const TokenVocabulary& vocabulary)
      : lengths_(std::move(lengths)),
        offsets_(std::move(offsets)),
        documents_(std::move(documents)),
        tokens_(std::move(tokens)),
        vocabulary_(vocabulary) {}

  absl::StatusOr<bool> Next(std::vector<int32_t>* ids) override {
    // Ends of text inside one of the file's documents make several.
    while (next_ == pieces_.size()) {
      if (document_ + 1 >= documents_.count()) return false;
      CUBIT_RETURN_IF_ERROR(ReadDocument());
    }
    *ids = std::move(pieces_[next_++]);
    return true;
  }

 private:
  absl::Status ReadDocument() {
    CUBIT_ASSIGN_OR_RETURN(const int64_t begin, documents_.At(document_));
    CUBIT_ASSIGN_OR_RETURN(const int64_t end, documents_.At(document_ + 1));
    const bool last = document_ + 2 == documents_.count();
    if (begin != sequence_ || end < begin || end > lengths_.count() ||
        (last && end != lengths_.count())) {
      return Refuse(documents_.path(),
                    absl::StrCat("document ", document_, " has sequences ",
                                 begin, " to ", end, "; from ", sequence_,
                                 " on, of ", lengths_.count(), ", wanted"));
    }
    pieces_.clear();
    next_ = 0;
    std::vector<int32_t> ids;
    for (; sequence_ < end; ++sequence_) {
      CUBIT_RETURN_IF_ERROR(ReadSequence(&ids));
    }
    ++document_;
    Cut(ids);
    return absl::OkStatus();
  }

  absl::Status ReadSequence(std::vector<int32_t>* ids) {
    CUBIT_ASSIGN_OR_RETURN(const int64_t length, lengths_.At(sequence_));
    CUBIT_ASSIGN_OR_RETURN(const int64_t offset, offsets_.At(sequence_));
    const int64_t size = tokens_.element_bytes();
    if (length < 0 || length > tokens_.count() || offset < 0 ||
        offset % size != 0 || offset / size > tokens_.count() - length) {
      return Refuse(lengths_.path(),
                    absl::StrCat("sequence ", sequence_, " has ", length,
                                 " tokens at byte ", offset, " of a .bin of ",
                                 tokens_.count() * size, " bytes"));
    }
    for (int64_t at = offset / size; at < offset / size + length; ++at) {
      CUBIT_ASSIGN_OR_RETURN(const int64_t id, tokens_.At(at));
      CUBIT_RETURN_IF_ERROR(CheckId(tokens_.path(), at, id, vocabulary_));
      CUBIT_RETURN_IF_ERROR(CheckLength(tokens_.path(), ids->size(), at));
      ids->push_back(static_cast<int32_t>(id));
    }
    return absl::OkStatus();
  }

  // An end of text at either end of the document belongs to it; one inside
  // separates two.
  void Cut(const std::vector<int32_t>& ids) {
    auto begin = ids.begin();
    auto end = ids.end();
    if (begin != end && *(end - 1) == vocabulary_.eot_id) --end;
    if (begin != end && *begin == vocabulary_.eot_id) ++begin;
    while (true) {
      const auto cut = std::find(begin, end, vocabulary_.eot_id);
      pieces_.emplace_back(begin, cut);
      if (cut == end) return;
      begin = cut + 1;
    }
  }

  IntegerArray lengths_;
  IntegerArray offsets_;
  IntegerArray documents_;
  IntegerArray tokens_;
  const TokenVocabulary vocabulary_;
  int64_t document_ = 0;
  int64_t sequence_ = 0;
  std::vector<std::vector<int32_t>> pieces_;
  size_t next_ = 0;  // of pieces_
};

absl::StatusOr<IntegerArray::Type> MegatronType(const std::string& path,
                                                uint8_t code) {
  switch (code) {
    case 1:
      return IntegerArray::Type::kUint8;
    case 3:
      return IntegerArray::Type::kInt16;
    case kMegatronInt32:
      return IntegerArray::Type::kInt32;
    case 5:
      return IntegerArray::Type::kInt64;
    case kMegatronUint16:
      return IntegerArray::Type::kUint16;
    default:
      return Refuse(path, absl::StrCat("has elements of type ", int{code},
                                       "; 1 (uint8), 3 (int16), 4 (int32), 5 "
                                       "(int64) or 8 (uint16) wanted"));
  }
}

absl::StatusOr<std::unique_ptr<TokenSource>> OpenMegatron(
    const std::string& path, const TokenVocabulary& vocabulary) {
  FileSystem& files = FileSystem::Posix();
  CUBIT_ASSIGN_OR_RETURN(const int64_t bytes, files.FileSize(path));
  char header[kMegatronHeaderBytes] = {};
  if (bytes >= kMegatronHeaderBytes) {
    CUBIT_RETURN_IF_ERROR(files.Read(path, 0, sizeof(header), header));
  }
  if (std::memcmp(header, kMegatronMagic, kMegatronMagicBytes) != 0 ||
      Load<uint64_t>(header + kMegatronMagicBytes) != 1) {
    return Refuse(path, "is not an index of Megatron's version 1");
  }
  CUBIT_ASSIGN_OR_RETURN(const IntegerArray::Type type,
                         MegatronType(path, static_cast<uint8_t>(header[17])));
  const auto sequences = Load<uint64_t>(header + 18);
  const auto documents = Load<uint64_t>(header + 26);
  // No more than the file has bytes, so that the sums below do not overflow.
  const auto limit = static_cast<uint64_t>(bytes);
  const int64_t s = static_cast<int64_t>(std::min(sequences, limit));
  const int64_t d = static_cast<int64_t>(std::min(documents, limit));
  const int64_t wanted = kMegatronHeaderBytes + 12 * s + 8 * d;
  if (sequences > limit || documents > limit || d < 1 ||
      (bytes != wanted && bytes != wanted + s)) {
    return Refuse(path, absl::StrCat("has ", bytes, " bytes, which ", sequences,
                                     " sequences and ", documents,
                                     " entries of the document table do not "
                                     "make: damaged"));
  }
  const std::string bin = path.substr(0, path.size() - 4) + ".bin";
  CUBIT_ASSIGN_OR_RETURN(const int64_t bin_bytes, files.FileSize(bin));
  using Type = IntegerArray::Type;
  return std::make_unique<MegatronSource>(
      IntegerArray(path, kMegatronHeaderBytes, Type::kInt32, s),
      IntegerArray(path, kMegatronHeaderBytes + 4 * s, Type::kInt64, s),
      IntegerArray(path, kMegatronHeaderBytes + 12 * s, Type::kInt64, d),
      IntegerArray(bin, 0, type, bin_bytes / IntegerArray::SizeOf(type)),
      vocabulary);
}

}  // namespace

absl::StatusOr<std::unique_ptr<TokenSource>> OpenTokenFile(
    const std::string& path, const TokenVocabulary& vocabulary) {
  return TextFormatOf(path) == TextFormat::kMegatron
             ? OpenMegatron(path, vocabulary)
             : OpenLlmc(path, vocabulary);
}

}  // namespace cubit
