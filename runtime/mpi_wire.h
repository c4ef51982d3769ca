// SPDX-License-Identifier: Apache-2.0
//
// What ranks of communicator_mpi.cc send each other besides elements. Processes
// of one run are of one program, so these travel as they lie in memory.

#ifndef CUBIT_RUNTIME_MPI_WIRE_H_
#define CUBIT_RUNTIME_MPI_WIRE_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "runtime/tensor.h"

namespace cubit {

// Bytes of a small input that travel with the description of its call, or of
// the name of a new group.
constexpr int64_t kMpiPayloadBytes = 512;

// A call as the other ranks are told of it.
struct MpiDescription {
  int32_t kind = 0;
  int32_t reduce_op = 0;
  int32_t root = 0;
  int32_t dtype = 0;
  int32_t rank = 0;  // of the shape
  int32_t color = 0;
  int32_t key = 0;
  int32_t payload_bytes = 0;
  std::array<int64_t, Shape::kMaxRank> dims = {};
  int64_t sequence = 0;
  int64_t group_id = 0;  // Split: for the new group, if this rank is its first
};

// What goes before the elements of a message.
struct MpiMessageHeader {
  int32_t dtype = 0;
  int32_t rank = 0;
  std::array<int64_t, Shape::kMaxRank> dims = {};
};

constexpr int64_t kMpiSlotBytes =
    (static_cast<int64_t>(sizeof(MpiDescription)) + kMpiPayloadBytes + 63) /
    64 * 64;
constexpr int64_t kMpiHeaderBytes = sizeof(MpiMessageHeader);

template <typename T>
void PutShape(const Shape& shape, T& target) {
  target.rank = shape.rank();
  for (int i = 0; i < shape.rank(); ++i) {
    target.dims[static_cast<size_t>(i)] = shape[i];
  }
}

template <typename T>
Shape GetShape(const T& source) {
  Shape shape;
  for (int i = 0; i < source.rank; ++i) {
    shape.Append(source.dims[static_cast<size_t>(i)]);
  }
  return shape;
}

}  // namespace cubit

#endif  // CUBIT_RUNTIME_MPI_WIRE_H_
