// SPDX-License-Identifier: Apache-2.0

#include "launch/json_rows.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

#include "data/compressed_reader.h"
#include "data/json_events.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

using Json = nlohmann::json;

// Accepts everything: ReadJson is asked only whether the text is acceptable.
class AnyJson : public JsonHandler {
 public:
  absl::Status OnValue(const JsonPath&, const JsonValue&) override {
    return absl::OkStatus();
  }
};

// Lines of a stream of bytes, without their "\n" or "\r\n".
class LineReader {
 public:
  LineReader(std::unique_ptr<ByteReader> input, std::string name)
      : input_(std::move(input)), name_(std::move(name)) {}

  // False at the end.
  absl::StatusOr<bool> Next(std::string* line) {
    for (;;) {
      const size_t end = buffer_.find('\n', begin_);
      if (end != std::string::npos) {
        line->assign(buffer_, begin_, end - begin_);
        begin_ = end + 1;
        break;
      }
      buffer_.erase(0, begin_);
      begin_ = 0;
      if (buffer_.size() > static_cast<size_t>(kMaxJsonRowBytes)) {
        return absl::InvalidArgumentError(
            absl::StrCat(name_, ": a line is longer than ", kMaxJsonRowBytes,
                         " bytes; is it a .jsonl file?"));
      }
      CUBIT_ASSIGN_OR_RETURN(const bool more, Fill());
      if (more) continue;
      if (buffer_.empty()) return false;
      line->swap(buffer_);
      buffer_.clear();
      break;
    }
    if (!line->empty() && line->back() == '\r') line->pop_back();
    return true;
  }

 private:
  absl::StatusOr<bool> Fill() {
    constexpr int64_t kPiece = 1 << 16;
    const size_t old_size = buffer_.size();
    buffer_.resize(old_size + kPiece);
    CUBIT_ASSIGN_OR_RETURN(const int64_t count,
                           input_->Read(&buffer_[old_size], kPiece));
    buffer_.resize(old_size + static_cast<size_t>(count));
    return count > 0;
  }

  std::unique_ptr<ByteReader> input_;
  std::string name_;
  std::string buffer_;
  size_t begin_ = 0;  // of the next line
};

absl::StatusOr<JsonRow> ParseRow(const std::string& where,
                                 const std::string& line) {
  AnyJson any;
  const absl::Status read = ReadJson(line, /*unique_keys=*/true, &any);
  if (!read.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": ", read.message()));
  }
  Json object = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": wanted an object, found ", object.type_name()));
  }
  return JsonRow(where, std::move(object));
}

}  // namespace

bool JsonRow::Has(absl::string_view key) const {
  return object_.contains(std::string(key));
}

void JsonRow::Fail(absl::string_view problem) {
  if (!status_.ok()) return;
  status_ = absl::InvalidArgumentError(absl::StrCat(where_, ": ", problem));
}

void JsonRow::Absorb(const JsonRow& part) {
  if (status_.ok()) status_ = part.status_;
}

const Json* JsonRow::Find(absl::string_view key, absl::string_view wanted) {
  const auto found = object_.find(std::string(key));
  if (found != object_.end()) return &*found;
  Fail(absl::StrCat("has no \"", key, "\" (wanted ", wanted, ")"));
  return nullptr;
}

void JsonRow::FailType(absl::string_view key, absl::string_view wanted,
                       const Json& found) {
  Fail(absl::StrCat("\"", key, "\" is ", found.type_name(), ", wanted ",
                    wanted));
}

std::string JsonRow::String(absl::string_view key) {
  constexpr char kWanted[] = "a string";
  const Json* value = Find(key, kWanted);
  if (value == nullptr) return "";
  if (value->is_string()) return value->get<std::string>();
  FailType(key, kWanted, *value);
  return "";
}

int64_t JsonRow::Integer(absl::string_view key) {
  constexpr char kWanted[] = "an integer";
  const Json* value = Find(key, kWanted);
  if (value == nullptr) return 0;
  if (value->is_number_integer()) return value->get<int64_t>();
  int64_t number = 0;
  if (value->is_string() &&
      absl::SimpleAtoi(value->get_ref<const std::string&>(), &number)) {
    return number;
  }
  FailType(key, kWanted, *value);
  return 0;
}

std::vector<std::string> JsonRow::Strings(absl::string_view key) {
  constexpr char kWanted[] = "an array of strings";
  const Json* value = Find(key, kWanted);
  if (value == nullptr) return {};
  std::vector<std::string> strings;
  if (!value->is_array()) {
    FailType(key, kWanted, *value);
    return {};
  }
  for (const Json& element : *value) {
    if (!element.is_string()) {
      FailType(key, kWanted, element);
      return {};
    }
    strings.push_back(element.get<std::string>());
  }
  return strings;
}

JsonRow JsonRow::Object(absl::string_view key) {
  constexpr char kWanted[] = "an object";
  const Json* value = Find(key, kWanted);
  if (value != nullptr && !value->is_object()) FailType(key, kWanted, *value);
  const bool usable = value != nullptr && value->is_object();
  return JsonRow(absl::StrCat(where_, ", \"", key, "\""),
                 usable ? *value : Json::object());
}

Json JsonRow::Value(absl::string_view key) {
  const auto found = object_.find(std::string(key));
  return found == object_.end() ? Json() : *found;
}

absl::Status ReadJsonRows(const std::string& path, int64_t max_rows,
                          absl::FunctionRef<absl::Status(JsonRow&)> on_row) {
  CUBIT_ASSIGN_OR_RETURN(std::unique_ptr<ByteReader> input,
                         OpenCompressedFile(path));
  LineReader lines(std::move(input), path);
  int64_t rows = 0;
  std::string line;
  for (int64_t number = 1; max_rows == 0 || rows < max_rows; ++number) {
    CUBIT_ASSIGN_OR_RETURN(const bool more, lines.Next(&line));
    if (!more) break;
    if (absl::StripAsciiWhitespace(line).empty()) continue;
    CUBIT_ASSIGN_OR_RETURN(
        JsonRow row, ParseRow(absl::StrCat(path, ", line ", number), line));
    CUBIT_RETURN_IF_ERROR(on_row(row));
    ++rows;
  }
  return absl::OkStatus();
}

}  // namespace cubit
