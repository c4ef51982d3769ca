// SPDX-License-Identifier: Apache-2.0
//
// Real texts and test vectors outside the repository, in the folder that the
// environment variable CUBIT_SHARED names. Tests that need them begin with
// CUBIT_SKIP_WITHOUT_SHARED_DATA().

#ifndef CUBIT_TESTS_DATA_SHARED_DATA_H_
#define CUBIT_TESTS_DATA_SHARED_DATA_H_

#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace cubit {

bool HasSharedData();

// Path of a file below the folder's data/.
std::string SharedPath(const std::string& name);

// Contents, decompressed by suffix; fails the test if it cannot be read.
std::string ReadSharedFile(const std::string& name);

// The same cut into lines.
std::vector<std::string> ReadSharedLines(const std::string& name);

}  // namespace cubit

#define CUBIT_SKIP_WITHOUT_SHARED_DATA()                                   \
  if (!::cubit::HasSharedData())                                           \
  GTEST_SKIP() << "skipped: needs CUBIT_SHARED (the folder of real texts " \
                  "and tokenizer vectors)"

#endif  // CUBIT_TESTS_DATA_SHARED_DATA_H_
