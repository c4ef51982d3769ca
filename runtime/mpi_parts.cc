// SPDX-License-Identifier: Apache-2.0

#include "runtime/mpi_parts.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "runtime/collective_phases.h"
#include "runtime/dtype.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

using Kind = OperationKind;
using Ranges = std::vector<ElementRange>;

size_t Index(int rank) { return static_cast<size_t>(rank); }

void Copy(const void* from, void* to, int64_t bytes) {
  if (bytes > 0 && from != to) {
    std::memcpy(to, from, static_cast<size_t>(bytes));
  }
}

class PartMover {
 public:
  PartMover(const CollectiveCall& call, MpiTransfers& transfers)
      : call_(call),
        transfers_(transfers),
        element_bytes_(SizeOf(call.input.dtype())) {}

  absl::Status Run();

 private:
  int rank() const { return transfers_.rank(); }
  int size() const { return transfers_.size(); }
  MpiPurpose With(int peer) const { return {call_.kind, call_.sequence, peer}; }
  int64_t SizeOfPart(const ElementRange& part) const {
    return part.count * element_bytes_;
  }
  const char* Input(int64_t element) const {
    return static_cast<const char*>(call_.input.raw()) +
           element * element_bytes_;
  }
  char* Output(int64_t element) const {
    return static_cast<char*>(call_.output.raw()) + element * element_bytes_;
  }
  Ranges Deal(ElementRange block) const;

  absl::Status RunBlock(ElementRange block, int64_t total);
  // Rank q gets part q of the inputs; this rank's is reduced into the output
  // from element `out_begin` on.
  absl::Status Reduce(const Ranges& parts, int64_t out_begin);
  // Part q of the outputs comes from rank q, for all but rank `left_out`.
  absl::Status Gather(const Ranges& parts, int left_out);
  // Part q of the input goes to rank q, part q of the output comes from it.
  absl::Status Exchange(const Ranges& parts);
  absl::Status Broadcast(const Ranges& parts);

  const CollectiveCall& call_;
  MpiTransfers& transfers_;
  const int64_t element_bytes_;
};

// A block of a tensor that is dealt out to the ranks.
Ranges PartMover::Deal(ElementRange block) const {
  Ranges parts;
  parts.reserve(Index(size()));
  for (int q = 0; q < size(); ++q) {
    const ElementRange part = PartOf(block.count, size(), q);
    parts.push_back({block.begin + part.begin, part.count});
  }
  return parts;
}

// Cuts the operation into blocks, so that neither scratch memory nor MPI's
// counts overflow.
absl::Status PartMover::Run() {
  const int64_t n = call_.input.num_elements();
  const bool whole =
      call_.kind == Kind::kAllReduce || call_.kind == Kind::kBroadcast;
  // Elements of the tensor that is dealt out, or else of one rank's part.
  const int64_t total =
      whole || call_.kind == Kind::kAllGather ? n : n / size();
  const int64_t block =
      std::max<int64_t>(1, transfers_.group().block_bytes / element_bytes_ /
                               (whole ? 1 : size()));
  if (call_.kind == Kind::kAllGather) {
    Copy(Input(0), Output(rank() * n), n * element_bytes_);
  }
  for (int64_t begin = 0; begin < total; begin += block) {
    CUBIT_RETURN_IF_ERROR(
        RunBlock({begin, std::min(block, total - begin)}, total));
  }
  return absl::OkStatus();
}

absl::Status PartMover::RunBlock(ElementRange block, int64_t total) {
  Ranges parts;
  parts.reserve(Index(size()));
  for (int q = 0; q < size(); ++q) {
    parts.push_back({q * total + block.begin, block.count});
  }
  switch (call_.kind) {
    case Kind::kAllReduce:
      parts = Deal(block);
      CUBIT_RETURN_IF_ERROR(Reduce(parts, parts[Index(rank())].begin));
      return Gather(parts, -1);
    case Kind::kReduceScatter:
      return Reduce(parts, block.begin);
    case Kind::kAllGather:
      return Gather(parts, -1);
    case Kind::kAllToAll:
      return Exchange(parts);
    default:
      return Broadcast(Deal(block));
  }
}

// The root deals out parts, then all ranks but the root gather them: no rank
// sends more than 2 (size - 1) / size of the tensor.
absl::Status PartMover::Broadcast(const Ranges& parts) {
  if (rank() == call_.root) {
    MpiScratch& staging = transfers_.staging();
    int64_t bytes = 0;
    for (const ElementRange& part : parts) bytes += SizeOfPart(part);
    staging.Reserve(bytes);
    for (int i = 0; i + 1 < size(); ++i) {
      const int q = transfers_.Other(i);
      const ElementRange part = parts[Index(q)];
      CUBIT_RETURN_IF_ERROR(transfers_.Send(
          With(q), staging.TakeCopy(Input(part.begin), SizeOfPart(part)),
          SizeOfPart(part)));
    }
  } else {
    const ElementRange mine = parts[Index(rank())];
    CUBIT_RETURN_IF_ERROR(transfers_.Receive(
        With(call_.root), Output(mine.begin), SizeOfPart(mine)));
  }
  CUBIT_RETURN_IF_ERROR(transfers_.Complete());
  return Gather(parts, call_.root);
}

absl::Status PartMover::Reduce(const Ranges& parts, int64_t out_begin) {
  const ElementRange mine = parts[Index(rank())];
  int64_t total = 0;
  for (const ElementRange& part : parts) total += SizeOfPart(part);
  MpiScratch& landing = transfers_.landing();
  MpiScratch& staging = transfers_.staging();
  landing.Reserve((size() - 1) * SizeOfPart(mine));
  staging.Reserve(total - SizeOfPart(mine));
  std::vector<const void*> inputs(parts.size(), Input(mine.begin));
  for (int i = 0; i + 1 < size(); ++i) {
    const int q = transfers_.Other(i);
    char* const slot = landing.Take(SizeOfPart(mine));
    inputs[Index(q)] = slot;
    CUBIT_RETURN_IF_ERROR(transfers_.Receive(With(q), slot, SizeOfPart(mine)));
  }
  for (int i = 0; i + 1 < size(); ++i) {
    const int q = transfers_.Other(i);
    const ElementRange theirs = parts[Index(q)];
    CUBIT_RETURN_IF_ERROR(transfers_.Send(
        With(q), staging.TakeCopy(Input(theirs.begin), SizeOfPart(theirs)),
        SizeOfPart(theirs)));
  }
  CUBIT_RETURN_IF_ERROR(transfers_.Complete());
  ReduceInOrder(inputs, call_.input.dtype(), call_.reduce_op, mine.count,
                Output(out_begin));
  return absl::OkStatus();
}

absl::Status PartMover::Gather(const Ranges& parts, int left_out) {
  const ElementRange mine = parts[Index(rank())];
  MpiScratch& staging = transfers_.staging();
  staging.Reserve(SizeOfPart(mine));
  const char* const staged =
      staging.TakeCopy(Output(mine.begin), SizeOfPart(mine));
  for (int i = 0; i + 1 < size(); ++i) {
    const int q = transfers_.Other(i);
    const ElementRange theirs = parts[Index(q)];
    if (rank() != left_out) {
      CUBIT_RETURN_IF_ERROR(transfers_.Receive(With(q), Output(theirs.begin),
                                               SizeOfPart(theirs)));
    }
    if (q != left_out) {
      CUBIT_RETURN_IF_ERROR(transfers_.Send(With(q), staged, SizeOfPart(mine)));
    }
  }
  return transfers_.Complete();
}

absl::Status PartMover::Exchange(const Ranges& parts) {
  const int64_t bytes = SizeOfPart(parts[0]);  // all are equal
  MpiScratch& staging = transfers_.staging();
  staging.Reserve((size() - 1) * bytes);
  for (int i = 0; i + 1 < size(); ++i) {
    const int q = transfers_.Other(i);
    const int64_t begin = parts[Index(q)].begin;
    CUBIT_RETURN_IF_ERROR(transfers_.Receive(With(q), Output(begin), bytes));
    CUBIT_RETURN_IF_ERROR(
        transfers_.Send(With(q), staging.TakeCopy(Input(begin), bytes), bytes));
  }
  const int64_t mine = parts[Index(rank())].begin;
  Copy(Input(mine), Output(mine), bytes);
  return transfers_.Complete();
}

}  // namespace

absl::Status MoveParts(const CollectiveCall& call, MpiTransfers& transfers) {
  return PartMover(call, transfers).Run();
}

}  // namespace cubit
