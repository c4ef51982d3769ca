// SPDX-License-Identifier: Apache-2.0

#include "launch/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>

namespace cubit {
namespace {

// Written by the handler: lock-free, so it is safe there.
std::atomic<int> interrupt_signal{0};

constexpr char kMessage[] =
    "\nstopping after this step (again: stop at once, without a checkpoint)\n";

void Remember(int signal) {
  if (interrupt_signal.exchange(signal) != 0) {
    // The default action, for the shell to see.
    ::signal(signal, SIG_DFL);
    raise(signal);
    return;
  }
  const ssize_t ignored = write(STDERR_FILENO, kMessage, sizeof(kMessage) - 1);
  (void)ignored;
}

}  // namespace

void InstallInterruptHandlers() {
  struct sigaction action = {};
  action.sa_handler = Remember;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

int InterruptSignal() { return interrupt_signal.load(); }

}  // namespace cubit
