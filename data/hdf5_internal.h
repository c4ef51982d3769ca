// SPDX-License-Identifier: Apache-2.0
//
// What hdf5_reader.cc and hdf5_writer.cc share: owned handles and errors.

#ifndef CUBIT_DATA_HDF5_INTERNAL_H_
#define CUBIT_DATA_HDF5_INTERNAL_H_

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include <hdf5.h>

#include "data/hdf5_file.h"

namespace cubit {
namespace hdf5_internal {

// Owns a handle of any kind.
class Handle {
 public:
  using Closer = herr_t (*)(hid_t);
  Handle() = default;
  Handle(hid_t id, Closer closer) : id_(id), closer_(closer) {}
  Handle(Handle&& other) noexcept
      : id_(std::exchange(other.id_, -1)), closer_(other.closer_) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(closer_, other.closer_);
    return *this;
  }
  ~Handle() { Close(); }

  bool ok() const { return id_ >= 0; }
  hid_t get() const { return id_; }
  // False if HDF5 reports an error.
  bool Close() {
    const hid_t id = std::exchange(id_, -1);
    return id < 0 || closer_(id) >= 0;
  }

 private:
  hid_t id_ = -1;
  Closer closer_ = nullptr;
};

// Before any other call on a thread: HDF5 keeps its error printing per thread.
// Also turns off loading of plug-ins, which a file could name.
void Prepare();

// The type in files and the one in memory.
hid_t FileType(Hdf5Type type);
hid_t MemoryType(Hdf5Type type);

// HDF5's reason for the last failed call on this thread: outermost and
// innermost description.
std::string LastReason();

// "PATH: WHAT: reason".
absl::Status Error(absl::StatusCode code, absl::string_view path,
                   absl::string_view what);

}  // namespace hdf5_internal
}  // namespace cubit

#endif  // CUBIT_DATA_HDF5_INTERNAL_H_
