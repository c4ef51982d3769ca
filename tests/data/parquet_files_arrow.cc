// SPDX-License-Identifier: Apache-2.0

#include <arrow/io/file.h>
#include <parquet/api/writer.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "runtime/check.h"
#include "tests/data/parquet_files.h"

namespace cubit {
namespace {

using parquet::Repetition;
using parquet::Type;
using parquet::schema::GroupNode;
using parquet::schema::NodePtr;
using parquet::schema::NodeVector;
using parquet::schema::PrimitiveNode;

NodePtr Column(const std::string& name, Type::type type,
               Repetition::type repetition) {
  return PrimitiveNode::Make(name, repetition, type,
                             type == Type::BYTE_ARRAY
                                 ? parquet::ConvertedType::UTF8
                                 : parquet::ConvertedType::NONE);
}

std::shared_ptr<GroupNode> Schema(const ParquetRecipe& recipe) {
  NodeVector columns;
  const auto plain =
      recipe.text_is_nullable ? Repetition::OPTIONAL : Repetition::REQUIRED;
  columns.push_back(Column(
      recipe.text_name, recipe.text_is_integer ? Type::INT64 : Type::BYTE_ARRAY,
      recipe.text_is_repeated ? Repetition::REPEATED : plain));
  if (recipe.has_count) {
    columns.push_back(Column("token_count",
                             recipe.count_is_text    ? Type::BYTE_ARRAY
                             : recipe.count_is_int32 ? Type::INT32
                                                     : Type::INT64,
                             Repetition::OPTIONAL));
  }
  if (recipe.all_columns) {
    for (const char* name : {"id", "dump", "url", "file_path", "language"}) {
      columns.push_back(Column(name, Type::BYTE_ARRAY, Repetition::OPTIONAL));
    }
    columns.push_back(Column("score", Type::DOUBLE, Repetition::OPTIONAL));
  }
  return std::static_pointer_cast<GroupNode>(
      GroupNode::Make("schema", Repetition::REQUIRED, columns));
}

void WriteText(parquet::ColumnWriter* column, const std::string& text,
               bool is_null) {
  parquet::ByteArray bytes(static_cast<uint32_t>(text.size()),
                           reinterpret_cast<const uint8_t*>(text.data()));
  const int16_t definition = is_null ? 0 : 1;
  const int16_t repetition = 0;
  static_cast<parquet::ByteArrayWriter*>(column)->WriteBatch(
      1, &definition, &repetition, &bytes);
}

void WriteInteger(parquet::ColumnWriter* column, int64_t value) {
  const int16_t definition = 1;
  if (column->type() == Type::INT32) {
    const auto narrow = static_cast<int32_t>(value);
    static_cast<parquet::Int32Writer*>(column)->WriteBatch(1, &definition,
                                                           nullptr, &narrow);
  } else {
    static_cast<parquet::Int64Writer*>(column)->WriteBatch(1, &definition,
                                                           nullptr, &value);
  }
}

void WriteCell(parquet::ColumnWriter* column, const ParquetRow& row,
               bool is_text) {
  const double score = 3.25;
  const int16_t definition = 1;
  if (column->type() == Type::BYTE_ARRAY) {
    WriteText(column, is_text ? row.text : "other", is_text && row.is_null);
  } else if (column->type() == Type::DOUBLE) {
    static_cast<parquet::DoubleWriter*>(column)->WriteBatch(1, &definition,
                                                            nullptr, &score);
  } else {
    WriteInteger(column, row.token_count);
  }
}

}  // namespace

void WriteParquet(const std::string& path, const ParquetRecipe& recipe) {
  auto file = arrow::io::FileOutputStream::Open(path);
  CUBIT_CHECK(file.ok()) << path;
  parquet::WriterProperties::Builder properties;
  properties.compression(recipe.compressed
                             ? parquet::Compression::ZSTD
                             : parquet::Compression::UNCOMPRESSED);
  if (!recipe.dictionary) properties.disable_dictionary();
  properties.enable_page_checksum();
  const auto schema = Schema(recipe);
  const auto writer =
      parquet::ParquetFileWriter::Open(*file, schema, properties.build());
  for (size_t begin = 0; begin < recipe.rows.size();
       begin += static_cast<size_t>(recipe.group_rows)) {
    const size_t end = std::min(recipe.rows.size(),
                                begin + static_cast<size_t>(recipe.group_rows));
    parquet::RowGroupWriter* const group = writer->AppendRowGroup();
    for (int c = 0; c < schema->field_count(); ++c) {
      parquet::ColumnWriter* const column = group->NextColumn();
      for (size_t row = begin; row < end; ++row) {
        WriteCell(column, recipe.rows[row], c == 0);
      }
      column->Close();
    }
    group->Close();
  }
  writer->Close();
  CUBIT_CHECK((*file)->Close().ok()) << path;
}

}  // namespace cubit
