// SPDX-License-Identifier: Apache-2.0

#include "launch/gpu_probe.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <type_traits>

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

GpuProbe AskDriver() {
  GpuProbe probe;
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
  probe.is_unusable = probe.num_gpus == 0;
  return probe;
}

// What the child says of a GpuProbe, in one write: a pipe takes so many bytes
// whole.
struct Answer {
  int num_gpus = 0;
  bool is_unusable = false;
  char problem[256] = {};
};

[[noreturn]] void Say(const GpuProbe& probe, int pipe) {
  Answer answer;
  answer.num_gpus = probe.num_gpus;
  answer.is_unusable = probe.is_unusable;
  probe.problem.copy(answer.problem, sizeof(answer.problem) - 1);
  _exit(write(pipe, &answer, sizeof(answer)) == sizeof(answer) ? 0 : 1);
}

GpuProbe Failed(const std::string& what) {
  GpuProbe probe;
  probe.problem = absl::StrCat("the look for GPUs failed: ", what);
  probe.is_unusable = true;
  return probe;
}

std::string HowItEnded(int status) {
  const bool by_signal = WIFSIGNALED(status);
  return absl::StrCat("the NVIDIA driver ended its process with ",
                      by_signal ? "signal " : "status ",
                      by_signal ? WTERMSIG(status) : WEXITSTATUS(status));
}

GpuProbe AskInChild() {
  int pipe[2];
  if (pipe2(pipe, O_CLOEXEC) != 0) return Failed(std::strerror(errno));
  const pid_t child = fork();
  if (child == 0) Say(AskDriver(), pipe[1]);
  const int error = errno;
  close(pipe[1]);
  Answer answer;
  ssize_t size = -1;
  int status = 0;
  if (child > 0) {
    do {
      size = read(pipe[0], &answer, sizeof(answer));
    } while (size < 0 && errno == EINTR);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
  }
  close(pipe[0]);
  if (child < 0) return Failed(std::strerror(error));
  if (size != sizeof(answer)) return Failed(HowItEnded(status));
  return {answer.num_gpus, answer.problem, answer.is_unusable};
}

}  // namespace

GpuProbe ProbeGpus() {
  static const auto* const probe = new GpuProbe(AskInChild());
  return *probe;
}

}  // namespace cubit
