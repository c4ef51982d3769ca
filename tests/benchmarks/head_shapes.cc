// SPDX-License-Identifier: Apache-2.0

#include "tests/benchmarks/head_shapes.h"

#include <cstdio>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"

ABSL_FLAG(std::vector<std::string>, shapes,
          std::vector<std::string>({"8x16x1024x64", "8x32x1024x64",
                                    "8x16x1024x128", "2x16x4096x128",
                                    "1x16x8192x128", "1x12x8192x64"}),
          "BxHxTxK of every measurement, separated by commas");

namespace cubit {

absl::StatusOr<std::vector<HeadShape>> HeadShapesOfFlag() {
  std::vector<HeadShape> shapes;
  for (const std::string& text : absl::GetFlag(FLAGS_shapes)) {
    char rest = 0;
    long long parts[4];  // NOLINT(google-runtime-int): what sscanf reads
    if (std::sscanf(text.c_str(), "%lldx%lldx%lldx%lld%c", &parts[0], &parts[1],
                    &parts[2], &parts[3], &rest) != 4) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--shapes: wanted BxHxTxK, such as 8x16x1024x64, got ", text));
    }
    shapes.push_back({parts[0], parts[1], parts[2], parts[3]});
  }
  return shapes;
}

}  // namespace cubit
