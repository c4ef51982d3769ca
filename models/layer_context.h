// SPDX-License-Identifier: Apache-2.0
//
// What every layer is handed in a forward or backward besides tensors.

#ifndef CUBIT_MODELS_LAYER_CONTEXT_H_
#define CUBIT_MODELS_LAYER_CONTEXT_H_

#include "absl/status/status.h"

#include "ops/attention.h"
#include "runtime/communication_lane.h"
#include "runtime/communicator.h"
#include "runtime/device.h"
#include "runtime/tensor.h"

namespace cubit {

struct MixerLayerScratch;  // models/mixer_layer.h
struct WavefrontObserver;  // parallel/wavefront_runner.h

// The groups that layers talk to. A collective that fails leaves its outputs
// undefined; the first error is kept here and whoever runs the step looks
// before anything comes of it (errors of a group are sticky, so nobody waits
// for a peer that gave up).
struct ParallelContext {
  Communicator* tp = nullptr;  // null: one rank
  Communicator* cp = nullptr;
  CommunicationLane* cp_lane = nullptr;
  // Of the wavefronts over cp; null: nobody observes.
  const WavefrontObserver* observer = nullptr;
  // Rows of all tp ranks, and this rank's terms of a sum over them, in the
  // activations' dtype; absent where tp is 1. Nothing in them outlives a call
  // of a layer.
  Tensor gathered, partial;  // [N, D]
  // What mixers work in on sequence shards, in the forward too: that of
  // BlockScratch. Null where cp is 1.
  const MixerLayerScratch* mixer_scratch = nullptr;
  absl::Status status;

  void Note(const absl::Status& result) {
    if (status.ok()) status = result;
  }
};

struct LayerContext {
  Stream* stream = nullptr;
  ConstTensor rotary_table;  // [>= T, K] or absent
  // Over whole sequences on every rank; segment_ids of
  // ModelShard::SegmentsShape.
  AttentionMask mask;
  ParallelContext* parallel = nullptr;  // null: one rank
  // The first backward of a step: gradients that are written (Parameter) are
  // not added to what is there.
  bool first_backward = false;
};

}  // namespace cubit

#endif  // CUBIT_MODELS_LAYER_CONTEXT_H_
