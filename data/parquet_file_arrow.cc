// SPDX-License-Identifier: Apache-2.0
//
// Columns are read with Parquet's own readers, below Arrow's tables: they give
// the stored values whatever schema the writer left beside them, and hold one
// page at a time. Arrow's exceptions end in this file, the only one that
// includes its headers (which want C++20).

#include <parquet/api/reader.h>
#include <sys/stat.h>

#include <array>
#include <cstdint>
#include <exception>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"

#include "data/document_reader.h"
#include "data/parquet_file.h"
#include "data/utf8.h"
#include "runtime/check.h"
#include "runtime/status_macros.h"

static_assert(_GLIBCXX_USE_CXX11_ABI == 1,
              "the libraries of the wheel use the ABI of C++11's std::string");

namespace cubit {
namespace {

constexpr char kTextColumn[] = "text";
constexpr char kCountColumn[] = "token_count";
constexpr int64_t kMaxGroups = 1 << 20;
constexpr int64_t kMaxColumns = 4096;
// Of a column that a reader takes from the file at a time.
constexpr int64_t kBufferBytes = 1 << 20;

using File = parquet::ParquetFileReader;

absl::Status Refuse(const std::string& path, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

// Runs `work`, which returns a Status, and turns what Arrow throws into one.
template <typename Work>
absl::Status Guarded(const std::string& path, const char* doing, Work work) {
  try {
    return work();
  } catch (const std::exception& error) {
    return Refuse(
        path, absl::StrCat(doing, ": ",
                           absl::StrReplaceAll(error.what(), {{"\n", " "}})));
  }
}

parquet::ReaderProperties Properties() {
  parquet::ReaderProperties properties;
  properties.enable_buffered_stream();
  properties.set_buffer_size(kBufferBytes);
  properties.set_page_checksum_verification(true);
  return properties;
}

// Where the columns are; count is -1 if there is none.
struct Columns {
  int text = -1;
  int count = -1;
  parquet::Type::type count_type = parquet::Type::INT64;
};

absl::Status CheckColumn(const std::string& path,
                         const parquet::ColumnDescriptor& column, bool right,
                         absl::string_view wanted) {
  if (right && column.max_repetition_level() == 0 &&
      column.max_definition_level() <= 1) {
    return absl::OkStatus();
  }
  return Refuse(path,
                absl::StrCat("column \"", column.name(), "\" is ",
                             parquet::TypeToString(column.physical_type()),
                             column.max_repetition_level() > 0 ||
                                     column.max_definition_level() > 1
                                 ? " inside a list or group"
                                 : "",
                             "; ", wanted, " wanted"));
}

absl::StatusOr<Columns> FindColumns(const std::string& path, const File& file) {
  const parquet::SchemaDescriptor& schema = *file.metadata()->schema();
  if (schema.num_columns() > kMaxColumns) {
    return Refuse(
        path, absl::StrCat("has ", schema.num_columns(), " columns; at most ",
                           kMaxColumns, " are read"));
  }
  Columns columns;
  for (int i = 0; i < schema.num_columns(); ++i) {
    const parquet::ColumnDescriptor& column = *schema.Column(i);
    const std::string name = column.path()->ToDotString();
    const parquet::Type::type type = column.physical_type();
    if (name == kTextColumn) {
      CUBIT_RETURN_IF_ERROR(CheckColumn(path, column,
                                        type == parquet::Type::BYTE_ARRAY,
                                        "a column of strings"));
      columns.text = i;
    } else if (name == kCountColumn) {
      CUBIT_RETURN_IF_ERROR(CheckColumn(
          path, column,
          type == parquet::Type::INT32 || type == parquet::Type::INT64,
          "a column of integers"));
      columns.count = i;
      columns.count_type = type;
    }
  }
  if (columns.text < 0) {
    return Refuse(path, absl::StrCat("has no column \"text\" among its ",
                                     schema.num_columns(), " columns"));
  }
  return columns;
}

absl::StatusOr<std::vector<ParquetGroup>> GroupsOf(const std::string& path,
                                                   const File& file) {
  CUBIT_ASSIGN_OR_RETURN(const Columns columns, FindColumns(path, file));
  const auto metadata = file.metadata();
  if (metadata->num_row_groups() > kMaxGroups) {
    return Refuse(
        path, absl::StrCat("has ", metadata->num_row_groups(),
                           " row groups; at most ", kMaxGroups, " are read"));
  }
  std::vector<ParquetGroup> groups;
  for (int i = 0; i < metadata->num_row_groups(); ++i) {
    const auto group = metadata->RowGroup(i);
    const auto text = group->ColumnChunk(columns.text);
    if (group->num_rows() < 0 || text->num_values() != group->num_rows()) {
      return Refuse(path,
                    absl::StrCat("row group ", i, " has ", group->num_rows(),
                                 " rows but ", text->num_values(), " texts"));
    }
    groups.push_back({group->num_rows(),
                      std::max<int64_t>(0, text->total_uncompressed_size())});
  }
  return groups;
}

// Values of one column of a row group, one by one. The bytes of a ByteArray
// stay good until the next call.
template <typename Reader>
class Values {
 public:
  using Value = typename Reader::T;
  Values(const std::shared_ptr<parquet::ColumnReader>& column, bool nullable)
      : reader_(std::static_pointer_cast<Reader>(column)),
        nullable_(nullable) {}

  enum class Found { kValue, kNull, kEnd };
  Found Next(Value* value) {
    if (level_ == levels_read_ && !Refill()) return Found::kEnd;
    if (nullable_ && levels_[level_++] == 0) return Found::kNull;
    if (!nullable_) ++level_;
    if (value_ == values_read_) return Found::kEnd;
    *value = values_[value_++];
    return Found::kValue;
  }

 private:
  bool Refill() {
    level_ = value_ = 0;
    int64_t values = 0;
    levels_read_ = static_cast<size_t>(reader_->ReadBatch(
        kBatch, levels_.data(), nullptr, values_.data(), &values));
    values_read_ = static_cast<size_t>(values);
    return levels_read_ > 0;
  }

  static constexpr int64_t kBatch = 64;
  const std::shared_ptr<Reader> reader_;
  const bool nullable_;
  std::array<int16_t, kBatch> levels_;
  std::array<Value, kBatch> values_;
  size_t level_ = 0;
  size_t value_ = 0;
  size_t levels_read_ = 0;
  size_t values_read_ = 0;
};

using Texts = Values<parquet::ByteArrayReader>;
using Counts32 = Values<parquet::Int32Reader>;
using Counts64 = Values<parquet::Int64Reader>;

class ParquetSource : public TextSource {
 public:
  ParquetSource(std::string path, std::unique_ptr<File> file, Columns columns,
                int64_t begin, int64_t end)
      : path_(std::move(path)),
        file_(std::move(file)),
        columns_(columns),
        group_(begin),
        end_(end) {}

  absl::StatusOr<bool> Next(std::string* text) override {
    text->clear();
    if (!status_.ok()) return status_;
    bool found = false;
    status_ = Guarded(path_, "cannot read a row", [&]() -> absl::Status {
      CUBIT_ASSIGN_OR_RETURN(found, Read(text));
      return absl::OkStatus();
    });
    if (!status_.ok()) return status_;
    return found;
  }

  int64_t stated_tokens() const override { return stated_tokens_; }

 private:
  absl::StatusOr<bool> Read(std::string* text) {
    while (true) {
      if (row_ == rows_) {
        if (texts_ != nullptr) ++group_;
        if (group_ == end_) return false;
        OpenGroup();
        continue;
      }
      CUBIT_RETURN_IF_ERROR(ReadRow(text));
      ++row_;
      if (!text->empty()) return true;
    }
  }

  void OpenGroup() {
    const auto group = file_->RowGroup(static_cast<int>(group_));
    rows_ = group->metadata()->num_rows();
    row_ = 0;
    texts_ = std::make_unique<Texts>(group->Column(columns_.text),
                                     Nullable(columns_.text));
    counts32_ = nullptr;
    counts64_ = nullptr;
    if (columns_.count < 0) return;
    const auto counts = group->Column(columns_.count);
    if (columns_.count_type == parquet::Type::INT32) {
      counts32_ = std::make_unique<Counts32>(counts, Nullable(columns_.count));
    } else {
      counts64_ = std::make_unique<Counts64>(counts, Nullable(columns_.count));
    }
  }

  bool Nullable(int column) const {
    return file_->metadata()->schema()->Column(column)->max_definition_level() >
           0;
  }

  absl::Status RowError(absl::string_view what) const {
    return Refuse(path_, absl::StrCat("row ", row_, " of row group ", group_,
                                      ": ", what));
  }

  absl::Status ReadRow(std::string* text) {
    parquet::ByteArray bytes;
    const Texts::Found found = texts_->Next(&bytes);
    if (found != Texts::Found::kValue) {
      return RowError(found == Texts::Found::kNull
                          ? "\"text\" is null, a string is wanted"
                          : "is missing: the column ends before its rows do");
    }
    if (bytes.len > kMaxDocumentBytes) {
      return RowError(absl::StrCat("has ", bytes.len,
                                   " bytes of text; at most ",
                                   kMaxDocumentBytes, " are read"));
    }
    text->assign(reinterpret_cast<const char*>(bytes.ptr), bytes.len);
    const int64_t valid = ValidUtf8Prefix(*text);
    if (valid < static_cast<int64_t>(text->size())) {
      return RowError(
          absl::StrCat("\"text\" is not UTF-8 at byte ", valid + 1));
    }
    return ReadCount();
  }

  absl::Status ReadCount() {
    stated_tokens_ = -1;
    auto found = Counts64::Found::kNull;
    if (counts64_ != nullptr) {
      found = counts64_->Next(&stated_tokens_);
    } else if (counts32_ != nullptr) {
      int32_t count = -1;
      const Counts32::Found found32 = counts32_->Next(&count);
      found = static_cast<Counts64::Found>(found32);
      if (found32 == Counts32::Found::kValue) stated_tokens_ = count;
    }
    if (found == Counts64::Found::kEnd) {
      return RowError("has no \"token_count\": the column ends too early");
    }
    return absl::OkStatus();
  }

  const std::string path_;
  const std::unique_ptr<File> file_;
  const Columns columns_;
  int64_t group_;
  const int64_t end_;
  std::unique_ptr<Texts> texts_;        // of the open group, if any
  std::unique_ptr<Counts32> counts32_;  // at most one of the two
  std::unique_ptr<Counts64> counts64_;
  int64_t row_ = 0;   // in the group
  int64_t rows_ = 0;  // of the group
  int64_t stated_tokens_ = -1;
  absl::Status status_;
};

absl::Status CheckRegular(const std::string& path) {
  struct stat info = {};
  if (stat(path.c_str(), &info) != 0) {
    return absl::NotFoundError(absl::StrCat(path, ": cannot open"));
  }
  if (!S_ISREG(info.st_mode)) return Refuse(path, "is not a regular file");
  return absl::OkStatus();
}

absl::Status Open(const std::string& path, std::unique_ptr<File>* file) {
  CUBIT_RETURN_IF_ERROR(CheckRegular(path));
  return Guarded(path, "is not a parquet file that can be read", [&] {
    *file = File::OpenFile(path, /*memory_map=*/false, Properties());
    return absl::OkStatus();
  });
}

}  // namespace

bool ParquetIsSupported() { return true; }

absl::StatusOr<std::vector<ParquetGroup>> ReadParquetGroups(
    const std::string& path) {
  std::unique_ptr<File> file;
  CUBIT_RETURN_IF_ERROR(Open(path, &file));
  std::vector<ParquetGroup> groups;
  CUBIT_RETURN_IF_ERROR(
      Guarded(path, "cannot read the footer", [&]() -> absl::Status {
        CUBIT_ASSIGN_OR_RETURN(groups, GroupsOf(path, *file));
        return absl::OkStatus();
      }));
  return groups;
}

absl::StatusOr<std::unique_ptr<TextSource>> OpenParquetGroups(
    const std::string& path, int64_t begin, int64_t end) {
  std::unique_ptr<File> file;
  CUBIT_RETURN_IF_ERROR(Open(path, &file));
  Columns columns;
  CUBIT_RETURN_IF_ERROR(
      Guarded(path, "cannot read the footer", [&]() -> absl::Status {
        CUBIT_ASSIGN_OR_RETURN(columns, FindColumns(path, *file));
        // The file may have changed since its groups were counted.
        if (begin < 0 || begin > end ||
            end > file->metadata()->num_row_groups()) {
          return Refuse(path,
                        absl::StrCat("has ", file->metadata()->num_row_groups(),
                                     " row groups, ", end,
                                     " wanted: it "
                                     "changed while it was read"));
        }
        return absl::OkStatus();
      }));
  return std::make_unique<ParquetSource>(path, std::move(file), columns, begin,
                                         end);
}

}  // namespace cubit
