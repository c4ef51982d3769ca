// SPDX-License-Identifier: Apache-2.0
//
// What ProbeGpus asks of a CUDA driver, answered from the environment.

#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace {

int Number(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? 0 : std::atoi(value);
}

}  // namespace

// NOLINTBEGIN(readability-identifier-naming): the driver's names
extern "C" {

int cuInit(unsigned) {
  if (const char* path = std::getenv("TOY_PID")) {
    std::FILE* file = std::fopen(path, "a");
    std::fprintf(file, "%d\n", static_cast<int>(getpid()));
    std::fclose(file);
  }
  if (Number("TOY_ABORTS") != 0) std::abort();
  return 0;
}

int cuDeviceGetCount(int* count) {
  *count = Number("TOY_GPUS");
  return 0;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 75 ? Number("TOY_MAJOR") : 5;
  return 0;
}

}  // extern "C"
// NOLINTEND(readability-identifier-naming)
