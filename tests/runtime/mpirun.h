// SPDX-License-Identifier: Apache-2.0
//
// Programs of several ranks, as tests start them.

#ifndef CUBIT_TESTS_RUNTIME_MPIRUN_H_
#define CUBIT_TESTS_RUNTIME_MPIRUN_H_

#include <string>
#include <vector>

namespace cubit {

// Whether mpirun is on the PATH (package openmpi-bin).
bool HasMpirun();

// The words that start `program` (its path and arguments) with so many ranks,
// more than there are cores or not, for cubit::testing::RunProgram.
std::vector<std::string> MpirunCommand(int num_ranks,
                                       const std::vector<std::string>& program);

// Becomes mpirun of so many ranks of this program's file with `arguments`, in
// this environment, to which it adds each rank's share of the processors
// (CUBIT_NUM_THREADS and OPENBLAS_NUM_THREADS, unless they are set). Returns
// only if there is no mpirun.
void BecomeMpirun(int num_ranks, const std::vector<std::string>& arguments);

}  // namespace cubit

#endif  // CUBIT_TESTS_RUNTIME_MPIRUN_H_
