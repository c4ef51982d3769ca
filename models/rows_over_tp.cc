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

// The first rows of a buffer of ParallelContext, for those of all ranks.
Tensor AllRows(const Tensor& buffer, int tp_size, const ConstTensor& local) {
  CUBIT_CHECK_EQ(buffer.dim(1), local.dim(1));
  CUBIT_CHECK(buffer.dtype() == local.dtype()) << Name(buffer.dtype());
  return buffer.Slice(0, tp_size * local.dim(0));
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
  const Tensor received = AllRows(context.parallel->gathered, tp_size, local);
  context.parallel->Note(group.AllToAll(terms, received, *context.stream));
  SumParts(received.Reshape({tp_size, local.dim(0), local.dim(1)}), bias,
           residual, local, *context.stream);
}

}  // namespace cubit
