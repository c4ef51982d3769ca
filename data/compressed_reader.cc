// SPDX-License-Identifier: Apache-2.0

#include "data/compressed_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lzma.h"
#include "zlib.h"
#include "zstd.h"

#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr int64_t kWindowBytes = 64 << 10;
// The largest dictionaries that are decoded: xz -9 needs 65 MiB, zstd without
// --long at most 128 MiB.
constexpr uint64_t kXzMemoryLimit = uint64_t{256} << 20;
constexpr int kZstdWindowLogMax = 27;

absl::Status SystemError(const std::string& path, const char* operation) {
  const std::string what =
      absl::StrCat(path, ": cannot ", operation, ": ", std::strerror(errno));
  if (errno == ENOENT || errno == ENOTDIR) return absl::NotFoundError(what);
  if (errno == EACCES || errno == EPERM) {
    return absl::PermissionDeniedError(what);
  }
  return absl::UnavailableError(what);
}

class FileReader : public ByteReader {
 public:
  FileReader(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  ~FileReader() override { close(fd_); }

  absl::StatusOr<int64_t> Read(char* data, int64_t size) override {
    while (true) {
      const ssize_t got = read(fd_, data, static_cast<size_t>(size));
      if (got >= 0) return static_cast<int64_t>(got);
      if (errno != EINTR) return SystemError(path_, "read");
    }
  }

 private:
  const int fd_;
  const std::string path_;
};

class MemoryReader : public ByteReader {
 public:
  explicit MemoryReader(absl::string_view data) : rest_(data) {}

  absl::StatusOr<int64_t> Read(char* data, int64_t size) override {
    const size_t count = std::min(rest_.size(), static_cast<size_t>(size));
    std::copy_n(rest_.data(), count, data);
    rest_.remove_prefix(count);
    return static_cast<int64_t>(count);
  }

 private:
  absl::string_view rest_;
};

// What a decoder may take from and put into.
struct Window {
  const uint8_t* in = nullptr;
  size_t in_left = 0;
  uint8_t* out = nullptr;
  size_t out_left = 0;
  bool last = false;  // no input follows
};

// One format's decoder. Step takes and gives what it can.
class Decoder {
 public:
  virtual ~Decoder() = default;
  virtual const char* format() const = 0;
  // Sets *complete to whether the input may end after what was taken. An error
  // is the decoder's reason alone.
  virtual absl::Status Step(Window* window, bool* complete) = 0;
};

class GzipDecoder : public Decoder {
 public:
  GzipDecoder() {
    // 15: the largest window; 16: gzip headers and their CRC-32.
    CUBIT_CHECK_EQ(inflateInit2(&stream_, 15 + 16), Z_OK);
  }
  ~GzipDecoder() override { inflateEnd(&stream_); }
  const char* format() const override { return "gzip"; }

  absl::Status Step(Window* window, bool* complete) override {
    if (*complete) CUBIT_CHECK_EQ(inflateReset(&stream_), Z_OK);
    stream_.next_in = const_cast<uint8_t*>(window->in);
    stream_.avail_in = static_cast<uInt>(window->in_left);
    stream_.next_out = window->out;
    stream_.avail_out = static_cast<uInt>(window->out_left);
    const int result = inflate(&stream_, Z_NO_FLUSH);
    window->in = stream_.next_in;
    window->in_left = stream_.avail_in;
    window->out = stream_.next_out;
    window->out_left = stream_.avail_out;
    *complete = result == Z_STREAM_END;
    // Z_BUF_ERROR: nothing could be done without more input.
    const bool starved = result == Z_BUF_ERROR && window->in_left == 0;
    if (*complete || result == Z_OK || starved) return absl::OkStatus();
    return absl::InvalidArgumentError(stream_.msg ? stream_.msg
                                                  : zError(result));
  }

 private:
  z_stream stream_ = {};
};

const char* XzReason(lzma_ret result) {
  switch (result) {
    case LZMA_FORMAT_ERROR:
      return "no xz header";
    case LZMA_OPTIONS_ERROR:
    case LZMA_UNSUPPORTED_CHECK:
      return "options that are not supported";
    case LZMA_MEMLIMIT_ERROR:
      return "needs a dictionary over 256 MiB";
    case LZMA_DATA_ERROR:
      return "data or checksum is wrong";
    case LZMA_MEM_ERROR:
      return "out of memory";
    default:
      return "decoder error";
  }
}

class XzDecoder : public Decoder {
 public:
  XzDecoder() {
    CUBIT_CHECK_EQ(
        lzma_stream_decoder(&stream_, kXzMemoryLimit,
                            LZMA_CONCATENATED | LZMA_TELL_UNSUPPORTED_CHECK),
        LZMA_OK);
  }
  ~XzDecoder() override { lzma_end(&stream_); }
  const char* format() const override { return "xz"; }

  absl::Status Step(Window* window, bool* complete) override {
    stream_.next_in = window->in;
    stream_.avail_in = window->in_left;
    stream_.next_out = window->out;
    stream_.avail_out = window->out_left;
    const lzma_ret result =
        lzma_code(&stream_, window->last ? LZMA_FINISH : LZMA_RUN);
    window->in = stream_.next_in;
    window->in_left = stream_.avail_in;
    window->out = stream_.next_out;
    window->out_left = stream_.avail_out;
    *complete = result == LZMA_STREAM_END;
    const bool starved = result == LZMA_BUF_ERROR && window->in_left == 0;
    if (*complete || result == LZMA_OK || starved) return absl::OkStatus();
    return absl::InvalidArgumentError(XzReason(result));
  }

 private:
  lzma_stream stream_ = LZMA_STREAM_INIT;
};

class ZstdDecoder : public Decoder {
 public:
  ZstdDecoder() : stream_(ZSTD_createDStream()) {
    CUBIT_CHECK(stream_ != nullptr);
    CUBIT_CHECK(!ZSTD_isError(ZSTD_DCtx_setParameter(
        stream_, ZSTD_d_windowLogMax, kZstdWindowLogMax)));
  }
  ~ZstdDecoder() override { ZSTD_freeDStream(stream_); }
  const char* format() const override { return "zstd"; }

  absl::Status Step(Window* window, bool* complete) override {
    ZSTD_inBuffer in = {window->in, window->in_left, 0};
    ZSTD_outBuffer out = {window->out, window->out_left, 0};
    const size_t result = ZSTD_decompressStream(stream_, &out, &in);
    window->in += in.pos;
    window->in_left -= in.pos;
    window->out += out.pos;
    window->out_left -= out.pos;
    if (ZSTD_isError(result)) {
      return absl::InvalidArgumentError(ZSTD_getErrorName(result));
    }
    *complete = result == 0;
    return absl::OkStatus();
  }

 private:
  ZSTD_DStream* const stream_;
};

class DecompressingReader : public ByteReader {
 public:
  DecompressingReader(std::unique_ptr<Decoder> decoder,
                      std::unique_ptr<ByteReader> input, std::string name)
      : decoder_(std::move(decoder)),
        input_(std::move(input)),
        name_(std::move(name)) {}

  absl::StatusOr<int64_t> Read(char* data, int64_t size) override {
    if (!status_.ok()) return status_;
    absl::StatusOr<int64_t> count = Decode(data, size);
    if (!count.ok()) status_ = count.status();
    return count;
  }

 private:
  absl::StatusOr<int64_t> Decode(char* data, int64_t size) {
    window_.out = reinterpret_cast<uint8_t*>(data);
    window_.out_left = static_cast<size_t>(std::min(size, kWindowBytes));
    const size_t wanted = window_.out_left;
    while (true) {
      CUBIT_RETURN_IF_ERROR(Refill());
      const bool drained = window_.last && window_.in_left == 0;
      if (drained && complete_) return 0;
      const absl::Status status = decoder_->Step(&window_, &complete_);
      if (!status.ok()) {
        return Error(absl::StrCat("damaged (", status.message(), ")"));
      }
      if (window_.out_left < wanted) {
        return static_cast<int64_t>(wanted - window_.out_left);
      }
      if (drained && !complete_) {
        return Error("cut off: the end of the data is missing");
      }
    }
  }

  absl::Status Refill() {
    if (window_.in_left > 0 || window_.last) return absl::OkStatus();
    CUBIT_ASSIGN_OR_RETURN(const int64_t count,
                           input_->Read(buffer_.data(), kWindowBytes));
    window_.in = reinterpret_cast<const uint8_t*>(buffer_.data());
    window_.in_left = static_cast<size_t>(count);
    window_.last = count == 0;
    read_ += count;
    return absl::OkStatus();
  }

  absl::Status Error(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(
        name_, ": ", decoder_->format(), " data is ", what, " at offset ",
        read_ - static_cast<int64_t>(window_.in_left),
        " of the compressed file; fetch or compress the file again"));
  }

  const std::unique_ptr<Decoder> decoder_;
  const std::unique_ptr<ByteReader> input_;
  const std::string name_;
  std::array<char, kWindowBytes> buffer_;
  Window window_;
  int64_t read_ = 0;
  bool complete_ = false;
  absl::Status status_;
};

std::unique_ptr<Decoder> MakeDecoder(Compression compression) {
  switch (compression) {
    case Compression::kGzip:
      return std::make_unique<GzipDecoder>();
    case Compression::kXz:
      return std::make_unique<XzDecoder>();
    case Compression::kZstd:
      return std::make_unique<ZstdDecoder>();
    case Compression::kNone:
      break;
  }
  return nullptr;
}

}  // namespace

Compression CompressionOf(absl::string_view name) {
  if (absl::EndsWithIgnoreCase(name, ".gz") ||
      absl::EndsWithIgnoreCase(name, ".dz")) {
    return Compression::kGzip;
  }
  if (absl::EndsWithIgnoreCase(name, ".xz")) return Compression::kXz;
  if (absl::EndsWithIgnoreCase(name, ".zst")) return Compression::kZstd;
  return Compression::kNone;
}

absl::string_view WithoutCompressionSuffix(absl::string_view name) {
  if (CompressionOf(name) == Compression::kNone) return name;
  return name.substr(0, name.rfind('.'));
}

std::unique_ptr<ByteReader> MakeMemoryReader(absl::string_view data) {
  return std::make_unique<MemoryReader>(data);
}

std::unique_ptr<ByteReader> MakeDecompressor(Compression compression,
                                             std::unique_ptr<ByteReader> input,
                                             const std::string& name) {
  std::unique_ptr<Decoder> decoder = MakeDecoder(compression);
  if (decoder == nullptr) return input;
  return std::make_unique<DecompressingReader>(std::move(decoder),
                                               std::move(input), name);
}

absl::StatusOr<std::unique_ptr<ByteReader>> OpenCompressedFile(
    const std::string& path) {
  // O_NONBLOCK: opening a pipe must not wait for its writer.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return SystemError(path, "open");
  auto file = std::make_unique<FileReader>(fd, path);
  struct stat info = {};
  if (fstat(fd, &info) != 0) return SystemError(path, "open");
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": is ", S_ISDIR(info.st_mode) ? "a folder" : "a device or pipe",
        ", a regular file is wanted"));
  }
  return MakeDecompressor(CompressionOf(path), std::move(file), path);
}

absl::StatusOr<std::string> ReadToEnd(ByteReader& reader,
                                      const std::string& name,
                                      int64_t max_bytes) {
  std::string contents;
  std::array<char, kWindowBytes> buffer;
  while (true) {
    CUBIT_ASSIGN_OR_RETURN(const int64_t count,
                           reader.Read(buffer.data(), kWindowBytes));
    if (count == 0) return contents;
    if (static_cast<int64_t>(contents.size()) + count > max_bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": holds more than the ", max_bytes,
                       " bytes that are accepted"));
    }
    contents.append(buffer.data(), static_cast<size_t>(count));
  }
}

}  // namespace cubit
