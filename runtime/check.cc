// SPDX-License-Identifier: Apache-2.0

#include "runtime/check.h"

#include <cstdio>
#include <cstdlib>

namespace cubit {
namespace check_internal {

Failure::Failure(const char* file, int line, const std::string& condition) {
  stream_ << file << ":" << line << ": check failed: " << condition << " ";
}

Failure::~Failure() {
  std::fprintf(stderr, "%s\n", stream_.str().c_str());
  std::fflush(stderr);
  std::abort();  // the failure signal handler prints the stack trace
}

}  // namespace check_internal
}  // namespace cubit
