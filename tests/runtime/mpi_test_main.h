// SPDX-License-Identifier: Apache-2.0
//
// Tests whose ranks are processes: every rank runs the same test program. The
// program starts itself under mpirun.
//
// Such tests are tagged `local`: in two sandboxes mpirun has the same process
// id, from which Open MPI names shared memory, and one job takes the other's.

#ifndef CUBIT_TESTS_RUNTIME_MPI_TEST_MAIN_H_
#define CUBIT_TESTS_RUNTIME_MPI_TEST_MAIN_H_

#include "runtime/communicator_mpi.h"

namespace cubit {

// Of the tests that run; it exists from main() on.
MpiSession& TestSession();

// The whole of main(): runs all tests with `num_ranks` ranks; rank 0 prints,
// the others print their failures. Without mpirun one test that says so is
// skipped and the status is 0.
int RunTestsUnderMpi(int argc, char** argv, int num_ranks);

}  // namespace cubit

#endif  // CUBIT_TESTS_RUNTIME_MPI_TEST_MAIN_H_
