// SPDX-License-Identifier: Apache-2.0
//
// The gate of parallel training: a layout computes what one rank computes. A
// cell is a model and a layout; its losses of five steps and every gradient of
// the first are compared with those of one rank on the same data, from the same
// initial weights.

#ifndef CUBIT_TESTS_INTEGRATION_PARALLEL_GATE_H_
#define CUBIT_TESTS_INTEGRATION_PARALLEL_GATE_H_

#include <map>
#include <memory>
#include <mutex>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "launch/run.pb.h"
#include "launch/train_state.h"
#include "runtime/communicator.h"

namespace cubit {

constexpr int kGateSteps = 5;

struct GateCell {
  std::string name;   // "cubit_dp2_tp2_wavefront"
  std::string model;  // overrides of the configuration, separated by spaces
  int dp = 1;
  int tp = 1;
  int pp = 1;
  int cp = 1;
  std::string layout;          // overrides that must not change a result
  std::string device = "cpu";  // that the plan is made for

  int world_size() const { return dp * tp * pp * cp; }
  // "cubit_" + what is larger than 1 + the words of `layout`.
  friend std::ostream& operator<<(std::ostream& out, const GateCell& cell) {
    return out << cell.name;
  }
};

// Models times layouts.
std::vector<GateCell> GateCells();

// Sums of squares of an error and of what is right, by parameter.
struct GateError {
  double difference = 0;
  double reference = 0;
  int64_t elements = 0;
};

// What one rank found: the losses are those of all.
struct GateRun {
  std::vector<double> losses;
  std::vector<double> grad_norms;
};

// One rank's run without others, kept for comparison.
class GateReference {
 public:
  // Of the cell's model; made once for each.
  static const GateReference& Of(const GateCell& cell);

  const GateRun& run() const { return run_; }
  // The gradient of a parameter after the first backward, whole.
  const std::vector<float>& gradient(const std::string& name) const {
    return gradients_.at(name);
  }
  std::vector<std::string> ParameterNames() const;

 private:
  friend absl::Status RunGateCell(const GateCell& cell,
                                  std::unique_ptr<Communicator> world,
                                  std::unique_ptr<Communicator> control,
                                  const GateReference& reference, GateRun* run,
                                  std::map<std::string, GateError>* errors);
  GateRun run_;
  std::map<std::string, std::vector<float>> gradients_;
};

// Runs this rank of `cell`; adds its part of the errors of the gradients.
absl::Status RunGateCell(const GateCell& cell,
                         std::unique_ptr<Communicator> world,
                         std::unique_ptr<Communicator> control,
                         const GateReference& reference, GateRun* run,
                         std::map<std::string, GateError>* errors);

// Errors of all ranks, of which each has seen its parts. A collective of
// `control`, in host memory.
std::map<std::string, GateError> SumGateErrors(
    const GateReference& reference, const std::map<std::string, GateError>& own,
    Communicator& control);

// The largest relative error allowed.
struct GateBudget {
  double loss = 0;  // of every step
  std::map<std::string, double> gradients;
};
GateBudget FlatBudget(const GateReference& reference, double tolerance);
// `factor` times what `run` is off, an error less than `unit` counting as
// `unit`; for a gradient, what the worst layer's is.
GateBudget BudgetFrom(const GateReference& reference, const GateRun& run,
                      const std::map<std::string, GateError>& errors,
                      double factor, double unit);

// A line for each thing that is further off.
std::vector<std::string> CompareWithReference(
    const GateReference& reference, const GateRun& run,
    const std::map<std::string, GateError>& errors, const GateBudget& budget);

}  // namespace cubit

#endif  // CUBIT_TESTS_INTEGRATION_PARALLEL_GATE_H_
