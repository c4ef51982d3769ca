// SPDX-License-Identifier: Apache-2.0
//
// Is there a GPU? Asks the driver, without linking anything of CUDA.

#ifndef CUBIT_LAUNCH_GPU_PROBE_H_
#define CUBIT_LAUNCH_GPU_PROBE_H_

#include <string>

namespace cubit {

struct GpuProbe {
  int num_gpus = 0;      // that programs of this build may compute on
  std::string problem;   // why there are none: "no driver (libcuda.so.1) ..."
  bool too_old = false;  // some are here, but none of these
};

// Loads the driver's library, if there is one, and counts the GPUs that it
// shows this process (CUDA_VISIBLE_DEVICES is the driver's to honour).
GpuProbe ProbeGpus();

}  // namespace cubit

#endif  // CUBIT_LAUNCH_GPU_PROBE_H_
