// SPDX-License-Identifier: Apache-2.0

#include "parallel/safetensors.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include <nlohmann/json.hpp>

#include "runtime/check.h"
#include "runtime/digest.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "tensors are written as they lie in memory");

constexpr absl::string_view kMetadataKey = "__metadata__";
constexpr int64_t kLengthBytes = 8;

// A name as it may be shown in a message.
std::string Quoted(absl::string_view name) {
  return absl::StrCat("\"", absl::CHexEscape(name.substr(0, 80)),
                      name.size() > 80 ? "..." : "", "\"");
}

bool ParseDType(absl::string_view word, DType* dtype) {
  for (DType known : {DType::kFloat32, DType::kFloat64, DType::kBFloat16,
                      DType::kInt32, DType::kInt64, DType::kUInt8}) {
    if (Name(known) == word) {
      *dtype = known;
      return true;
    }
  }
  return false;
}

// Receives the JSON event by event and fills a SafetensorsHeader. The first
// thing that does not belong stops the parse with a reason.
class HeaderBuilder : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderBuilder(SafetensorsHeader* header) : header_(header) {}

  const std::string& problem() const { return problem_; }

  bool start_object(std::size_t) override {
    if (place_ == Place::kStart) return Enter(Place::kTop);
    if (place_ != Place::kTop || key_.empty()) return Unexpected("an object");
    if (key_ == kMetadataKey) return Enter(Place::kMetadata);
    entry_ = SafetensorsEntry();
    entry_.name = key_;
    seen_.clear();
    return Enter(Place::kEntry);
  }

  bool end_object() override {
    if (place_ == Place::kTop) return Enter(Place::kEnd);
    if (place_ == Place::kEntry && !FinishEntry()) return false;
    key_.clear();
    return Enter(Place::kTop);
  }

  bool start_array(std::size_t) override {
    if (place_ != Place::kEntry) return Unexpected("a list");
    numbers_.clear();
    if (field_ == "shape") return Enter(Place::kShape);
    if (field_ == "data_offsets") return Enter(Place::kOffsets);
    return Unexpected("a list");
  }

  bool end_array() override { return Enter(Place::kEntry) && FinishArray(); }

  bool key(std::string& name) override {
    if (place_ == Place::kTop) return TopKey(name);
    if (!seen_.insert(name).second) {
      return Fail(
          absl::StrCat("key ", Quoted(name), " twice in ", Quoted(key_)));
    }
    field_ = name;
    if (place_ == Place::kMetadata || name == "dtype" || name == "shape" ||
        name == "data_offsets") {
      return true;
    }
    return Fail(absl::StrCat("tensor ", Quoted(key_), " has an unknown key ",
                             Quoted(name)));
  }

  bool string(std::string& text) override {
    if (place_ == Place::kMetadata) {
      header_->metadata[field_] = text;
      return true;
    }
    if (place_ != Place::kEntry || field_ != "dtype") {
      return Unexpected("a string");
    }
    if (ParseDType(text, &entry_.dtype)) return true;
    return Fail(absl::StrCat("tensor ", Quoted(key_), " has dtype ",
                             Quoted(text),
                             "; known are F32, F64, BF16, I32, I64, U8"));
  }

  bool number_unsigned(number_unsigned_t number) override {
    const bool in_array = place_ == Place::kShape || place_ == Place::kOffsets;
    if (!in_array) return Unexpected("a number");
    if (number > static_cast<uint64_t>(INT64_MAX)) {
      return Fail(absl::StrCat("tensor ", Quoted(key_), " has the number ",
                               number, ", beyond 2^63"));
    }
    if (numbers_.size() >= static_cast<size_t>(Shape::kMaxRank)) {
      return Fail(absl::StrCat("tensor ", Quoted(key_), " has more than ",
                               Shape::kMaxRank, " dims"));
    }
    numbers_.push_back(static_cast<int64_t>(number));
    return true;
  }

  bool number_integer(number_integer_t) override {
    return Unexpected("a negative number");
  }
  bool number_float(number_float_t, const std::string&) override {
    return Unexpected("a fraction");
  }
  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a truth value"); }
  bool binary(nlohmann::json::binary_t&) override {
    return Unexpected("binary data");
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception&) override {
    return Fail(absl::StrCat("malformed JSON at byte ", position));
  }

 private:
  enum class Place { kStart, kTop, kMetadata, kEntry, kShape, kOffsets, kEnd };

  bool Enter(Place place) {
    place_ = place;
    if (place == Place::kMetadata) seen_.clear();
    return true;
  }

  bool Fail(std::string problem) {
    if (problem_.empty()) problem_ = std::move(problem);
    return false;
  }

  bool Unexpected(absl::string_view what) {
    return Fail(
        absl::StrCat(what, " where none belongs",
                     key_.empty() ? "" : absl::StrCat(", in ", Quoted(key_))));
  }

  bool TopKey(const std::string& name) {
    if (!names_.insert(name).second) {
      return Fail(absl::StrCat("tensor ", Quoted(name), " stands there twice"));
    }
    key_ = name;
    if (name == kMetadataKey) return true;
    const std::string problem = TensorNameProblem(name);
    if (!problem.empty()) {
      return Fail(absl::StrCat("tensor name ", Quoted(name), " ", problem));
    }
    if (static_cast<int64_t>(header_->entries.size()) >=
        kMaxSafetensorsTensors) {
      return Fail(
          absl::StrCat("more than ", kMaxSafetensorsTensors, " tensors"));
    }
    return true;
  }

  bool FinishArray() {
    if (field_ == "shape") {
      for (int64_t dim : numbers_) entry_.shape.Append(dim);
      return true;
    }
    if (numbers_.size() != 2 || numbers_[0] > numbers_[1]) {
      return Fail(absl::StrCat("tensor ", Quoted(key_),
                               " has data_offsets that are no span"));
    }
    entry_.offset = numbers_[0];
    entry_.size_bytes = numbers_[1] - numbers_[0];
    return true;
  }

  bool FinishEntry() {
    if (seen_.size() != 3) {
      return Fail(absl::StrCat("tensor ", Quoted(key_),
                               " lacks dtype, shape or data_offsets"));
    }
    int64_t bytes = SizeOf(entry_.dtype);
    for (int i = 0; i < entry_.shape.rank(); ++i) {
      if (__builtin_mul_overflow(bytes, entry_.shape[i], &bytes)) {
        return Fail(absl::StrCat("tensor ", Quoted(key_), " of shape ",
                                 entry_.shape.ToString(), " is too large"));
      }
    }
    if (bytes != entry_.size_bytes) {
      return Fail(absl::StrCat("tensor ", Quoted(key_), " ",
                               entry_.shape.ToString(), " ", Name(entry_.dtype),
                               " needs ", bytes, " bytes, its span has ",
                               entry_.size_bytes));
    }
    header_->entries.push_back(std::move(entry_));
    return true;
  }

  SafetensorsHeader* header_;
  std::string problem_;
  Place place_ = Place::kStart;
  std::string key_;    // of the top object
  std::string field_;  // of the object in it
  absl::flat_hash_set<std::string> names_;
  std::set<std::string> seen_;  // keys of the inner object
  std::vector<int64_t> numbers_;
  SafetensorsEntry entry_;
};

absl::Status Damaged(absl::string_view problem) {
  return absl::DataLossError(
      absl::StrCat("not a sound safetensors file: ", problem));
}

// Spans must follow one another from 0 to the end of the data.
absl::Status CheckSpans(const SafetensorsHeader& header, int64_t data_bytes) {
  int64_t end = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    if (entry.offset != end) {
      return Damaged(
          absl::StrCat("tensor ", Quoted(entry.name), " begins at byte ",
                       entry.offset, " of the data, ", end, " was wanted (",
                       entry.offset < end ? "tensors overlap" : "a hole", ")"));
    }
    if (entry.size_bytes > data_bytes - end) {
      return Damaged(absl::StrCat("tensor ", Quoted(entry.name), " ends at ",
                                  end + entry.size_bytes, ", the data has ",
                                  data_bytes, " bytes"));
    }
    end += entry.size_bytes;
  }
  if (end != data_bytes) {
    return Damaged(absl::StrCat("the tensors have ", end,
                                " bytes, the file has room for ", data_bytes));
  }
  return absl::OkStatus();
}

// The header length that the first 8 bytes say, within a file of `file_bytes`.
absl::StatusOr<int64_t> HeaderLength(const char* bytes, int64_t file_bytes) {
  uint64_t length = 0;
  std::memcpy(&length, bytes, kLengthBytes);
  if (length > static_cast<uint64_t>(kMaxSafetensorsHeaderBytes) ||
      static_cast<int64_t>(length) > file_bytes - kLengthBytes) {
    return Damaged(absl::StrCat("a header of ", length, " bytes in a file of ",
                                file_bytes));
  }
  return static_cast<int64_t>(length);
}

absl::Status CheckFileBytes(int64_t file_bytes) {
  if (file_bytes >= kLengthBytes) return absl::OkStatus();
  return Damaged(
      absl::StrCat("has ", file_bytes, " bytes, too few for a header"));
}

}  // namespace

const SafetensorsEntry* SafetensorsHeader::Find(absl::string_view name) const {
  for (const SafetensorsEntry& entry : entries) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

std::string TensorNameProblem(absl::string_view name) {
  if (name.empty()) return "is empty";
  if (static_cast<int64_t>(name.size()) > kMaxTensorNameBytes) {
    return absl::StrCat("has ", name.size(), " bytes, at most ",
                        kMaxTensorNameBytes, " are accepted");
  }
  for (unsigned char c : name) {
    if (c < 0x20 || c == 0x7f || c == '\\') {
      return "has a control character or a backslash";
    }
  }
  if (name == kMetadataKey) return "is reserved";
  for (absl::string_view part : absl::StrSplit(name, '/')) {
    if (part.empty() || part == "." || part == "..") {
      return "has an empty part, \".\" or \"..\" between slashes";
    }
  }
  return "";
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view json,
                                                         int64_t data_bytes) {
  if (json.empty() || json.front() != '{') {
    return Damaged("the header does not begin with '{'");
  }
  // The JSON parser takes a NUL for the end of its input.
  if (json.find('\0') != absl::string_view::npos) {
    return Damaged("the header has a NUL byte");
  }
  SafetensorsHeader header;
  HeaderBuilder builder(&header);
  const bool parsed =
      nlohmann::json::sax_parse(json.begin(), json.end(), &builder);
  if (!parsed) return Damaged(builder.problem());
  // Ties only between empty tensors, which keep the order of the header.
  std::stable_sort(header.entries.begin(), header.entries.end(),
                   [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
                     return std::make_pair(a.offset, a.size_bytes) <
                            std::make_pair(b.offset, b.size_bytes);
                   });
  CUBIT_RETURN_IF_ERROR(CheckSpans(header, data_bytes));
  header.json = std::string(json);
  const int64_t data_begin = kLengthBytes + static_cast<int64_t>(json.size());
  for (SafetensorsEntry& entry : header.entries) entry.offset += data_begin;
  return header;
}

absl::StatusOr<SafetensorsHeader> ParseSafetensors(absl::string_view file) {
  const int64_t file_bytes = static_cast<int64_t>(file.size());
  CUBIT_RETURN_IF_ERROR(CheckFileBytes(file_bytes));
  CUBIT_ASSIGN_OR_RETURN(const int64_t length,
                         HeaderLength(file.data(), file_bytes));
  return ParseSafetensorsHeader(
      file.substr(kLengthBytes, static_cast<size_t>(length)),
      file_bytes - kLengthBytes - length);
}

absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(
    FileSystem& files, const std::string& path) {
  const auto named = [&path](const absl::Status& status) {
    return absl::Status(status.code(),
                        absl::StrCat(path, ": ", status.message()));
  };
  CUBIT_ASSIGN_OR_RETURN(const int64_t file_bytes, files.FileSize(path));
  const absl::Status enough = CheckFileBytes(file_bytes);
  if (!enough.ok()) return named(enough);
  char bytes[kLengthBytes];
  CUBIT_RETURN_IF_ERROR(files.Read(path, 0, kLengthBytes, bytes));
  const absl::StatusOr<int64_t> length = HeaderLength(bytes, file_bytes);
  if (!length.ok()) return named(length.status());
  std::string json(static_cast<size_t>(*length), '\0');
  CUBIT_RETURN_IF_ERROR(files.Read(path, kLengthBytes, *length, json.data()));
  auto header =
      ParseSafetensorsHeader(json, file_bytes - kLengthBytes - *length);
  if (!header.ok()) return named(header.status());
  return header;
}

std::string SerializeSafetensorsHeader(
    const std::vector<SafetensorsEntry>& entries,
    const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  if (!metadata.empty()) json[std::string(kMetadataKey)] = metadata;
  absl::flat_hash_set<std::string> names;
  int64_t offset = 0;
  for (const SafetensorsEntry& entry : entries) {
    const std::string problem = TensorNameProblem(entry.name);
    CUBIT_CHECK(problem.empty()) << Quoted(entry.name) << " " << problem;
    CUBIT_CHECK(names.insert(entry.name).second) << entry.name << " twice";
    std::vector<int64_t> dims;
    dims.reserve(static_cast<size_t>(entry.shape.rank()));
    for (int i = 0; i < entry.shape.rank(); ++i) dims.push_back(entry.shape[i]);
    const int64_t end =
        offset + entry.shape.num_elements() * SizeOf(entry.dtype);
    json.push_back({entry.name,
                    {{"dtype", std::string(Name(entry.dtype))},
                     {"shape", dims},
                     {"data_offsets", {offset, end}}}});
    offset = end;
  }
  std::string text = json.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  std::string bytes(kLengthBytes, '\0');
  std::memcpy(bytes.data(), &length, kLengthBytes);
  return bytes + text;
}

SafetensorsWriter::SafetensorsWriter(std::unique_ptr<WritableFile> file,
                                     std::vector<SafetensorsEntry> entries)
    : file_(std::move(file)), entries_(std::move(entries)) {}

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(
    FileSystem& files, const std::string& path,
    const std::vector<SafetensorsEntry>& entries,
    const std::map<std::string, std::string>& metadata) {
  const std::string header = SerializeSafetensorsHeader(entries, metadata);
  CUBIT_ASSIGN_OR_RETURN(auto file, files.Create(path));
  SafetensorsWriter writer(std::move(file), entries);
  writer.size_bytes_ = static_cast<int64_t>(header.size());
  writer.header_xxh3_128_ = Xxh3_128Hex(header.data(), header.size());
  CUBIT_RETURN_IF_ERROR(
      writer.file_->Append(header.data(), writer.size_bytes_));
  return writer;
}

absl::Status SafetensorsWriter::Append(ConstTensor tensor) {
  CUBIT_CHECK_LT(next_, entries_.size());
  const SafetensorsEntry& entry = entries_[next_++];
  CUBIT_CHECK(entry.dtype == tensor.dtype()) << entry.name;
  CUBIT_CHECK(entry.shape == tensor.shape()) << entry.name;
  size_bytes_ += tensor.size_bytes();
  return file_->Append(tensor.raw(), tensor.size_bytes());
}

absl::Status SafetensorsWriter::Finish() {
  CUBIT_CHECK_EQ(next_, entries_.size());
  CUBIT_RETURN_IF_ERROR(file_->Sync());
  return file_->Close();
}

}  // namespace cubit
