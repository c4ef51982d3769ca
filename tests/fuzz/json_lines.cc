// SPDX-License-Identifier: Apache-2.0
//
// Documents out of bytes. The first byte says how they are compressed and
// whether they are lines of JSON or plain text.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"

#include "data/compressed_reader.h"
#include "data/document_reader.h"
#include "data/utf8.h"
#include "runtime/check.h"

namespace cubit {
namespace {

// A small compressed input may expand a thousandfold; this bounds the time.
constexpr int64_t kMaxDocument = 1 << 16;
constexpr int kMaxDocuments = 1000;

void ReadDocuments(uint8_t kind, absl::string_view bytes) {
  const std::string name = "input";
  auto reader = MakeDecompressor(static_cast<Compression>(kind % 4),
                                 MakeMemoryReader(bytes), name);
  const std::unique_ptr<TextSource> source =
      kind / 4 % 2 == 0
          ? MakeJsonLinesSource(std::move(reader), name, kMaxDocument)
          : MakePlainTextSource(std::move(reader), name, kMaxDocument);
  std::string text;
  for (int i = 0; i < kMaxDocuments; ++i) {
    const absl::StatusOr<bool> more = source->Next(&text);
    if (!more.ok()) {
      CUBIT_CHECK(!more.status().message().empty());
      CUBIT_CHECK(source->Next(&text).status() == more.status());
      return;
    }
    if (!*more) return;
    CUBIT_CHECK(!text.empty());
    CUBIT_CHECK_EQ(ValidUtf8Prefix(text), static_cast<int64_t>(text.size()));
  }
}

}  // namespace
}  // namespace cubit

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  cubit::ReadDocuments(data[0],
                       {reinterpret_cast<const char*>(data) + 1, size - 1});
  return 0;
}
