// SPDX-License-Identifier: Apache-2.0

#ifndef CUBIT_RUNTIME_HOST_NAME_H_
#define CUBIT_RUNTIME_HOST_NAME_H_

#include <string>

namespace cubit {

// This machine's name, as the system knows it; "localhost" if it does not.
std::string HostName();

}  // namespace cubit

#endif  // CUBIT_RUNTIME_HOST_NAME_H_
