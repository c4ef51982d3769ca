// SPDX-License-Identifier: Apache-2.0
//
// SIGINT and SIGTERM ask the run to stop after the current step; a second one
// ends it at once.

#ifndef CUBIT_LAUNCH_INTERRUPT_H_
#define CUBIT_LAUNCH_INTERRUPT_H_

namespace cubit {

// Installs the handlers. The first signal is remembered and said on the
// terminal; the second one ends the process with the signal's own status.
void InstallInterruptHandlers();

// The signal that asked to stop, or 0.
int InterruptSignal();

}  // namespace cubit

#endif  // CUBIT_LAUNCH_INTERRUPT_H_
