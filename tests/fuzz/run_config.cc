// SPDX-License-Identifier: Apache-2.0
//
// Configurations as text proto, and one change of a key after the first line
// that begins with '@'. What is accepted must survive being written in full and
// read again.

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

#include "launch/config.h"
#include "launch/config_checks.h"
#include "runtime/check.h"

namespace cubit {
namespace {

void ParseAndResolve(absl::string_view bytes) {
  const size_t end = bytes.find("\n@");
  absl::StatusOr<RunConfig> config = ParseConfig(bytes.substr(0, end), "text");
  if (!config.ok()) {
    CUBIT_CHECK(!config.status().message().empty());
    return;
  }
  if (end != absl::string_view::npos) {
    const absl::Status changed = ApplyOverride(bytes.substr(end + 2), &*config);
    CUBIT_CHECK(changed.ok() || !changed.message().empty());
  }
  if (!ValidateConfig(*config).ok()) return;
  const std::string text = ResolvedText(*config);
  const absl::StatusOr<RunConfig> again = ParseConfig(text, "written");
  CUBIT_CHECK(again.ok()) << again.status();
  CUBIT_CHECK(ResolvedText(*again) == text);
}

}  // namespace
}  // namespace cubit

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  cubit::ParseAndResolve({reinterpret_cast<const char*>(data), size});
  return 0;
}
