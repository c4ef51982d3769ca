// SPDX-License-Identifier: Apache-2.0
//
// HDF5's "core" driver keeps the file in one block of memory, grown by
// callbacks. H5Fget_file_image would copy it, and in 1.10 leaves a wrong
// superblock checksum with the 1.10 format; instead the callback that frees the
// block when the file is closed hands it to us.

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include <hdf5.h>

#include "data/hdf5_file.h"
#include "data/hdf5_internal.h"
#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

using hdf5_internal::Error;
using hdf5_internal::FileType;
using hdf5_internal::Handle;
using hdf5_internal::MemoryType;

constexpr size_t kGrowthBytes = 8 << 20;
// Where superblock version 3 keeps the end of the file.
constexpr int64_t kEofOffset = 28;
// Attributes stay in the root's object header up to this many; beyond, HDF5
// would move them to a heap.
constexpr unsigned kMaxAttributes = 64;

// The block of memory as the callbacks see it.
struct Block {
  void* data = nullptr;
  size_t capacity = 0;
  bool closed = false;
};

// HDF5 clears what it has not written, so old bytes do no harm.
void* Allocate(size_t bytes, H5FD_file_image_op_t, void* udata) {
  auto* block = static_cast<Block*>(udata);
  if (bytes <= block->capacity) return block->data;
  void* const grown = std::realloc(block->data, bytes);
  if (grown == nullptr) return nullptr;
  block->data = grown;
  block->capacity = bytes;
  return grown;
}

void* Reallocate(void*, size_t bytes, H5FD_file_image_op_t op, void* udata) {
  return Allocate(bytes, op, udata);
}

void* Copy(void* to, const void* from, size_t bytes, H5FD_file_image_op_t,
           void*) {
  return std::memcpy(to, from, bytes);
}

herr_t Keep(void*, H5FD_file_image_op_t op, void* udata) {
  if (op == H5FD_FILE_IMAGE_OP_FILE_CLOSE) {
    static_cast<Block*>(udata)->closed = true;
  }
  return 0;
}

// HDF5 copies property lists and with them this pointer; Block is ours.
void* ShareBlock(void* udata) { return udata; }
herr_t LeaveBlock(void*) { return 0; }

absl::Status WriterError(absl::string_view what) {
  return Error(absl::StatusCode::kInternal, "HDF5 image", what);
}

absl::StatusOr<Handle> AccessProperties(Block* block) {
  Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5FD_file_image_callbacks_t callbacks = {
      Allocate, Copy, Reallocate, Keep, ShareBlock, LeaveBlock, block};
  if (!access.ok() ||
      H5Pset_fapl_core(access.get(), kGrowthBytes, /*backing_store=*/0) < 0 ||
      H5Pset_file_image_callbacks(access.get(), &callbacks) < 0 ||
      H5Pset_libver_bounds(access.get(), H5F_LIBVER_V110, H5F_LIBVER_V110) <
          0) {
    return WriterError("cannot set properties");
  }
  return access;
}

}  // namespace

Hdf5Image::Hdf5Image(void* data, int64_t bytes, int64_t capacity)
    : data_(data), bytes_(bytes), capacity_(capacity) {}
Hdf5Image::Hdf5Image(Hdf5Image&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      capacity_(std::exchange(other.capacity_, 0)) {}
Hdf5Image& Hdf5Image::operator=(Hdf5Image&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(capacity_, other.capacity_);
  return *this;
}
Hdf5Image::~Hdf5Image() { std::free(data_); }

struct Hdf5Writer::State {
  ~State() {
    file.Close();
    std::free(block.data);
  }
  Block block;
  Handle file;
};

Hdf5Writer::Hdf5Writer(std::unique_ptr<State> state)
    : state_(std::move(state)) {}
Hdf5Writer::Hdf5Writer(Hdf5Writer&&) noexcept = default;
Hdf5Writer::~Hdf5Writer() = default;

absl::StatusOr<Hdf5Writer> Hdf5Writer::Create(Hdf5Image old,
                                              int64_t expected_bytes) {
  hdf5_internal::Prepare();
  auto state = std::make_unique<State>();
  Block& block = state->block;
  if (old.capacity_ < expected_bytes) {
    // Away before there is another: both may not fit.
    old = Hdf5Image();
    // HDF5 asks for multiples of its growth.
    const size_t wanted = static_cast<size_t>(expected_bytes) / kGrowthBytes;
    block.capacity = (wanted + 1) * kGrowthBytes;
    block.data = std::malloc(block.capacity);
    if (block.data == nullptr) return WriterError("no memory");
  } else {
    block.data = std::exchange(old.data_, nullptr);
    block.capacity = static_cast<size_t>(std::exchange(old.capacity_, 0));
  }
  CUBIT_ASSIGN_OR_RETURN(const Handle access, AccessProperties(&state->block));
  const Handle creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
  if (!creation.ok() || H5Pset_obj_track_times(creation.get(), false) < 0 ||
      H5Pset_attr_phase_change(creation.get(), kMaxAttributes, 0) < 0) {
    return WriterError("cannot set properties");
  }
  // The name is not used: nothing is written to disk.
  state->file =
      Handle(H5Fcreate("image.h5", H5F_ACC_TRUNC, creation.get(), access.get()),
             H5Fclose);
  if (!state->file.ok()) return WriterError("cannot create");
  return Hdf5Writer(std::move(state));
}

absl::Status Hdf5Writer::WriteArray(const std::string& name, Hdf5Type type,
                                    int64_t chunk, const void* values,
                                    int64_t count) {
  CUBIT_CHECK_GE(count, 1);
  CUBIT_CHECK_GE(chunk, 1);
  const hsize_t extent = static_cast<hsize_t>(count);
  const hsize_t chunk_extent = static_cast<hsize_t>(std::min(chunk, count));
  const Handle space(H5Screate_simple(1, &extent, nullptr), H5Sclose);
  const Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  if (!space.ok() || !creation.ok() ||
      H5Pset_obj_track_times(creation.get(), false) < 0 ||
      H5Pset_chunk(creation.get(), 1, &chunk_extent) < 0 ||
      H5Pset_fletcher32(creation.get()) < 0) {
    return WriterError(absl::StrCat("cannot describe /", name));
  }
  Handle array(
      H5Dcreate2(state_->file.get(), name.c_str(), FileType(type), space.get(),
                 H5P_DEFAULT, creation.get(), H5P_DEFAULT),
      H5Dclose);
  if (!array.ok() ||
      H5Dwrite(array.get(), MemoryType(type), H5S_ALL, H5S_ALL, H5P_DEFAULT,
               values) < 0 ||
      !array.Close()) {
    return WriterError(absl::StrCat("cannot write /", name));
  }
  return absl::OkStatus();
}

absl::Status Hdf5Writer::SetAttribute(const std::string& name, int64_t value) {
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  Handle attribute(H5Acreate2(state_->file.get(), name.c_str(), H5T_STD_I64LE,
                              space.get(), H5P_DEFAULT, H5P_DEFAULT),
                   H5Aclose);
  if (!attribute.ok() ||
      H5Awrite(attribute.get(), H5T_NATIVE_INT64, &value) < 0 ||
      !attribute.Close()) {
    return WriterError(absl::StrCat("cannot write attribute ", name));
  }
  return absl::OkStatus();
}

absl::Status Hdf5Writer::SetAttribute(const std::string& name,
                                      absl::string_view value) {
  // A string type cannot have length 0; the empty string is one zero byte.
  std::string bytes(value);
  if (bytes.empty()) bytes.push_back('\0');
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  const Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  if (!space.ok() || !type.ok() || H5Tset_size(type.get(), bytes.size()) < 0 ||
      H5Tset_strpad(type.get(), H5T_STR_NULLPAD) < 0 ||
      H5Tset_cset(type.get(), H5T_CSET_UTF8) < 0) {
    return WriterError(absl::StrCat("cannot describe attribute ", name));
  }
  Handle attribute(H5Acreate2(state_->file.get(), name.c_str(), type.get(),
                              space.get(), H5P_DEFAULT, H5P_DEFAULT),
                   H5Aclose);
  if (!attribute.ok() ||
      H5Awrite(attribute.get(), type.get(), bytes.data()) < 0 ||
      !attribute.Close()) {
    return WriterError(absl::StrCat("cannot write attribute ", name));
  }
  return absl::OkStatus();
}

absl::StatusOr<Hdf5Image> Hdf5Writer::Finish() {
  if (H5Fflush(state_->file.get(), H5F_SCOPE_GLOBAL) < 0 ||
      !state_->file.Close()) {
    return WriterError("cannot close");
  }
  CUBIT_CHECK(state_->block.closed) << "HDF5 kept a handle to the image";
  int64_t bytes = 0;
  std::memcpy(&bytes, static_cast<char*>(state_->block.data) + kEofOffset,
              sizeof(bytes));
  return Hdf5Image(std::exchange(state_->block.data, nullptr), bytes,
                   static_cast<int64_t>(state_->block.capacity));
}

}  // namespace cubit
