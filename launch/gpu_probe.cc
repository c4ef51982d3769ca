// SPDX-License-Identifier: Apache-2.0

#include "launch/gpu_probe.h"

#include <dlfcn.h>

#include "absl/strings/str_cat.h"

namespace cubit {
namespace {

// Names, numbers and calling convention of the CUDA driver API, which are
// stable by its manual; 0 is success.
constexpr char kLibrary[] = "libcuda.so.1";
constexpr int kMajor = 75;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
constexpr int kMinor = 76;

// The kernels need bf16 matrix products and asynchronous copies.
constexpr int kOldestMajor = 8;

struct Driver {
  int (*init)(unsigned flags) = nullptr;
  int (*device_count)(int* count) = nullptr;
  int (*device_attribute)(int* value, int attribute, int device) = nullptr;
};

bool Load(void* library, Driver* driver) {
  const auto find = [library](const char* name, auto* function) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(
        dlsym(library, name));
    return *function != nullptr;
  };
  return find("cuInit", &driver->init) &&
         find("cuDeviceGetCount", &driver->device_count) &&
         find("cuDeviceGetAttribute", &driver->device_attribute);
}

}  // namespace

GpuProbe ProbeGpus() {
  GpuProbe probe;
  // Never unloaded: the driver may have started threads.
  void* library = dlopen(kLibrary, RTLD_NOW);
  Driver driver;
  if (library == nullptr || !Load(library, &driver)) {
    probe.problem = absl::StrCat("no NVIDIA driver (", kLibrary, ") is here");
    return probe;
  }
  const int error = driver.init(0);
  int count = 0;
  if (error != 0 || driver.device_count(&count) != 0 || count == 0) {
    probe.problem = absl::StrCat(
        "the NVIDIA driver shows no GPU",
        error == 0 ? "" : absl::StrCat(" (cuInit gives ", error, ")"),
        "; see nvidia-smi and CUDA_VISIBLE_DEVICES");
    return probe;
  }
  for (int device = 0; device < count; ++device) {
    int major = 0;
    int minor = 0;
    driver.device_attribute(&major, kMajor, device);
    driver.device_attribute(&minor, kMinor, device);
    if (major >= kOldestMajor) {
      ++probe.num_gpus;
    } else {
      probe.problem =
          absl::StrCat("GPU ", device, " has compute capability ", major, ".",
                       minor, "; ", kOldestMajor, ".0 or newer is needed");
    }
  }
  probe.too_old = probe.num_gpus == 0;
  return probe;
}

}  // namespace cubit
