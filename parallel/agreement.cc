// SPDX-License-Identifier: Apache-2.0

#include "parallel/agreement.h"

#include <cstddef>
#include <cstdint>

#include "absl/strings/str_cat.h"

#include "runtime/device.h"
#include "runtime/status_macros.h"
#include "runtime/tensor.h"

namespace cubit {
namespace {

bool IsAlone(Communicator* group) {
  return group == nullptr || group->size() == 1;
}

Tensor Bytes(std::string& text) {
  return Tensor(text.data(), DType::kUInt8,
                {static_cast<int64_t>(text.size())});
}

// One number of each rank, in their order, on every rank.
absl::StatusOr<std::vector<int64_t>> GatherNumbers(Communicator& group,
                                                   int64_t mine,
                                                   Stream& stream) {
  std::vector<int64_t> all(static_cast<size_t>(group.size()));
  const Tensor output(all.data(), DType::kInt64, {group.size()});
  CUBIT_RETURN_IF_ERROR(
      group.AllGather(ConstTensor(&mine, DType::kInt64, {1}), output, stream));
  stream.Synchronize();
  return all;
}

}  // namespace

absl::Status Agree(Communicator* group, const absl::Status& mine) {
  if (IsAlone(group)) return mine;
  Stream stream;
  CUBIT_ASSIGN_OR_RETURN(
      const std::vector<int64_t> codes,
      GatherNumbers(*group, static_cast<int64_t>(mine.code()), stream));
  for (size_t rank = 0; rank < codes.size(); ++rank) {
    if (codes[rank] == 0) continue;
    CUBIT_ASSIGN_OR_RETURN(const std::string message,
                           BroadcastText(group, std::string(mine.message()),
                                         static_cast<int>(rank)));
    return absl::Status(static_cast<absl::StatusCode>(codes[rank]),
                        absl::StrCat("rank ", rank, ": ", message));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> BroadcastText(Communicator* group,
                                          const std::string& text, int root) {
  if (IsAlone(group)) return text;
  Stream stream;
  int64_t size = static_cast<int64_t>(text.size());
  CUBIT_RETURN_IF_ERROR(
      group->Broadcast(Tensor(&size, DType::kInt64, {1}), root, stream));
  stream.Synchronize();
  std::string result = text;
  result.resize(static_cast<size_t>(size));
  CUBIT_RETURN_IF_ERROR(group->Broadcast(Bytes(result), root, stream));
  stream.Synchronize();
  return result;
}

absl::StatusOr<std::vector<std::string>> GatherTexts(Communicator* group,
                                                     const std::string& text) {
  if (IsAlone(group)) return std::vector<std::string>{text};
  Stream stream;
  CUBIT_ASSIGN_OR_RETURN(
      const std::vector<int64_t> sizes,
      GatherNumbers(*group, static_cast<int64_t>(text.size()), stream));
  std::vector<std::string> texts;
  std::string mine = text;
  if (group->rank() != 0) {
    CUBIT_RETURN_IF_ERROR(group->Send(Bytes(mine), 0, stream));
    stream.Synchronize();
    return texts;
  }
  texts.push_back(std::move(mine));
  for (size_t rank = 1; rank < sizes.size(); ++rank) {
    texts.emplace_back(static_cast<size_t>(sizes[rank]), '\0');
    CUBIT_RETURN_IF_ERROR(
        group->Recv(Bytes(texts.back()), static_cast<int>(rank), stream));
  }
  stream.Synchronize();
  return texts;
}

}  // namespace cubit
