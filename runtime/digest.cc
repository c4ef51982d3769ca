// SPDX-License-Identifier: Apache-2.0

#include "runtime/digest.h"

#define XXH_INLINE_ALL
#include "absl/strings/escaping.h"
#include <openssl/sha.h>
#include <xxhash.h>

#include "runtime/check.h"

namespace cubit {
namespace {

std::string Hex(const XXH128_hash_t& hash) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(canonical.digest),
                        sizeof(canonical.digest)));
}

}  // namespace

uint64_t Xxh3_64(const void* data, size_t bytes) {
  return XXH3_64bits(data, bytes);
}

std::string Xxh3_128Hex(const void* data, size_t bytes) {
  return Hex(XXH3_128bits(data, bytes));
}

struct Xxh3_128Stream::State {
  XXH3_state_t state;
};

Xxh3_128Stream::Xxh3_128Stream() : state_(std::make_unique<State>()) {
  CUBIT_CHECK(XXH3_128bits_reset(&state_->state) == XXH_OK);
}
Xxh3_128Stream::~Xxh3_128Stream() = default;

void Xxh3_128Stream::Update(const void* data, size_t bytes) {
  CUBIT_CHECK(XXH3_128bits_update(&state_->state, data, bytes) == XXH_OK);
}

std::string Xxh3_128Stream::Hex() const {
  return cubit::Hex(XXH3_128bits_digest(&state_->state));
}

std::string Sha256Hex(absl::string_view data) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(data.data()), data.size(),
         digest);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest), sizeof(digest)));
}

}  // namespace cubit
