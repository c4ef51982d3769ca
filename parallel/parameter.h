// SPDX-License-Identifier: Apache-2.0
//
// The parameters of a model: what they are called, where their local part lies
// in the global tensor, how they start, and flat buffers that hold all of them:
// fp32 values and gradients, and, where products read bf16, a bf16 copy of the
// values. Rules (decay, reduction, sharding) read the
// fields of a Parameter, never its position.

#ifndef CUBIT_PARALLEL_PARAMETER_H_
#define CUBIT_PARALLEL_PARAMETER_H_

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "absl/status/status.h"

#include "parallel/shard_spec.h"
#include "runtime/device.h"
#include "runtime/memory.h"
#include "runtime/tensor.h"

namespace cubit {

// How a parameter starts: normal numbers of `stddev` around `mean`, a function
// of (seed, name, global index), so every layout starts from the same bits.
struct Initializer {
  double mean = 0;
  double stddev = 0;

  static Initializer Constant(double value) { return {value, 0}; }
  static Initializer Normal(double stddev) { return {0, stddev}; }
};

struct Parameter {
  std::string name;  // "layers.0.mixer.q_proj.weight": also in checkpoints
  ShardSpec shard;
  Initializer init;
  bool decay = false;  // weight decay applies
  // Besides dp and cp, over which every gradient is summed:
  // every tp rank holds the whole parameter and the gradient of its own rows
  // (norms, biases after a row-parallel product).
  bool sum_over_tp = false;
  // The first and the last pipeline stage hold it, each with a part of its
  // gradient (tied embeddings).
  bool sum_over_ends = false;
  // The first backward of a step writes the gradient, and only later ones add
  // to it: of the weights of products, which are nearly all there is to zero.
  bool gradient_is_written = false;

  int64_t offset = 0;  // first element in the flat buffers
  Tensor value;        // local_shape() of the shard, fp32
  Tensor gradient;     // the same
  Tensor compute;      // what products read: value, or its bf16 copy
};

// Owns the parameters. Usage: Add all, Allocate once, Initialize or load.
class ParameterStore {
 public:
  ParameterStore() = default;
  ParameterStore(const ParameterStore&) = delete;
  ParameterStore& operator=(const ParameterStore&) = delete;

  // Declares a parameter; the pointer stays valid. With `follow`, it is placed
  // directly behind the one before, so that both can be seen as one tensor
  // (Fused); otherwise it is aligned to 256 bytes.
  Parameter* Add(std::string name, ShardSpec shard, Initializer init,
                 bool decay, bool follow = false);

  // Leaves room for `elements` behind the parameter that was added last. They
  // are part of the flat buffers, stay zero as long as their gradients do, and
  // are in no checkpoint.
  void Pad(int64_t elements) { size_ += elements; }

  // After the last Add: moves parameters, so that one with sum_over_ends begins
  // and ends at a multiple of `elements`, and pads the flat buffers to one.
  // `elements` is a multiple of the alignment of parameters. What follows
  // another parameter still does. One parameter with sum_over_ends may neither
  // follow nor be followed (CHECK).
  void AlignTo(int64_t elements);

  // Elements of each flat buffer, padding included.
  int64_t size() const { return size_; }
  // Bytes of the value buffer (and of the gradient buffer).
  int64_t buffer_bytes() const;
  // Bytes of the copy that products read: none if that is the values.
  int64_t compute_bytes(DType compute_dtype) const;
  // Elements of all local parts, without padding.
  int64_t num_elements() const;

  // Makes the values, and the gradients if asked, zeroed; and the copy that
  // products read, if `compute_dtype` is bf16.
  absl::Status Allocate(bool with_gradients,
                        DType compute_dtype = DType::kFloat32);
  // Every element from `seed`, its parameter's name and its index in the whole
  // tensor: the same bits on every layout. ResourceExhausted: no host memory to
  // send them from.
  absl::Status Initialize(uint64_t seed, Stream& stream);
  // Makes the copy anew: after values were loaded or changed other than by
  // AdamW, which writes both.
  void RefreshCompute(Stream& stream) const;

  // Zeroes the gradients that a step adds to, and all padding.
  void ZeroGradients(Stream& stream) const;

  std::deque<Parameter>& parameters() { return parameters_; }
  const std::deque<Parameter>& parameters() const { return parameters_; }

  // All values or gradients with the padding between them, which stays zero.
  Tensor flat_values() const { return flat_values_; }
  Tensor flat_gradients() const { return flat_gradients_; }
  // The bf16 copy; absent where products read the values.
  Tensor flat_compute() const { return flat_compute_; }

 private:
  std::deque<Parameter> parameters_;
  int64_t size_ = 0;  // elements, with padding
  Buffer values_;
  Buffer gradients_;
  Buffer compute_;
  Tensor flat_values_;
  Tensor flat_gradients_;
  Tensor flat_compute_;
};

// The values of adjacent parameters (declared with `follow`) as one tensor:
// rows of all, columns of the first. Absent if the list is empty.
Tensor FusedValue(const std::vector<Parameter*>& parameters);
Tensor FusedGradient(const std::vector<Parameter*>& parameters);
Tensor FusedCompute(const std::vector<Parameter*>& parameters);

}  // namespace cubit

#endif  // CUBIT_PARALLEL_PARAMETER_H_
