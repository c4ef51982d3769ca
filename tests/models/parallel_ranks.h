// SPDX-License-Identifier: Apache-2.0
//
// Runs the same layer on one rank and on many, which are threads, and compares:
// what each rank holds of a tensor is put in its place of the whole.

#ifndef CUBIT_TESTS_MODELS_PARALLEL_RANKS_H_
#define CUBIT_TESTS_MODELS_PARALLEL_RANKS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "models/layer_context.h"
#include "models/model_config.h"
#include "models/model_shard.h"
#include "parallel/parameter.h"
#include "runtime/communication_lane.h"
#include "runtime/communicator.h"
#include "runtime/device.h"
#include "runtime/memory.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace testing {

struct RankLayout {
  int tp = 1;
  int cp = 1;
  CpMethod method = CpMethod::kUlysses;
};

// A micro-batch: B sequences of T tokens.
struct RankBatch {
  int64_t batch = 2;
  int64_t seq_len = 40;
  bool documents = false;
};

// Tensors of the whole model by name: results, and gradients summed as the
// trainer sums them.
using WholeTensors = std::map<std::string, std::vector<double>>;

// What one rank works with. Rows of a "whole" tensor [B * T, D] are in the
// order of the sequence; local ones as ModelShard says.
class ParallelRank {
 public:
  ParallelRank(const ModelConfig& config, const RankLayout& layout,
               const RankBatch& batch, int rank,
               std::unique_ptr<Communicator> world);

  ModelShard shard;
  Stream stream;
  ParameterStore store;
  ParallelContext parallel;
  LayerContext context;
  RankBatch batch;

  // After the layers are made: memory, and values that are nowhere all zero or
  // one, the same on every layout.
  void InitializeParameters();
  // Calls `allocate` twice, to measure and for real.
  void Allocate(const std::function<void(Arena&)>& allocate);
  // [Nl, D] of random rows [B * T, D], and of rows for results.
  Tensor RandomRows(const std::string& name, int64_t width);
  Tensor PoisonedRows(int64_t width);
  // This cp rank's part [N] of int32 values [B * T].
  Tensor TokenRows(const std::vector<int32_t>& whole);

  int64_t num_rows() const { return shard.Rows(batch.batch, batch.seq_len); }
  int64_t num_local_rows() const {
    return shard.LocalRows(batch.batch, batch.seq_len);
  }

  // Contributions to the whole. "NAME@anything" is compared with NAME.
  void AddRows(const std::string& name, ConstTensor local);     // [Nl, D]
  void AddTokens(const std::string& name, ConstTensor values);  // [N]
  void AddGradients();  // of all parameters

  // Adds what this rank contributed.
  void MergeInto(WholeTensors* whole) const;

 private:
  struct Piece {
    std::string name;
    int64_t whole_size;
    std::vector<int64_t> places;
    std::vector<float> values;
  };

  // Where row `row` of the N that this cp rank has lies in the whole.
  int64_t WholeRow(int64_t row) const;

  ModelConfig config_;
  std::unique_ptr<Communicator> world_;
  std::unique_ptr<Communicator> tp_;
  std::unique_ptr<Communicator> cp_;
  std::unique_ptr<CommunicationLane> cp_lane_;
  std::vector<std::unique_ptr<Arena>> arenas_;
  std::vector<std::unique_ptr<HostTensor<float>>> tensors_;
  std::vector<std::unique_ptr<HostTensor<int32_t>>> tokens_;
  std::vector<Piece> pieces_;
};

// `body` on every rank of the layout, each in a thread; it must make the same
// collective calls everywhere. Fails the test if a rank noted an error.
using RankBody = std::function<void(ParallelRank&)>;
WholeTensors RunRanks(const ModelConfig& config, const RankLayout& layout,
                      const RankBatch& batch, const RankBody& body);

// Every tensor of `got` is close to that of its name in `want`, and none is
// missing.
void ExpectClose(const WholeTensors& got, const WholeTensors& want,
                 double tolerance);

}  // namespace testing
}  // namespace cubit

#endif  // CUBIT_TESTS_MODELS_PARALLEL_RANKS_H_
