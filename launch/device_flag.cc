// SPDX-License-Identifier: Apache-2.0

#include "launch/device_flag.h"

#include <string>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"

#include "runtime/device.h"

ABSL_FLAG(std::string, device, "auto",
          "auto (a GPU if there is one), cpu or cuda");

namespace cubit {

absl::Status CheckDeviceFlag() {
  const std::string device = absl::GetFlag(FLAGS_device);
  if (device == "auto" || device == DeviceKind()) return absl::OkStatus();
  if (device == "cpu" || device == "cuda") {
    return absl::FailedPreconditionError(
        absl::StrCat("--device=", device, ", but this is the worker for ",
                     DeviceKind(), "; start the program without _",
                     DeviceKind(), " in its name, which picks one"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--device is \"", device, "\"; give auto, cpu or cuda"));
}

}  // namespace cubit
