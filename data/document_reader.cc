// SPDX-License-Identifier: Apache-2.0

#include "data/document_reader.h"

#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

#include "data/json_events.h"
#include "data/utf8.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr char kByteOrderMark[] = "\xEF\xBB\xBF";
constexpr char kTextField[] = "text";
constexpr char kCountField[] = "token_count";
// Where DataTrove keeps all fields but the text and the id.
constexpr char kMetadataField[] = "metadata";

std::string Utf16Hint(absl::string_view text) {
  const bool is_utf16 =
      absl::StartsWith(text, "\xFF\xFE") || absl::StartsWith(text, "\xFE\xFF");
  return is_utf16 ? " (it looks like UTF-16; convert it: iconv -f UTF-16 -t "
                    "UTF-8)"
                  : "";
}

// Repeats the first error, and the end, of the Read of a derived class.
class DocumentSource : public TextSource {
 public:
  absl::StatusOr<bool> Next(std::string* text) final {
    if (!status_.ok()) return status_;
    text->clear();
    if (ended_) return false;
    absl::StatusOr<bool> found = Read(text);
    if (!found.ok()) status_ = found.status();
    ended_ = found.ok() && !*found;
    return found;
  }

 protected:
  virtual absl::StatusOr<bool> Read(std::string* text) = 0;

 private:
  absl::Status status_;
  bool ended_ = false;
};

class PlainTextSource : public DocumentSource {
 public:
  PlainTextSource(std::unique_ptr<ByteReader> input, std::string name,
                  int64_t max_document_bytes)
      : input_(std::move(input)),
        name_(std::move(name)),
        max_document_bytes_(max_document_bytes) {}

 protected:
  absl::StatusOr<bool> Read(std::string* text) override {
    if (input_ == nullptr) return false;
    CUBIT_ASSIGN_OR_RETURN(*text,
                           ReadToEnd(*input_, name_, max_document_bytes_));
    input_ = nullptr;
    const int64_t valid = ValidUtf8Prefix(*text);
    if (valid < static_cast<int64_t>(text->size())) {
      return absl::InvalidArgumentError(
          absl::StrCat(name_, ": is not UTF-8 text at byte offset ", valid,
                       Utf16Hint(*text), "; text is wanted in UTF-8"));
    }
    if (absl::StartsWith(*text, kByteOrderMark)) {
      text->erase(0, std::strlen(kByteOrderMark));
    }
    return !text->empty();
  }

 private:
  std::unique_ptr<ByteReader> input_;  // null once it is read
  const std::string name_;
  const int64_t max_document_bytes_;
};

// Lines of a stream, which keep their "\r".
class LineReader {
 public:
  // `input` in blocks that hold most lines whole: those are not copied.
  LineReader(std::unique_ptr<ByteReader> input, int64_t max_line_bytes)
      : input_(std::move(input)),
        max_line_bytes_(max_line_bytes),
        buffer_(kBufferBytes) {}

  // Replaces *line with the next one, good until the next call; false at the
  // end.
  absl::StatusOr<bool> Next(absl::string_view* line) {
    pieces_.clear();
    while (true) {
      if (begin_ == end_) {
        CUBIT_ASSIGN_OR_RETURN(
            const int64_t count,
            input_->Read(buffer_.data(), static_cast<int64_t>(buffer_.size())));
        begin_ = 0;
        end_ = static_cast<size_t>(count);
        *line = pieces_;
        if (count == 0) return !line->empty();
      }
      const char* begin = buffer_.data() + begin_;
      const auto* newline =
          static_cast<const char*>(std::memchr(begin, '\n', end_ - begin_));
      const size_t length = newline == nullptr
                                ? end_ - begin_
                                : static_cast<size_t>(newline - begin);
      if (static_cast<int64_t>(pieces_.size() + length) > max_line_bytes_) {
        return absl::InvalidArgumentError(
            absl::StrCat("has more than the ", max_line_bytes_,
                         " bytes that a document may have"));
      }
      begin_ += length + (newline == nullptr ? 0 : 1);
      *line = absl::string_view(begin, length);
      if (newline != nullptr && pieces_.empty()) return true;
      pieces_.append(begin, length);
      *line = pieces_;
      if (newline != nullptr) return true;
    }
  }

 private:
  static constexpr size_t kBufferBytes = 256 << 10;

  const std::unique_ptr<ByteReader> input_;
  const int64_t max_line_bytes_;
  std::vector<char> buffer_;
  std::string pieces_;  // of a line that is not whole in the buffer
  size_t begin_ = 0;
  size_t end_ = 0;
};

bool IsCount(const JsonPath& path) {
  return path.back() == kCountField &&
         (path.size() == 1 || (path.size() == 2 && path[0] == kMetadataField));
}

// Keeps the field "text" of the outermost object, and the number of its tokens
// where one is stated.
class TextField : public JsonHandler {
 public:
  explicit TextField(std::string* text) : text_(text) {}

  bool found() const { return found_; }
  int64_t stated_tokens() const { return stated_tokens_; }

  absl::Status OnValue(const JsonPath& path, const JsonValue& value) override {
    if (path.empty() && value.kind != JsonValue::Kind::kObject) {
      return absl::InvalidArgumentError(
          absl::StrCat("holds ", Describe(value.kind),
                       ", an object with the field \"text\" is wanted"));
    }
    if (value.kind == JsonValue::Kind::kInteger && IsCount(path)) {
      stated_tokens_ = value.integer;
    }
    if (path.size() != 1 || path[0] != kTextField) return absl::OkStatus();
    if (found_) {
      return absl::InvalidArgumentError("has the field \"text\" twice");
    }
    if (value.kind != JsonValue::Kind::kString) {
      return absl::InvalidArgumentError(absl::StrCat(
          "field \"text\" is ", Describe(value.kind), ", a string is wanted"));
    }
    text_->swap(*value.string);
    found_ = true;
    return absl::OkStatus();
  }

 private:
  std::string* const text_;
  bool found_ = false;
  int64_t stated_tokens_ = -1;
};

class JsonLinesSource : public DocumentSource {
 public:
  JsonLinesSource(std::unique_ptr<ByteReader> input, std::string name,
                  int64_t max_document_bytes)
      : lines_(std::move(input), max_document_bytes), name_(std::move(name)) {}

  int64_t stated_tokens() const override { return stated_tokens_; }

 protected:
  absl::StatusOr<bool> Read(std::string* text) override {
    while (true) {
      const absl::StatusOr<bool> more = lines_.Next(&line_);
      if (!more.ok()) return LineError(more.status(), number_ + 1);
      if (!*more) return false;
      ++number_;
      const absl::Status status = Parse(text);
      if (!status.ok()) return LineError(status, number_);
      if (!text->empty()) return true;
    }
  }

 private:
  absl::Status Parse(std::string* text) {
    absl::string_view line = line_;
    if (number_ == 1 && absl::StartsWith(line, kByteOrderMark)) {
      line.remove_prefix(std::strlen(kByteOrderMark));
    }
    if (line.find_first_not_of(" \t\r") == absl::string_view::npos) {
      text->clear();
      return absl::OkStatus();
    }
    TextField field(text);
    const absl::Status status =
        ReadJson(line, /*unique_keys=*/false, &field, &buffer_);
    // What is JSON is UTF-8; an error of the encoding goes before others.
    const int64_t valid =
        status.ok() ? static_cast<int64_t>(line.size()) : ValidUtf8Prefix(line);
    if (valid < static_cast<int64_t>(line.size())) {
      return absl::InvalidArgumentError(absl::StrCat(
          "is not UTF-8 at byte ", valid + 1, " of the line", Utf16Hint(line)));
    }
    CUBIT_RETURN_IF_ERROR(status);
    if (!field.found()) {
      return absl::InvalidArgumentError("the object has no field \"text\"");
    }
    stated_tokens_ = field.stated_tokens();
    return absl::OkStatus();
  }

  // Errors of the input name it already.
  absl::Status LineError(const absl::Status& status, int64_t number) const {
    if (absl::StartsWith(status.message(), absl::StrCat(name_, ":"))) {
      return status;
    }
    return absl::Status(status.code(), absl::StrCat(name_, ": line ", number,
                                                    ": ", status.message()));
  }

  LineReader lines_;
  const std::string name_;
  absl::string_view line_;  // in lines_
  std::string buffer_;      // takes turns with the text of documents
  int64_t number_ = 0;      // of the line last read, from 1
  int64_t stated_tokens_ = -1;
};

}  // namespace

std::unique_ptr<TextSource> MakePlainTextSource(
    std::unique_ptr<ByteReader> input, const std::string& name,
    int64_t max_document_bytes) {
  return std::make_unique<PlainTextSource>(std::move(input), name,
                                           max_document_bytes);
}

std::unique_ptr<TextSource> MakeJsonLinesSource(
    std::unique_ptr<ByteReader> input, const std::string& name,
    int64_t max_document_bytes) {
  return std::make_unique<JsonLinesSource>(std::move(input), name,
                                           max_document_bytes);
}

}  // namespace cubit
