// SPDX-License-Identifier: Apache-2.0
//
// Where a local tensor lies in its global one. Everything that saves, loads or
// initialises parameters speaks of global shapes and slices, never of ranks.

#ifndef CUBIT_PARALLEL_SHARD_SPEC_H_
#define CUBIT_PARALLEL_SHARD_SPEC_H_

#include <cstdint>

#include "runtime/tensor.h"

namespace cubit {

// The local part is indices [begin, begin + count) along `dim` of a tensor of
// `global_shape`, whole along the others; stored contiguously.
struct ShardSpec {
  Shape global_shape;
  int dim = 0;        // the dim that is cut
  int64_t begin = 0;  // first index of the local part along `dim`
  int64_t count = 0;  // local extent along `dim`

  // The whole tensor on every rank.
  static ShardSpec Whole(Shape shape) {
    ShardSpec spec;
    spec.global_shape = shape;
    spec.count = shape.rank() == 0 ? 1 : shape[0];
    return spec;
  }

  bool is_whole() const {
    return global_shape.rank() == 0 || count == global_shape[dim];
  }
  Shape local_shape() const {
    Shape local;
    for (int i = 0; i < global_shape.rank(); ++i) {
      local.Append(i == dim ? count : global_shape[i]);
    }
    return local;
  }
};

}  // namespace cubit

#endif  // CUBIT_PARALLEL_SHARD_SPEC_H_
