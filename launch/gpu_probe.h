// SPDX-License-Identifier: Apache-2.0
//
// Is there a GPU? Asks the driver, without linking anything of CUDA and without
// the driver in this process.

#ifndef CUBIT_LAUNCH_GPU_PROBE_H_
#define CUBIT_LAUNCH_GPU_PROBE_H_

#include <string>

namespace cubit {

struct GpuProbe {
  int num_gpus = 0;     // that programs of this build may compute on
  std::string problem;  // why there are none: "no driver (libcuda.so.1) ..."
  // Something is here that does not serve: a warning is due where the CPU is
  // taken instead.
  bool is_unusable = false;
};

// Loads the driver's library, if there is one, and counts the GPUs that it
// shows this process (CUDA_VISIBLE_DEVICES is the driver's to honour). A child
// does it, so that this process has no threads and open devices of the driver
// when it becomes another program: under compute-sanitizer, which follows the
// driver, such a program was seen to wait for ever. The driver's start takes a
// good part of a second, so it is asked once: later calls have the first one's
// answer. Call it before threads are started.
GpuProbe ProbeGpus();

}  // namespace cubit

#endif  // CUBIT_LAUNCH_GPU_PROBE_H_
