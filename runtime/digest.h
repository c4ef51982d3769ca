// SPDX-License-Identifier: Apache-2.0
//
// Hashes. XXH3 (xxHash) finds damage fast: tensors, token streams. SHA-256
// (OpenSSL) names content: tokenizer files, configurations.

#ifndef CUBIT_RUNTIME_DIGEST_H_
#define CUBIT_RUNTIME_DIGEST_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"

namespace cubit {

uint64_t Xxh3_64(const void* data, size_t bytes);

// XXH3-128 as 32 hexadecimal digits, the canonical (big-endian) form.
std::string Xxh3_128Hex(const void* data, size_t bytes);

// The same over a stream of pieces.
class Xxh3_128Stream {
 public:
  Xxh3_128Stream();
  ~Xxh3_128Stream();
  void Update(const void* data, size_t bytes);
  std::string Hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// 64 hexadecimal digits.
std::string Sha256Hex(absl::string_view data);

}  // namespace cubit

#endif  // CUBIT_RUNTIME_DIGEST_H_
