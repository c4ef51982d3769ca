// SPDX-License-Identifier: Apache-2.0
//
// A run of several processes in which one does what its only argument says:
//   end      nothing wrong
//   hang     rank 2 does not enter the barrier that the others are in
//   stop     rank 2 stops itself (SIGSTOP)
//   check    a check fails on rank 1 while the others wait
//   die      rank 1 ends without a word

#include <signal.h>
#include <unistd.h>

#include <string>

#include "absl/time/time.h"

#include "runtime/check.h"
#include "runtime/communicator.h"
#include "runtime/communicator_mpi.h"
#include "runtime/device.h"
#include "runtime/watchdog.h"

namespace cubit {
namespace {

void Misbehave(const std::string& what, int rank) {
  if (what == "hang" && rank == 2) {
    while (true) pause();
  }
  if (what == "stop" && rank == 2) raise(SIGSTOP);
  if (what == "check") CUBIT_CHECK(rank != 1) << "as asked";
  if (what == "die" && rank == 1) raise(SIGKILL);
}

void Run(const std::string& what) {
  auto session = MpiSession::Start();
  CUBIT_CHECK_OK(session);
  MpiOptions mpi;
  mpi.timeout = absl::Seconds(60);
  auto world = (*session)->MakeCommunicator("world", mpi);
  CUBIT_CHECK_OK(world);
  WatchdogOptions options;
  const bool hang = what == "hang";
  options.operation_limit = hang ? absl::Milliseconds(300) : absl::Minutes(1);
  options.silence_limit = hang ? absl::Minutes(1) : absl::Milliseconds(600);
  auto watchdog = Watchdog::Start(**world, options);
  CUBIT_CHECK_OK(watchdog);
  (*watchdog)->Watch((*world)->flight_recorder());
  (*watchdog)->SetStep(3);
  (*watchdog)->SetActivity("the barrier");
  Stream stream;
  CUBIT_CHECK_OK((*world)->Barrier(stream));
  Misbehave(what, (*world)->rank());
  CUBIT_CHECK_OK((*world)->Barrier(stream));
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  cubit::Run(argc > 1 ? argv[1] : "end");
  return 0;
}
