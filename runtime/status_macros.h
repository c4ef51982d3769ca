// SPDX-License-Identifier: Apache-2.0
//
// Early return for absl::Status. Errors of the outside world (files, requests,
// memory, peers) travel as Status up to main; broken contracts of our own code
// are CUBIT_CHECKs (check.h).

#ifndef CUBIT_RUNTIME_STATUS_MACROS_H_
#define CUBIT_RUNTIME_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Returns from the enclosing function if `expression` is not OK.
#define CUBIT_RETURN_IF_ERROR(expression)          \
  do {                                             \
    absl::Status cubit_status_ = (expression);     \
    if (!cubit_status_.ok()) return cubit_status_; \
  } while (false)

#define CUBIT_STATUS_CONCAT_INNER_(a, b) a##b
#define CUBIT_STATUS_CONCAT_(a, b) CUBIT_STATUS_CONCAT_INNER_(a, b)

// Evaluates a StatusOr; returns its error or moves its value into `target`,
// which may be a declaration.
#define CUBIT_ASSIGN_OR_RETURN(target, expression) \
  CUBIT_ASSIGN_OR_RETURN_IMPL_(                    \
      CUBIT_STATUS_CONCAT_(cubit_status_or_, __LINE__), target, expression)

#define CUBIT_ASSIGN_OR_RETURN_IMPL_(cubit_or, target, expression) \
  auto cubit_or = (expression);                                    \
  if (!cubit_or.ok()) return cubit_or.status();                    \
  target = std::move(cubit_or).value()

#endif  // CUBIT_RUNTIME_STATUS_MACROS_H_
