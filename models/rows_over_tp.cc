// SPDX-License-Identifier: Apache-2.0

#include "models/rows_over_tp.h"

#include "ops/sum_parts.h"
#include "runtime/check.h"
#include "runtime/profile_range.h"

namespace cubit {
namespace {

constexpr char kTp[] = "tp";

Communicator& Group(const LayerContext& context, int tp_size) {
  CUBIT_CHECK(context.parallel != nullptr && context.parallel->tp != nullptr);
  CUBIT_CHECK_EQ(context.parallel->tp->size(), tp_size);
  return *context.parallel->tp;
}

CommunicationLane& Lane(const LayerContext& context, int tp_size) {
  CUBIT_CHECK(context.parallel != nullptr &&
              context.parallel->tp_lane != nullptr);
  CUBIT_CHECK_EQ(context.parallel->tp_lane->size(), tp_size);
  return *context.parallel->tp_lane;
}

void Wait(const LayerContext& context, int tp_size,
          CommunicationLane::Ticket ticket) {
  const ProfileRange range(kTp, *context.stream);
  CommunicationLane& lane = Lane(context, tp_size);
  lane.Wait(ticket, *context.stream);
  context.parallel->Note(lane.status());
}

// The first rows of a buffer of ParallelContext, for those of all ranks.
Tensor AllRows(const Tensor& buffer, int tp_size, const ConstTensor& local) {
  CUBIT_CHECK_EQ(buffer.dim(1), local.dim(1));
  CUBIT_CHECK(buffer.dtype() == local.dtype()) << Name(buffer.dtype());
  return buffer.Slice(0, tp_size * local.dim(0));
}

void AddTerms(const LayerContext& context, int tp_size, ConstTensor bias,
              ConstTensor residual, Tensor local) {
  const Tensor received = AllRows(context.parallel->received, tp_size, local);
  SumParts(received.Reshape({tp_size, local.dim(0), local.dim(1)}), bias,
           residual, local, *context.stream);
}

}  // namespace

ConstTensor GatherRows(const LayerContext& context, int tp_size,
                       ConstTensor local) {
  if (tp_size == 1) return local;
  const ProfileRange range(kTp, *context.stream);
  Communicator& group = Group(context, tp_size);
  const Tensor rows = AllRows(context.parallel->gathered, tp_size, local);
  context.parallel->Note(group.AllGather(local, rows, *context.stream));
  return rows;
}

Tensor PartialRows(const LayerContext& context, int tp_size, Tensor local) {
  if (tp_size == 1) return local;
  CUBIT_CHECK(context.parallel != nullptr);
  return AllRows(context.parallel->partial, tp_size, local);
}

void SumRows(const LayerContext& context, int tp_size, ConstTensor bias,
             ConstTensor residual, Tensor local) {
  CUBIT_CHECK_GT(tp_size, 1);
  const ProfileRange range(kTp, *context.stream);
  Communicator& group = Group(context, tp_size);
  const Tensor terms = AllRows(context.parallel->partial, tp_size, local);
  const Tensor received = AllRows(context.parallel->received, tp_size, local);
  context.parallel->Note(group.AllToAll(terms, received, *context.stream));
  AddTerms(context, tp_size, bias, residual, local);
}

CommunicationLane::Ticket StartGatherRows(const LayerContext& context,
                                          int tp_size, ConstTensor local) {
  const Tensor rows = AllRows(context.parallel->gathered, tp_size, local);
  return Lane(context, tp_size)
      .Post(*context.stream, [=](Communicator& group, Stream& stream) {
        return group.AllGather(local, rows, stream);
      });
}

ConstTensor FinishGatherRows(const LayerContext& context, int tp_size,
                             ConstTensor local,
                             CommunicationLane::Ticket ticket) {
  Wait(context, tp_size, ticket);
  return AllRows(context.parallel->gathered, tp_size, local);
}

CommunicationLane::Ticket StartSumRows(const LayerContext& context, int tp_size,
                                       ConstTensor local) {
  const Tensor terms = AllRows(context.parallel->partial, tp_size, local);
  const Tensor received = AllRows(context.parallel->received, tp_size, local);
  return Lane(context, tp_size)
      .Post(*context.stream, [=](Communicator& group, Stream& stream) {
        return group.AllToAll(terms, received, stream);
      });
}

void FinishSumRows(const LayerContext& context, int tp_size,
                   CommunicationLane::Ticket ticket, Tensor local) {
  Wait(context, tp_size, ticket);
  const ProfileRange range(kTp, *context.stream);
  AddTerms(context, tp_size, ConstTensor(), ConstTensor(), local);
}

}  // namespace cubit
