// SPDX-License-Identifier: Apache-2.0
//
// The order of work of a causal solve whose sequence is spread over the cp
// ranks. A chunk's rows need the solution of every chunk before them, so the
// solve runs over the ranks as a wavefront. What keeps all of them busy is the
// order of work, over several groups (a group: a part of batch x heads, which
// knows nothing of the others): a diagonal block that can be solved goes first,
// then the updates by chunks that have arrived, and attention, which needs the
// same chunks and for which nobody waits, fills what is left.
//
// A schedule is data, made by a pure function: the actions of every rank and
// one order of messages, the same on all ranks, so that they may be collectives
// of one communicator. wavefront_simulator.h checks and times it,
// wavefront_runner.h carries it out.

#ifndef CUBIT_PARALLEL_WAVEFRONT_SCHEDULE_H_
#define CUBIT_PARALLEL_WAVEFRONT_SCHEDULE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

#include "parallel/sequence_layout.h"

namespace cubit {

enum class WavefrontPass { kForward, kBackward };

// What a rank does with a chunk of rows and a chunk of columns, columns before
// or equal to rows (the diagonal). L is the system, A the attention over its
// solution X, Y the solution of the adjoint system L^T Y = dX.
enum class WavefrontActionKind {
  // Forward, all by the owner of the rows.
  kSolve,   // X of the diagonal block, after the updates
  kUpdate,  // rows of L take in X of earlier columns
  kAttend,  // rows of A take in X of columns
  // Backward. The first and the last by the owner of the rows, the solve by
  // the owner of the columns.
  kAttendBackward,  // dQ of the rows, parts of dK and dX of the columns
  kAdjointSolve,    // Y of the diagonal block, after the updates
  kAdjointUpdate,   // columns of L^T take in Y of later rows
  kScoreGradients   // what Y of the rows gives to the scores of the pair
};
constexpr int kNumWavefrontActionKinds = 7;
bool IsForward(WavefrontActionKind kind);
// "solve", "update", ...
absl::string_view Name(WavefrontActionKind kind);

struct WavefrontAction {
  WavefrontActionKind kind = WavefrontActionKind::kSolve;
  int rows = 0;
  int columns = 0;
  int group = 0;

  bool diagonal() const { return rows == columns; }
  // "update 3<-1 of group 0"; "solve 3 of group 0" on the diagonal.
  std::string ToString() const;

  friend bool operator==(const WavefrontAction& a, const WavefrontAction& b) {
    return a.kind == b.kind && a.rows == b.rows && a.columns == b.columns &&
           a.group == b.group;
  }
};

// A collective of all ranks.
enum class WavefrontMessageKind {
  kBroadcast,               // X (forward) or Y (backward) of `chunk`
  kReduceSolutionGradient,  // backward: sums of the parts of dX, to the owners
  kReduceKeyGradients       // backward: the same of what the scores' keys get
};

struct WavefrontMessage {
  WavefrontMessageKind kind = WavefrontMessageKind::kBroadcast;
  int group = 0;
  int chunk = -1;  // kBroadcast, from its owner
};

// How chunks lie on ranks. Every rank owns at least one.
struct WavefrontShape {
  int cp_size = 1;
  int num_groups = 1;
  std::vector<int> owners;  // rank of every chunk

  int num_chunks() const { return static_cast<int>(owners.size()); }
  int owner(int chunk) const { return owners[static_cast<size_t>(chunk)]; }

  // One chunk a rank, in order: for comparison.
  static WavefrontShape Contiguous(int cp_size, int num_groups);
  // `chunks_per_rank` rounds over the ranks, there and back.
  static WavefrontShape Zigzag(int cp_size, int chunks_per_rank,
                               int num_groups);
  static WavefrontShape Of(const SequenceLayout& layout, int num_groups);
};

// Times of one action and one message in any unit, all actions > 0. By default
// of an update, in products of tiles: two for an update or an attention, five
// for its backward, four for the scores' gradients. A diagonal block has half
// the pairs, and is solved besides; 0.6 is what the table of simulated
// efficiencies in docs/parallelism.md was made with.
struct WavefrontCosts {
  struct Cost {
    double pair = 1;
    double diagonal = 0.6;
  };
  std::array<Cost, kNumWavefrontActionKinds> actions = {
      {{1, 0.6}, {1, 0.6}, {1, 0.6}, {2.5, 1.5}, {1, 0.6}, {1, 0.6}, {2, 1.2}}};
  double broadcast = 0.1;
  double reduce = 0.2;

  Cost& operator[](WavefrontActionKind kind) {
    return actions[static_cast<size_t>(kind)];
  }
  double Of(const WavefrontAction& action) const {
    const Cost& cost = actions[static_cast<size_t>(action.kind)];
    return action.diagonal() ? cost.diagonal : cost.pair;
  }
  double Of(const WavefrontMessage& message) const {
    return message.kind == WavefrontMessageKind::kBroadcast ? broadcast
                                                            : reduce;
  }
};

// An action and where it stands among the messages.
struct WavefrontStep {
  WavefrontAction action;
  // The action begins after messages [0, needs) have arrived.
  int64_t needs = 0;
  // Messages [0, posts) are posted when the action is done: the rank has
  // nothing more to add to them.
  int64_t posts = 0;
};

struct WavefrontProgram {
  int64_t initial_posts = 0;
  std::vector<WavefrontStep> steps;
};

struct WavefrontSchedule {
  WavefrontPass pass = WavefrontPass::kForward;
  bool attention = true;
  WavefrontShape shape;
  std::vector<WavefrontMessage> messages;  // the order on every rank
  std::vector<WavefrontProgram> ranks;
};

// Plays the pass with these costs and writes down what every rank did. Without
// `attention` the system alone: forward kSolve and kUpdate, backward
// kAdjointSolve and kAdjointUpdate from a dX that is there.
//
// No deadlock: messages stand in the order in which their last contribution was
// ready. What a rank did before its contribution to message n began with
// messages that had arrived by then, so it needs messages before n alone.
//
// The same arguments give the same schedule on every machine: time is counted
// in whole thousandths. CHECK: owners in [0, cp_size), each with a chunk;
// num_groups >= 1; costs of actions >= 0.001, of messages >= 0.
WavefrontSchedule MakeWavefront(WavefrontPass pass, bool attention,
                                const WavefrontShape& shape,
                                const WavefrontCosts& costs);

}  // namespace cubit

#endif  // CUBIT_PARALLEL_WAVEFRONT_SCHEDULE_H_
