// SPDX-License-Identifier: Apache-2.0

#include "runtime/check.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace cubit {
namespace {

std::atomic<FatalHook> fatal_hook{nullptr};

}  // namespace

FatalHook SetFatalHook(FatalHook hook) { return fatal_hook.exchange(hook); }

void CallFatalHook(const char* message) {
  const FatalHook hook = SetFatalHook(nullptr);
  if (hook != nullptr) hook(message);
}

namespace check_internal {

Failure::Failure(const char* file, int line, const std::string& condition) {
  stream_ << file << ":" << line << ": check failed: " << condition << " ";
}

Failure::~Failure() {
  std::fprintf(stderr, "%s\n", stream_.str().c_str());
  std::fflush(stderr);
  CallFatalHook(stream_.str().c_str());
  std::abort();  // the failure signal handler prints the stack trace
}

}  // namespace check_internal
}  // namespace cubit
