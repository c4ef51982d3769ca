// SPDX-License-Identifier: Apache-2.0
//
// The front of a program that may have several ranks (launcher.h).

#include "launch/launcher.h"

int main(int argc, char** argv) { return cubit::LauncherMain(argc, argv); }
