// SPDX-License-Identifier: Apache-2.0
//
// The communicator of one rank: collectives copy input to output on the
// stream, so that code written for many ranks runs without a special case. On
// any back end.

#ifndef CUBIT_RUNTIME_COMMUNICATOR_SINGLE_H_
#define CUBIT_RUNTIME_COMMUNICATOR_SINGLE_H_

#include <memory>

#include "absl/strings/string_view.h"

#include "runtime/communicator.h"

namespace cubit {

std::unique_ptr<Communicator> MakeSingleCommunicator(absl::string_view name);

}  // namespace cubit

#endif  // CUBIT_RUNTIME_COMMUNICATOR_SINGLE_H_
