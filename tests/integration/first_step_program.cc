// SPDX-License-Identifier: Apache-2.0
//
// first_step OUT.safetensors OVERRIDES...: the gradients of the first step of a
// small model on this program's device, and the losses of five steps, fp32.
// gradients_cuda_test compares what the workers of two back ends write.

#include <string>
#include <vector>

#include "absl/strings/str_join.h"

#include "parallel/safetensors.h"
#include "runtime/command_line.h"
#include "runtime/file_system.h"
#include "runtime/status_macros.h"
#include "runtime/tensor.h"
#include "tests/integration/parallel_gate.h"

namespace cubit {
namespace {

absl::Status WriteFirstStep(const std::string& path,
                            const std::string& overrides) {
  GateCell cell;
  cell.model = overrides;
  const GateReference& run = GateReference::Of(cell);
  std::vector<std::vector<float>> values = {
      {run.run().losses.begin(), run.run().losses.end()}};
  std::vector<std::string> names = {"losses"};
  for (const std::string& name : run.ParameterNames()) {
    names.push_back(name);
    values.push_back(run.gradient(name));
  }
  std::vector<SafetensorsEntry> entries;
  for (size_t i = 0; i < names.size(); ++i) {
    entries.push_back(
        {names[i], DType::kFloat32, {static_cast<int64_t>(values[i].size())}});
  }
  CUBIT_ASSIGN_OR_RETURN(
      SafetensorsWriter writer,
      SafetensorsWriter::Create(FileSystem::Posix(), path, entries, {}));
  for (size_t i = 0; i < entries.size(); ++i) {
    CUBIT_RETURN_IF_ERROR(writer.Append(
        ConstTensor(values[i].data(), entries[i].dtype, entries[i].shape)));
  }
  return writer.Finish();
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.empty()) return 1;
  return cubit::ExitStatus(cubit::WriteFirstStep(
      words[0], absl::StrJoin(words.begin() + 1, words.end(), " ")));
}
