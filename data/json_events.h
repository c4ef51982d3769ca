// SPDX-License-Identifier: Apache-2.0
//
// JSON as a stream of events, for input that may be hostile: nesting is
// limited, nothing is built but what the handler keeps, and numbers that JSON
// allows but the machine does not are errors.

#ifndef CUBIT_DATA_JSON_EVENTS_H_
#define CUBIT_DATA_JSON_EVENTS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace cubit {

constexpr int kMaxJsonDepth = 64;

struct JsonValue {
  enum class Kind { kNull, kBool, kInteger, kReal, kString, kArray, kObject };

  Kind kind = Kind::kNull;
  bool boolean = false;
  int64_t integer = 0;  // integers beyond int64 are kReal
  double real = 0;
  std::string* string = nullptr;  // the handler may take it
};

// "a string", "an object", ...
const char* Describe(JsonValue::Kind kind);

// One level of where a value stands: the key in an object; "" in an array.
using JsonPath = std::vector<std::string>;

class JsonHandler {
 public:
  virtual ~JsonHandler() = default;

  // Every value in order; arrays and objects when they begin. `path` is empty
  // for the outermost value. An error stops the reading.
  virtual absl::Status OnValue(const JsonPath& path,
                               const JsonValue& value) = 0;
};

// Parses `text`, one JSON value in UTF-8. InvalidArgumentError "invalid JSON at
// byte N: reason" (N from 1), or for nesting over kMaxJsonDepth or, where
// `unique_keys`, a key that an object holds twice; else the handler's error.
// Strings are made in `buffer`, where it is given: who reads many texts keeps
// its memory.
absl::Status ReadJson(absl::string_view text, bool unique_keys,
                      JsonHandler* handler, std::string* buffer = nullptr);

}  // namespace cubit

#endif  // CUBIT_DATA_JSON_EVENTS_H_
