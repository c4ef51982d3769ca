// SPDX-License-Identifier: Apache-2.0
//
// A small model on every rank of a mesh of threads, with gradients that follow
// from a rank's place and a number: for tests of what sums, updates, saves and
// loads parameters. All sizes are odd to the buckets and to each other.

#ifndef CUBIT_TESTS_PARALLEL_OPTIMIZER_TESTING_H_
#define CUBIT_TESTS_PARALLEL_OPTIMIZER_TESTING_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"

#include "parallel/gradient_reducer.h"
#include "parallel/mesh_communicators.h"
#include "parallel/parameter.h"
#include "parallel/sharded_adamw.h"
#include "runtime/device.h"
#include "runtime/dtype.h"

namespace cubit {

struct MeshSizes {
  int dp = 1;
  int cp = 1;
  int tp = 1;
  int pp = 1;

  int world() const { return dp * cp * tp * pp; }
  std::string ToString() const;
};

// Runs `body` on every rank, each a thread. A rank that returns an error aborts
// the mesh, as a trainer does. The statuses in the order of the ranks.
std::vector<absl::Status> RunOnMesh(
    const MeshSizes& sizes,
    const std::function<absl::Status(MeshCommunicators&)>& body);

// One parameter's whole values.
using Values = std::vector<float>;
// By name.
using ModelValues = std::map<std::string, Values>;

// The parameters of one rank, in the order in which models declare them; with
// pp 2 the embedding is on both stages, at other places.
class RankModel {
 public:
  RankModel(MeshCommunicators* mesh, const GradientReducerOptions& options,
            DType compute_dtype = DType::kFloat32);

  ParameterStore& store() { return store_; }
  GradientReducer& reducer() { return *reducer_; }
  ShardedAdamW& optimizer() { return *optimizer_; }
  size_t num_parameters() const { return store_.parameters().size(); }
  Parameter& Find(const std::string& name);

  // This rank's gradients of a step, and zero in between.
  void FillGradients(int64_t step);
  // Ready for all parameters, in the order of a backward.
  void ReportReady();
  // Everything from backward to update; waits for the weights.
  absl::Status Step(int64_t step);
  // The same, but gradients come in one by one, each after all sums that began
  // before it have ended: a sum that began too early is wrong.
  absl::Status StepOneByOne(int64_t step);
  double SquaredNorm();

  // Puts this rank's part of each tensor (a member of Parameter, or a moment)
  // into `whole`, where ranks that hold it already must agree to the bit;
  // returns whether they do.
  bool MergeValues(ModelValues* whole);

  Stream& stream() { return stream_; }

 private:
  void Declare();
  Parameter* Add(const std::string& name, Shape shape, int tp_dim, bool decay,
                 bool follow = false);
  void FillGradient(const Parameter& parameter, int64_t step);
  absl::Status SumAndUpdate(int64_t step);

  MeshCommunicators* mesh_;
  ParameterStore store_;
  std::unique_ptr<GradientReducer> reducer_;
  std::unique_ptr<ShardedAdamW> optimizer_;
  Stream stream_;
};

// Options that clip.
AdamWOptions TestAdamW();
constexpr double kTestLearningRate = 0.01;

// The same steps on whole tensors in double, without any code of the product
// but the element's mathematics: gradients summed over all that `sizes` adds.
struct ExpectedRun {
  ModelValues values;
  std::vector<double> squared_norms;  // by step
};
ExpectedRun RunReference(const MeshSizes& sizes, int64_t num_steps);

// Merges a tensor's local part into whole ones; false if bits differ.
bool Merge(const std::string& name, const ShardSpec& spec, const float* local,
           ModelValues* whole);

}  // namespace cubit

#endif  // CUBIT_TESTS_PARALLEL_OPTIMIZER_TESTING_H_
