// SPDX-License-Identifier: Apache-2.0

#include "data/hdf5_internal.h"

#include <mutex>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

#include "runtime/check.h"

namespace cubit {
namespace hdf5_internal {
namespace {

struct Reasons {
  std::string outermost;
  std::string innermost;
};

herr_t Collect(unsigned, const H5E_error2_t* error, void* collected) {
  auto* reasons = static_cast<Reasons*>(collected);
  const std::string reason = error->desc != nullptr ? error->desc : "";
  if (reason.empty()) return 0;
  if (reasons->outermost.empty()) reasons->outermost = reason;
  reasons->innermost = reason;
  return 0;
}

}  // namespace

void Prepare() {
  static std::once_flag once;
  std::call_once(once, [] {
    CUBIT_CHECK(H5open() >= 0) << "the HDF5 library does not start";
    CUBIT_CHECK(H5PLset_loading_state(0) >= 0);
  });
  thread_local const bool quiet =
      H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  CUBIT_CHECK(quiet);
}

hid_t FileType(Hdf5Type type) {
  switch (type) {
    case Hdf5Type::kUint16:
      return H5T_STD_U16LE;
    case Hdf5Type::kUint32:
      return H5T_STD_U32LE;
    case Hdf5Type::kUint64:
      break;
  }
  return H5T_STD_U64LE;
}

hid_t MemoryType(Hdf5Type type) {
  switch (type) {
    case Hdf5Type::kUint16:
      return H5T_NATIVE_UINT16;
    case Hdf5Type::kUint32:
      return H5T_NATIVE_UINT32;
    case Hdf5Type::kUint64:
      break;
  }
  return H5T_NATIVE_UINT64;
}

std::string LastReason() {
  Reasons reasons;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, Collect, &reasons);
  if (reasons.innermost.empty()) return "HDF5 gives no reason";
  std::string reason =
      reasons.outermost == reasons.innermost
          ? reasons.innermost
          : absl::StrCat(reasons.outermost, ": ", reasons.innermost);
  if (absl::StrContains(reason, "lock file")) {
    absl::StrAppend(&reason,
                    " (another program writes it, or the file system has no "
                    "locks: then set HDF5_USE_FILE_LOCKING=FALSE)");
  }
  return reason;
}

absl::Status Error(absl::StatusCode code, absl::string_view path,
                   absl::string_view what) {
  return absl::Status(code, absl::StrCat(path, ": ", what, ": ", LastReason()));
}

}  // namespace hdf5_internal

int64_t SizeOf(Hdf5Type type) {
  return type == Hdf5Type::kUint16 ? 2 : type == Hdf5Type::kUint32 ? 4 : 8;
}

const char* NameOf(Hdf5Type type) {
  return type == Hdf5Type::kUint16   ? "uint16"
         : type == Hdf5Type::kUint32 ? "uint32"
                                     : "uint64";
}

}  // namespace cubit
