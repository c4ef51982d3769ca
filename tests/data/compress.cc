// SPDX-License-Identifier: Apache-2.0

#include "tests/data/compress.h"

#include "gtest/gtest.h"
#include "lzma.h"
#include "zlib.h"
#include "zstd.h"

#include "runtime/check.h"
#include "runtime/file_system.h"

namespace cubit {
namespace {

std::string Gzip(absl::string_view text) {
  z_stream stream = {};
  CUBIT_CHECK_EQ(
      deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY),
      Z_OK);
  std::string out(deflateBound(&stream, text.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  CUBIT_CHECK_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

std::string Xz(absl::string_view text) {
  std::string out(lzma_stream_buffer_bound(text.size()), '\0');
  size_t size = 0;
  CUBIT_CHECK_EQ(lzma_easy_buffer_encode(
                     0, LZMA_CHECK_CRC64, nullptr,
                     reinterpret_cast<const uint8_t*>(text.data()), text.size(),
                     reinterpret_cast<uint8_t*>(out.data()), &size, out.size()),
                 LZMA_OK);
  out.resize(size);
  return out;
}

std::string Zstd(absl::string_view text) {
  ZSTD_CCtx* context = ZSTD_createCCtx();
  ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
  std::string out(ZSTD_compressBound(text.size()), '\0');
  const size_t size =
      ZSTD_compress2(context, out.data(), out.size(), text.data(), text.size());
  CUBIT_CHECK(!ZSTD_isError(size));
  ZSTD_freeCCtx(context);
  out.resize(size);
  return out;
}

}  // namespace

std::string Compress(Compression compression, absl::string_view text) {
  switch (compression) {
    case Compression::kGzip:
      return Gzip(text);
    case Compression::kXz:
      return Xz(text);
    case Compression::kZstd:
      return Zstd(text);
    case Compression::kNone:
      break;
  }
  return std::string(text);
}

std::string WriteTestFile(const std::string& name, absl::string_view contents) {
  FileSystem& files = FileSystem::Posix();
  const std::string path = JoinPath(testing::TempDir(), name);
  CUBIT_CHECK_OK(files.CreateFolders(FolderOf(path)));
  CUBIT_CHECK_OK(WriteFileAtomically(files, path, contents));
  return path;
}

}  // namespace cubit
