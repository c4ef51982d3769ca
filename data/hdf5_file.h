// SPDX-License-Identifier: Apache-2.0
//
// The part of HDF5 that token shards need, with its handles owned and its
// errors as absl::Status: files of one-dimensional unsigned arrays and scalar
// attributes. Written in memory, so that the bytes reach the disk through
// FileSystem and a full disk is seen (HDF5 1.10 itself closes such a file
// without an error); read with the checks that a file from elsewhere needs.
// What the arrays mean: data/token_shard.h.

#ifndef CUBIT_DATA_HDF5_FILE_H_
#define CUBIT_DATA_HDF5_FILE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace cubit {

// Unsigned, little-endian in the file.
enum class Hdf5Type { kUint16, kUint32, kUint64 };
int64_t SizeOf(Hdf5Type type);      // bytes
const char* NameOf(Hdf5Type type);  // "uint16"

// The bytes of a whole file; none at first.
class Hdf5Image {
 public:
  Hdf5Image() = default;
  // Takes over a malloc'ed block of `capacity` bytes.
  Hdf5Image(void* data, int64_t bytes, int64_t capacity);
  Hdf5Image(Hdf5Image&& other) noexcept;
  Hdf5Image& operator=(Hdf5Image&& other) noexcept;
  ~Hdf5Image();

  const void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  friend class Hdf5Writer;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
  int64_t capacity_ = 0;
};

// A file being built in memory. The same calls give the same bytes: format
// version 1.10 with checksums of all metadata, no time stamps.
class Hdf5Writer {
 public:
  // The file is built in the memory of `old`, whose bytes are lost, or where
  // that is too little for `expected_bytes`, in new memory. It is moved only
  // where the file gets longer.
  static absl::StatusOr<Hdf5Writer> Create(Hdf5Image old,
                                           int64_t expected_bytes);
  Hdf5Writer(Hdf5Writer&&) noexcept;
  ~Hdf5Writer();

  // Adds array `name` of `count` >= 1 elements in chunks of `chunk` elements
  // (the last may be shorter; of one chunk where count < chunk), each followed
  // by its Fletcher-32.
  absl::Status WriteArray(const std::string& name, Hdf5Type type, int64_t chunk,
                          const void* values, int64_t count);
  // Attributes of the root group: int64, or a UTF-8 string of fixed length.
  absl::Status SetAttribute(const std::string& name, int64_t value);
  absl::Status SetAttribute(const std::string& name, absl::string_view value);

  // Closes the file; the writer cannot be used afterwards.
  absl::StatusOr<Hdf5Image> Finish();

 private:
  struct State;
  explicit Hdf5Writer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// An open array. Thread-compatible.
class Hdf5Array {
 public:
  Hdf5Array(Hdf5Array&&) noexcept;
  Hdf5Array& operator=(Hdf5Array&&) noexcept;
  ~Hdf5Array();

  Hdf5Type type() const;
  int64_t size() const;   // elements
  int64_t chunk() const;  // elements

  // Reads [begin, begin + count) into `values` of type(). CHECK: the range is
  // inside. Damage (Fletcher-32) is DataLoss with file, array and offset.
  absl::Status Read(int64_t begin, int64_t count, void* values);

 private:
  friend class Hdf5Reader;
  struct State;
  explicit Hdf5Array(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// A file opened for reading. Refused before HDF5 parses anything: what is not
// HDF5 of superblock version 3, truncated or extended files, files left open by
// a writer. Refused at each array: links that are not hard, external or
// virtual storage, filters other than deflate and Fletcher-32, other types,
// ranks and sizes. No plug-ins are loaded. Thread-compatible.
class Hdf5Reader {
 public:
  static absl::StatusOr<Hdf5Reader> Open(const std::string& path);
  Hdf5Reader(Hdf5Reader&&) noexcept;
  Hdf5Reader& operator=(Hdf5Reader&&) noexcept;
  ~Hdf5Reader();

  const std::string& path() const;
  absl::StatusOr<int64_t> IntegerAttribute(const std::string& name);
  // At most 4096 bytes.
  absl::StatusOr<std::string> StringAttribute(const std::string& name);
  // `cache_bytes` of decoded chunks are kept, at least one chunk. The array may
  // outlive the reader.
  absl::StatusOr<Hdf5Array> OpenArray(const std::string& name,
                                      int64_t cache_bytes);

 private:
  struct State;
  explicit Hdf5Reader(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace cubit

#endif  // CUBIT_DATA_HDF5_FILE_H_
