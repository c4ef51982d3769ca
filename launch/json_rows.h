// SPDX-License-Identifier: Apache-2.0
//
// Rows of a .jsonl file (plain, .gz, .xz or .zst) with named, typed fields: the
// form in which data sets for evaluation and prompts are kept.

#ifndef CUBIT_LAUNCH_JSON_ROWS_H_
#define CUBIT_LAUNCH_JSON_ROWS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace cubit {

// Longest line that is read.
constexpr int64_t kMaxJsonRowBytes = int64_t{16} << 20;

// One object. Readers return an empty value for a field that is missing or of
// another type and remember the first problem: read all fields, then look at
// status().
class JsonRow {
 public:
  // `where` is "FILE, line N", for messages.
  JsonRow(std::string where, nlohmann::json object)
      : where_(std::move(where)), object_(std::move(object)) {}

  bool Has(absl::string_view key) const;
  std::string String(absl::string_view key);
  // A number, or a string of digits as some data sets have it.
  int64_t Integer(absl::string_view key);
  // An array of strings.
  std::vector<std::string> Strings(absl::string_view key);
  // The object at `key`, a row whose messages name this row.
  JsonRow Object(absl::string_view key);
  // The value at `key`, null if there is none.
  nlohmann::json Value(absl::string_view key);

  // Keeps "FILE, line N: `problem`" if it is the first problem.
  void Fail(absl::string_view problem);
  // Takes over the problem of a part of this row.
  void Absorb(const JsonRow& part);
  const absl::Status& status() const { return status_; }
  const std::string& where() const { return where_; }

 private:
  // The value if it is there; else remembers that `wanted` is missing.
  const nlohmann::json* Find(absl::string_view key, absl::string_view wanted);
  void FailType(absl::string_view key, absl::string_view wanted,
                const nlohmann::json& found);

  std::string where_;
  nlohmann::json object_;
  absl::Status status_;
};

// Calls `on_row` for every line of `path` that is not blank, in order, until
// `max_rows` (0: all) or an error. Errors: no such file, damaged compression, a
// line that is too long, no JSON object, nested too deeply (json_events.h), or
// holds a key twice.
absl::Status ReadJsonRows(const std::string& path, int64_t max_rows,
                          absl::FunctionRef<absl::Status(JsonRow&)> on_row);

}  // namespace cubit

#endif  // CUBIT_LAUNCH_JSON_ROWS_H_
