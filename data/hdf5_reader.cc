// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include <hdf5.h>

#include "data/hdf5_file.h"
#include "data/hdf5_internal.h"
#include "runtime/check.h"
#include "runtime/file_system.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

using hdf5_internal::Error;
using hdf5_internal::FileType;
using hdf5_internal::Handle;
using hdf5_internal::MemoryType;

constexpr int64_t kMaxStringBytes = 4096;
constexpr int64_t kMaxChunkBytes = int64_t{64} << 20;
constexpr int64_t kMaxElements = int64_t{1} << 40;

absl::Status Refuse(absl::string_view path, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

// Superblock version 3: signature [8], version, size of offsets, size of
// lengths, flags, base address [8], extension address [8], end of file [8],
// root address [8], checksum [4] ("HDF5 File Format Specification" 3.0, II.A).
absl::Status CheckSuperblock(const std::string& path) {
  constexpr int64_t kBytes = 48;
  FileSystem& files = FileSystem::Posix();
  CUBIT_ASSIGN_OR_RETURN(const int64_t size, files.FileSize(path));
  if (size < kBytes) {
    return absl::DataLossError(absl::StrCat(
        path, ": has ", size, " bytes, too few for an HDF5 file: truncated"));
  }
  unsigned char block[kBytes];
  CUBIT_RETURN_IF_ERROR(files.Read(path, 0, kBytes, block));
  if (std::memcmp(block, "\x89HDF\r\n\x1a\n", 8) != 0) {
    return Refuse(path, "at offset 0: not an HDF5 file (no signature)");
  }
  if (block[8] != 3 || block[9] != 8 || block[10] != 8) {
    return Refuse(
        path, absl::StrCat("at offset 8: superblock version ", int{block[8]},
                           " with sizes ", int{block[9]}, ", ", int{block[10]},
                           "; only version 3 with 8, 8 is read"));
  }
  if (block[11] != 0) {
    return Refuse(path,
                  "at offset 11: marked as open for writing; its writer did "
                  "not finish");
  }
  int64_t end = 0;
  std::memcpy(&end, block + 28, sizeof(end));
  if (end != size) {
    return absl::DataLossError(
        absl::StrCat(path, ": has ", size, " bytes, its superblock says ", end,
                     size < end ? ": truncated" : ": extended"));
  }
  return absl::OkStatus();
}

}  // namespace

struct Hdf5Array::State {
  std::string path;
  std::string name;
  Handle array;
  Handle space;
  Hdf5Type type = Hdf5Type::kUint16;
  int64_t size = 0;
  int64_t chunk = 0;

  std::string label() const { return absl::StrCat(path, ": /", name); }

  absl::Status Open(hid_t file, hid_t access, absl::string_view failure);
  absl::Status CheckType();
  absl::Status CheckExtent();
  absl::Status CheckStorage();
};

absl::Status Hdf5Array::State::Open(hid_t file, hid_t access,
                                    absl::string_view failure) {
  // Closed first: HDF5 gives an open array's second handle the first's cache.
  array.Close();
  array = Handle(H5Dopen2(file, name.c_str(), access), H5Dclose);
  return array.ok() ? absl::OkStatus()
                    : Error(absl::StatusCode::kDataLoss, label(), failure);
}

absl::Status Hdf5Array::State::CheckType() {
  const Handle file_type(H5Dget_type(array.get()), H5Tclose);
  if (!file_type.ok()) {
    return Error(absl::StatusCode::kDataLoss, label(), "cannot read type");
  }
  for (const Hdf5Type candidate :
       {Hdf5Type::kUint16, Hdf5Type::kUint32, Hdf5Type::kUint64}) {
    if (H5Tequal(file_type.get(), FileType(candidate)) > 0) {
      type = candidate;
      return absl::OkStatus();
    }
  }
  return Refuse(label(), absl::StrCat("has elements of class ",
                                      int{H5Tget_class(file_type.get())},
                                      " and ", H5Tget_size(file_type.get()),
                                      " bytes; little-endian uint16, uint32 or "
                                      "uint64 wanted"));
}

absl::Status Hdf5Array::State::CheckExtent() {
  space = Handle(H5Dget_space(array.get()), H5Sclose);
  if (!space.ok()) {
    return Error(absl::StatusCode::kDataLoss, label(), "cannot read extent");
  }
  if (H5Sis_simple(space.get()) <= 0 ||
      H5Sget_simple_extent_ndims(space.get()) != 1) {
    return Refuse(label(), absl::StrCat("has rank ",
                                        H5Sget_simple_extent_ndims(space.get()),
                                        ", 1 wanted"));
  }
  hsize_t extent = 0;
  H5Sget_simple_extent_dims(space.get(), &extent, nullptr);
  if (extent < 1 || extent > static_cast<hsize_t>(kMaxElements)) {
    return Refuse(label(), absl::StrCat("has ", extent, " elements; 1 to ",
                                        kMaxElements, " are read"));
  }
  size = static_cast<int64_t>(extent);
  return absl::OkStatus();
}

absl::Status Hdf5Array::State::CheckStorage() {
  const Handle creation(H5Dget_create_plist(array.get()), H5Pclose);
  if (!creation.ok()) {
    return Error(absl::StatusCode::kDataLoss, label(), "cannot read storage");
  }
  if (H5Pget_layout(creation.get()) != H5D_CHUNKED) {
    return Refuse(label(),
                  "is not stored in chunks (compact, contiguous, external and "
                  "virtual arrays are not read)");
  }
  hsize_t extent = 0;
  if (H5Pget_chunk(creation.get(), 1, &extent) != 1 || extent < 1 ||
      extent > static_cast<hsize_t>(kMaxChunkBytes / SizeOf(type))) {
    return Refuse(label(),
                  absl::StrCat("has chunks of ", extent, " elements; at most ",
                               kMaxChunkBytes, " bytes are read"));
  }
  chunk = static_cast<int64_t>(extent);
  bool has_checksum = false;
  const int filters = H5Pget_nfilters(creation.get());
  for (int i = 0; i < filters; ++i) {
    unsigned flags = 0;
    size_t values = 0;
    const H5Z_filter_t filter =
        H5Pget_filter2(creation.get(), static_cast<unsigned>(i), &flags,
                       &values, nullptr, 0, nullptr, nullptr);
    if (filter != H5Z_FILTER_DEFLATE && filter != H5Z_FILTER_FLETCHER32) {
      return Refuse(label(), absl::StrCat("uses HDF5 filter ", filter,
                                          "; only deflate and fletcher32 are "
                                          "read"));
    }
    has_checksum = has_checksum || filter == H5Z_FILTER_FLETCHER32;
  }
  return has_checksum ? absl::OkStatus()
                      : Refuse(label(), "has no fletcher32 checksums");
}

Hdf5Array::Hdf5Array(std::unique_ptr<State> state) : state_(std::move(state)) {}
Hdf5Array::Hdf5Array(Hdf5Array&&) noexcept = default;
Hdf5Array& Hdf5Array::operator=(Hdf5Array&&) noexcept = default;
Hdf5Array::~Hdf5Array() = default;

Hdf5Type Hdf5Array::type() const { return state_->type; }
int64_t Hdf5Array::size() const { return state_->size; }
int64_t Hdf5Array::chunk() const { return state_->chunk; }

absl::Status Hdf5Array::Read(int64_t begin, int64_t count, void* values) {
  CUBIT_CHECK(begin >= 0 && count >= 0 && count <= state_->size - begin)
      << state_->label() << ": [" << begin << ", +" << count << ") of "
      << state_->size;
  if (count == 0) return absl::OkStatus();
  hdf5_internal::Prepare();
  const hsize_t start = static_cast<hsize_t>(begin);
  const hsize_t extent = static_cast<hsize_t>(count);
  const Handle memory(H5Screate_simple(1, &extent, nullptr), H5Sclose);
  if (!memory.ok() ||
      H5Sselect_hyperslab(state_->space.get(), H5S_SELECT_SET, &start, nullptr,
                          &extent, nullptr) < 0 ||
      H5Dread(state_->array.get(), MemoryType(state_->type), memory.get(),
              state_->space.get(), H5P_DEFAULT, values) < 0) {
    return Error(
        absl::StatusCode::kDataLoss, state_->label(),
        absl::StrCat("cannot read ", count, " elements at offset ", begin,
                     " (chunk ", begin / state_->chunk, " on)"));
  }
  return absl::OkStatus();
}

struct Hdf5Reader::State {
  std::string path;
  Handle file;

  // Opens an attribute of the root that is a scalar.
  absl::StatusOr<Handle> OpenAttribute(const std::string& name);
};

Hdf5Reader::Hdf5Reader(std::unique_ptr<State> state)
    : state_(std::move(state)) {}
Hdf5Reader::Hdf5Reader(Hdf5Reader&&) noexcept = default;
Hdf5Reader& Hdf5Reader::operator=(Hdf5Reader&&) noexcept = default;
Hdf5Reader::~Hdf5Reader() = default;

const std::string& Hdf5Reader::path() const { return state_->path; }

absl::StatusOr<Hdf5Reader> Hdf5Reader::Open(const std::string& path) {
  hdf5_internal::Prepare();
  CUBIT_RETURN_IF_ERROR(CheckSuperblock(path));
  auto state = std::make_unique<State>();
  state->path = path;
  state->file =
      Handle(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose);
  if (!state->file.ok()) {
    return Error(absl::StatusCode::kDataLoss, path, "cannot open as HDF5");
  }
  return Hdf5Reader(std::move(state));
}

absl::StatusOr<Handle> Hdf5Reader::State::OpenAttribute(
    const std::string& name) {
  hdf5_internal::Prepare();
  const htri_t exists = H5Aexists(file.get(), name.c_str());
  if (exists < 0) {
    return Error(absl::StatusCode::kDataLoss, path, "cannot read attributes");
  }
  if (exists == 0) {
    return Refuse(path, absl::StrCat("has no attribute ", name,
                                     "; not a token shard, or unfinished"));
  }
  Handle attribute(H5Aopen(file.get(), name.c_str(), H5P_DEFAULT), H5Aclose);
  if (!attribute.ok()) {
    return Error(absl::StatusCode::kDataLoss, path,
                 absl::StrCat("cannot open attribute ", name));
  }
  const Handle space(H5Aget_space(attribute.get()), H5Sclose);
  if (!space.ok() || H5Sget_simple_extent_type(space.get()) != H5S_SCALAR) {
    return Refuse(path, absl::StrCat("attribute ", name, " is not a scalar"));
  }
  return attribute;
}

absl::StatusOr<int64_t> Hdf5Reader::IntegerAttribute(const std::string& name) {
  CUBIT_ASSIGN_OR_RETURN(const Handle attribute, state_->OpenAttribute(name));
  const Handle type(H5Aget_type(attribute.get()), H5Tclose);
  if (!type.ok() || H5Tget_class(type.get()) != H5T_INTEGER ||
      H5Tget_size(type.get()) > 8) {
    return Refuse(state_->path,
                  absl::StrCat("attribute ", name, " is not an integer"));
  }
  int64_t value = 0;
  if (H5Aread(attribute.get(), H5T_NATIVE_INT64, &value) < 0) {
    return Error(absl::StatusCode::kDataLoss, state_->path,
                 absl::StrCat("cannot read attribute ", name));
  }
  return value;
}

absl::StatusOr<std::string> Hdf5Reader::StringAttribute(
    const std::string& name) {
  CUBIT_ASSIGN_OR_RETURN(const Handle attribute, state_->OpenAttribute(name));
  const Handle type(H5Aget_type(attribute.get()), H5Tclose);
  if (!type.ok() || H5Tget_class(type.get()) != H5T_STRING ||
      H5Tis_variable_str(type.get()) != 0 ||
      H5Tget_size(type.get()) > kMaxStringBytes) {
    return Refuse(state_->path,
                  absl::StrCat("attribute ", name,
                               " is not a string of fixed length up to ",
                               kMaxStringBytes, " bytes"));
  }
  std::string value(H5Tget_size(type.get()), '\0');
  if (H5Aread(attribute.get(), type.get(), value.data()) < 0) {
    return Error(absl::StatusCode::kDataLoss, state_->path,
                 absl::StrCat("cannot read attribute ", name));
  }
  value.resize(std::min(value.size(), value.find('\0')));
  return value;
}

absl::StatusOr<Hdf5Array> Hdf5Reader::OpenArray(const std::string& name,
                                                int64_t cache_bytes) {
  hdf5_internal::Prepare();
  const std::string label = absl::StrCat(state_->path, ": /", name);
  H5L_info_t link = {};
  if (H5Lget_info(state_->file.get(), name.c_str(), &link, H5P_DEFAULT) < 0) {
    return Refuse(label, "is missing; not a token shard");
  }
  if (link.type != H5L_TYPE_HARD) {
    return Refuse(label, "is a soft, external or user-defined link; refused");
  }
  auto state = std::make_unique<Hdf5Array::State>();
  state->path = state_->path;
  state->name = name;
  H5O_info_t object = {};
  if (H5Oget_info_by_name(state_->file.get(), name.c_str(), &object,
                          H5P_DEFAULT) < 0 ||
      object.type != H5O_TYPE_DATASET) {
    return Refuse(label, "is not an array");
  }
  CUBIT_RETURN_IF_ERROR(
      state->Open(state_->file.get(), H5P_DEFAULT, "cannot open"));
  CUBIT_RETURN_IF_ERROR(state->CheckType());
  CUBIT_RETURN_IF_ERROR(state->CheckExtent());
  CUBIT_RETURN_IF_ERROR(state->CheckStorage());
  // The cache holds whole chunks, and at least one: else every access would
  // read and check a chunk anew. Its hash table wants about a hundred slots a
  // chunk, but no more chunks than these are worth the memory.
  constexpr int64_t kMaxSlots = 12421;
  const int64_t chunk_bytes = state->chunk * SizeOf(state->type);
  const int64_t cache = std::max(cache_bytes, chunk_bytes);
  const auto slots =
      static_cast<size_t>(std::min(kMaxSlots, 100 * (cache / chunk_bytes) + 1));
  const Handle access(H5Pcreate(H5P_DATASET_ACCESS), H5Pclose);
  if (!access.ok() ||
      H5Pset_chunk_cache(access.get(), slots, static_cast<size_t>(cache),
                         /*rdcc_w0=*/0.0) < 0) {
    return Error(absl::StatusCode::kInternal, label, "cannot set the cache");
  }
  CUBIT_RETURN_IF_ERROR(
      state->Open(state_->file.get(), access.get(), "cannot open again"));
  return Hdf5Array(std::move(state));
}

}  // namespace cubit
