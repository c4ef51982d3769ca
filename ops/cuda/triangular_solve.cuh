// SPDX-License-Identifier: Apache-2.0
//
// The forward solve of krr.h and delta_solve.h on one GPU, head by head:
//   X_i + g_i sum_{j<i} E_ij X_j = h_i V_i,   E_ij = exp(S_ij - m_i),
// with Z_i = sum_j E_ij over the visible keys (block_solve.h has the same form
// for the CPU; docs/decisions/0022 the design). It is attention whose values
// are its own outputs. An item of work is one block of rows of one head:
//   1. stream the key tiles before the block: S on tensor cores, E in registers
//      as the left operand of acc += E X; m_i is known beforehand (S_ii, or one
//      more pass over the scores where S_ii is not the maximum), so acc is
//      never rescaled;
//   2. the block's own tile of E, in 16 x 16 sub-blocks; with D_s = I + g E_ss,
//      one warp for each s inverts D_s by substitution in fp32;
//   3. 16 rows at a time: X_s = D_s^-1 (h_s V_s - g_s acc_s) by warp s, then
//      acc_t += E_ts X_s by the warps t > s. Warpgroups invert the block as a
//      whole. Inverses are kept less the identity, whose part of a product is
//      exact without one: X = V where nothing is seen.

#ifndef CUBIT_OPS_CUDA_TRIANGULAR_SOLVE_CUH_
#define CUBIT_OPS_CUDA_TRIANGULAR_SOLVE_CUH_

#include <cstdint>

#include "ops/cuda/diagonal.cuh"
#include "ops/cuda/lanes.cuh"
#include "ops/cuda/mma.cuh"
#include "ops/cuda/pairs.cuh"
#include "ops/cuda/products.cuh"
#include "ops/cuda/solve_queue.cuh"
#include "ops/cuda/solve_systems.cuh"
#include "ops/cuda/tile.cuh"
#include "ops/cuda/unit_upper.cuh"
#include "ops/cuda/warpgroup.cuh"

namespace cubit {
namespace cuda {

// One thread block: kWarps warps of 16 rows each. kWarpgroup (bf16, four
// warps): tiles are multiplied by the warpgroup as a whole, and the block is
// factored before the last solution that it waits for. kContinues (a
// warpgroup's, KRR): rows begin with sums over keys that are not here.
// kFewHeads (a warpgroup's): the chain of a head's blocks is what a solve lasts
// (StreamAhead).
template <typename System, typename ProductsType, int kDimOfHead, int kNumWarps,
          bool kWarpgroup = false, bool kContinues = false,
          bool kFewHeads = false>
class ForwardSolver {
 public:
  using Products = ProductsType;
  using Element = typename Products::Element;
  using Left = typename Products::Left;
  using Right = typename Products::Right;
  static constexpr int kDim = kDimOfHead;
  static constexpr int kWarps = kNumWarps;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRows = 16 * kWarps;
  static constexpr int kKeys = 64;
  static constexpr int kDiagonalTiles = kRows / kKeys;
  static_assert(!kWarpgroup || kRows == kKeys, "one tile a block of rows");
  static_assert(!kContinues || (kWarpgroup && System::kQueriesAreKeys));
  static_assert(!kFewHeads || kWarpgroup);
  static constexpr int kInverseStride = 20;  // 16-byte rows, few conflicts
  using KeyTile = Tile<Element, kKeys, kDim>;
  using BlockTile = Tile<Element, kRows, kDim>;

  static constexpr int kInverseBytes =
      kWarpgroup
          ? UnitUpperTile::kBytes
          : kWarps * 16 * kInverseStride * static_cast<int>(sizeof(float));

  struct Shared {
    // A warpgroup makes the block's inverse when the keys were read.
    union {
      alignas(1024) char keys[2][KeyTile::kBytes];
      alignas(16) float block_inverse[kWarpgroup ? kInverseBytes / 4 : 1];
    };
    alignas(1024) char x[2][KeyTile::kBytes];
    // The right-hand side and the solution of the block; before them its
    // queries, but for a warpgroup's.
    alignas(1024) char block[BlockTile::kBytes];
    alignas(1024) char queries[kWarpgroup ? BlockTile::kBytes : 1];
    // Of each warp's rows, transposed; a warpgroup has the block's, above.
    alignas(16) float inverse[kWarpgroup ? 1 : kInverseBytes / 4];
    // Few heads: E of one tile, of each lane what it multiplies by.
    uint4 kept[kFewHeads ? kKeys / 16 : 1][kFewHeads ? kThreads : 1];
    alignas(16) float factor[2][kKeys];  // of the scores, times log2(e)
    int32_t segment[2][kKeys];
    int item;
  };

  __device__ ForwardSolver(const SolveArguments& in, Shared* shared)
      : in_(in), shared_(*shared) {}

  __device__ void Run() {
    launch_ = *const_cast<volatile uint32_t*>(&in_.queue->launch) + 1;
    // Items are taken one ahead, so that nobody waits for the counter. Whoever
    // holds an item not begun works on a smaller one, so the smallest that is
    // not done is always worked on.
    int next = TakeItem();
    if (threadIdx.x == 0) shared_.item = next;
    __syncthreads();
    for (;;) {
      const int item = shared_.item;
      if (item >= in_.num_items) break;
      next = TakeItem();
      StartItem(item);
      StartCopies();
      LoadQueries();
      FindMaxima();
      if constexpr (kWarpgroup) {
        StreamAhead();
        if constexpr (kContinues) {
          if (KeepsKernelX()) {
            // Of the keys before the block.
            ForEachOfKernelX(
                [](int, float2* target, float2 sums) { *target = sums; });
          }
        }
        SolveWarpgroup();
        if constexpr (kContinues) {
          if (KeepsKernelX()) FinishKernelX();
        }
      } else {
        Stream();
        FactorBlock();
        SolveBlock();
      }
      // Shared by the barrier of PublishReady.
      if (threadIdx.x == 0) shared_.item = next;
      PublishReady(in_.queue->ready + item, launch_);
    }
    if (threadIdx.x == 0) LeaveQueue(in_.queue);
  }

 private:
  using Scores = float[kKeys / 8][4];

  // Whether all rows are whole 16-byte vectors; warpgroups take no others.
  __device__ bool Aligned() const { return kWarpgroup || in_.aligned; }

  // By thread 0.
  __device__ int TakeItem() const {
    return threadIdx.x == 0
               ? static_cast<int>(atomicAdd(&in_.queue->next_item, 1u))
               : 0;
  }

  // Rows group and group + 8 of the warp.
  __device__ int Row(int half) const {
    return row_begin_ + warp_ * 16 + group_ + half * 8;
  }
  __device__ Element* Keys(int slot) {
    return reinterpret_cast<Element*>(shared_.keys[slot]);
  }
  __device__ Element* X(int slot) {
    return reinterpret_cast<Element*>(shared_.x[slot]);
  }
  __device__ Element* Block() {
    return reinterpret_cast<Element*>(shared_.block);
  }
  __device__ Element* Queries() {
    return kWarpgroup ? reinterpret_cast<Element*>(shared_.queries) : Block();
  }
  __device__ int64_t HeadOffset(const HeadStrides& strides) const {
    return (pair_ / in_.num_heads) * strides.batch +
           (pair_ % in_.num_heads) * strides.head;
  }

  __device__ void StartItem(int item) {
    block_ = in_.first_block + item / in_.num_pairs;
    pair_ = item % in_.num_pairs;
    row_begin_ = block_ * kRows;
    num_rows_ = min(kRows, in_.seq_len - row_begin_);
    key_ = static_cast<const Element*>(in_.key) + HeadOffset(in_.key_strides);
    x_ = static_cast<Element*>(in_.x) + HeadOffset(in_.x_strides);
    segments_ =
        in_.segments == nullptr
            ? nullptr
            : in_.segments +
                  static_cast<int64_t>(pair_ / in_.num_heads) * in_.seq_len;
    int first_key = 0;
    if (segments_ != nullptr) {
      first_key = CountKeysBefore(segments_[row_begin_]);
      last_segment_ = segments_[row_begin_ + num_rows_ - 1];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        row_segment_[half] = segments_[min(Row(half), in_.seq_len - 1)];
      }
    }
    first_tile_ = first_key / kKeys;
    diagonal_tile_ = row_begin_ / kKeys;
    if constexpr (kWarpgroup) {
      // The compiler must see that all lanes have the same tiles.
      first_tile_ = __shfl_sync(0xffffffffu, first_tile_, 0);
      diagonal_tile_ = __shfl_sync(0xffffffffu, diagonal_tile_, 0);
    }
    ReadColumns(first_tile_);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = min(Row(half), in_.seq_len - 1);
      row_factor_[half] = System::ScoreFactor(in_, pair_, row);
      row_input_[half] = System::template LoadRow<Element>(in_, pair_, row);
    }
    head_factor_ = System::ScoreFactor(in_, pair_, 0);
    ready_block_ = in_.first_block - 1;
  }

  // Everything that the item begins with is on its way before anything is
  // waited for. Groups of copies: queries; keys of the first tile; what
  // StreamTiles adds to a warpgroup's right-hand side.
  __device__ void StartCopies() {
    const Element* query = static_cast<const Element*>(in_.query) +
                           HeadOffset(in_.query_strides) +
                           row_begin_ * in_.query_strides.seq;
    CopyRows<BlockTile, kRows, kThreads>(Queries(), query,
                                         in_.query_strides.seq, num_rows_,
                                         in_.head_dim, Aligned());
    CommitCopies();
    CopyKeyTile(first_tile_);
    if constexpr (kWarpgroup) CopyRightHandSide();
    FindReadyBlocks();
    ShareColumns(first_tile_);
  }

  // Keys before row_begin_ whose document is before `segment`: documents are
  // contiguous, so these are the first ones.
  __device__ int CountKeysBefore(int32_t segment) {
    int count = 0;
    for (int begin = 0; begin < row_begin_; begin += kThreads) {
      const int key = begin + static_cast<int>(threadIdx.x);
      count +=
          __syncthreads_count(key < row_begin_ && segments_[key] < segment);
    }
    return count;
  }

  __device__ void LoadQueries() {
    WaitForCopies<1>();
    ShareTiles();
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      Products::template LoadLeft<BlockTile>(Queries(), warp_ * 16, k * 16,
                                             &query_[k]);
    }
  }

  // |query|^2 of the lane's rows, of operands as the products see them.
  __device__ float SquaredNorm(int half) {
    float sum = 0;
#pragma unroll
    for (int c = quad_ * 2; c < kDim; c += 8) {
      const float2 x = LoadPair(
          Queries() + BlockTile::Offset(warp_ * 16 + group_ + half * 8, c));
      const float a = Products::Round(x.x);
      const float b = Products::Round(x.y);
      sum += a * a + b * b;
    }
    return QuadSum(sum);
  }

  // maximum_ = |query|^2 of the lane's rows.
  __device__ void FindOwnScores() {
    if constexpr (kWarpgroup) {
      // One product with the block itself takes a tenth of the instructions.
      Scores s;
      ComputeScores(Queries(), s);
      const int lane = threadIdx.x % 32;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        maximum_[half] =
            __shfl_sync(0xffffffffu, DiagonalElement(s, warp_, half),
                        lane / 4 * 4 + lane / 8);
      }
    } else {
      maximum_[0] = SquaredNorm(0);
      maximum_[1] = SquaredNorm(1);
    }
  }

  __device__ void FindMaxima() {
    fixed_maximum_ = System::DiagonalIsMaximum(head_factor_);
    if (fixed_maximum_) {
      FindOwnScores();
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        maximum_[half] *= row_factor_[half] * kLog2E;
      }
      // The right-hand side takes the queries' place.
      if (!kWarpgroup) __syncthreads();
      return;
    }
    maximum_[0] = maximum_[1] = -INFINITY;
    if constexpr (kContinues) {
      maximum_[0] = StartMaximum(0);
      maximum_[1] = StartMaximum(1);
    }
    const int end = diagonal_tile_ + kDiagonalTiles;
    for (int tile = first_tile_; tile < end; ++tile) {
      WaitForCopies<0>();
      ShareTiles();
      if (tile + 1 < end) CopyKeys(tile + 1);
      Scores s;
      ComputeScores(tile, s);
      const bool masked = NeedsMask(tile);
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = n * 8 + quad_ * 2 + i % 2;
          const float score = s[n][i] * shared_.factor[tile % 2][column];
          if (!masked || IsVisible(tile, column, i / 2)) {
            maximum_[i / 2] = fmaxf(maximum_[i / 2], score);
          }
        }
      }
    }
    maximum_[0] = QuadMax(maximum_[0]);
    maximum_[1] = QuadMax(maximum_[1]);
    ReadColumns(first_tile_);
    __syncthreads();
    CopyKeys(first_tile_);
  }

  // Starts the copy of a key tile; shares what belongs to its columns, which
  // was read a tile ahead so that nobody waits for it, and reads the next.
  // Tiles come in order, the first behind ReadColumns.
  __device__ void CopyKeys(int tile) {
    CopyKeyTile(tile);
    ShareColumns(tile);
  }
  __device__ void CopyKeyTile(int tile) {
    const int begin = tile * kKeys;
    CopyRows<KeyTile, kKeys, kThreads>(
        Keys(tile % 2), key_ + begin * in_.key_strides.seq, in_.key_strides.seq,
        in_.seq_len - begin, in_.head_dim, Aligned());
    CommitCopies();
  }
  __device__ void ShareColumns(int tile) {
    if (threadIdx.x < kKeys) {
      shared_.factor[tile % 2][threadIdx.x] = column_factor_ * kLog2E;
      if (segments_ != nullptr) {
        shared_.segment[tile % 2][threadIdx.x] = column_segment_;
      }
    }
    ReadColumns(tile + 1);
  }
  __device__ void ReadColumns(int tile) {
    if (threadIdx.x >= kKeys) return;
    const int key =
        min(tile * kKeys + static_cast<int>(threadIdx.x), in_.seq_len - 1);
    column_factor_ = System::ScoreFactor(in_, pair_, key);
    if (segments_ != nullptr) column_segment_ = segments_[key];
  }

  __device__ const uint32_t* ReadyFlag(int block) const {
    return in_.queue->ready + (block - in_.first_block) * in_.num_pairs + pair_;
  }

  // Looks how far the head is solved, by flags of the 32 blocks before this
  // one, a lane each. A block is published after those that it needs, so the
  // last published one speaks for all between the item's first tile and it.
  __device__ void FindReadyBlocks() {
    const int block = block_ - 1 - static_cast<int>(threadIdx.x % 32);
    const bool ready =
        block >= in_.first_block && LoadAcquire(ReadyFlag(block)) == launch_;
    const uint32_t lanes = __ballot_sync(0xffffffffu, ready);
    if (lanes != 0) ready_block_ = max(ready_block_, block_ - __ffs(lanes));
  }

  // Waits for the solution of a tile of earlier rows and starts its copy.
  __device__ void CopyX(int tile) {
    const int begin = tile * kKeys;
    const int block = begin / kRows;
    if (block > ready_block_) {
      AwaitReady(ReadyFlag(block), launch_, kFewHeads ? block_ - block : 1);
      ready_block_ = block;
      // The others of a long way to go are often solved, too.
      if (block + (kFewHeads ? kNearBlocks : 1) < block_) FindReadyBlocks();
    }
    CopyRows<KeyTile, kKeys, kThreads>(
        X(tile % 2), x_ + begin * in_.x_strides.seq, in_.x_strides.seq, kKeys,
        in_.head_dim, Aligned());
  }

  // Starts the copy of the block's right-hand side: V, or X where it is known.
  __device__ void CopyRightHandSide() {
    const int num_known = min(max(in_.first_row - row_begin_, 0), num_rows_);
    const Element* v = static_cast<const Element*>(in_.v) +
                       HeadOffset(in_.v_strides) +
                       row_begin_ * in_.v_strides.seq;
    if (num_known == 0) {
      CopyRows<BlockTile, kRows, kThreads>(Block(), v, in_.v_strides.seq,
                                           num_rows_, in_.head_dim, Aligned());
      return;
    }
    const Element* x = x_ + row_begin_ * in_.x_strides.seq;
    for (int i = threadIdx.x; i < kRows * kDim; i += kThreads) {
      const int row = i / kDim;
      const int column = i % kDim;
      Element value = Element(0.0f);
      if (row < num_rows_ && column < in_.head_dim) {
        value = row < num_known
                    ? LoadCoherent(x + row * in_.x_strides.seq + column)
                    : v[row * in_.v_strides.seq + column];
      }
      Block()[BlockTile::Offset(row, column)] = value;
    }
  }

  // Behind the wait for copies: the tiles are everybody's.
  __device__ static void ShareTiles() {
    if constexpr (kWarpgroup) ShowToTensorCores();
    __syncthreads();
  }

  __device__ void ComputeScores(int tile, Scores& s) {
    ComputeScores(Keys(tile % 2), s);
  }
  __device__ void ComputeScores(const Element* keys, Scores& s) {
    if constexpr (kWarpgroup) {
      HoldAccumulators(s);
      FenceProducts();
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) {
        MultiplyWarpgroup</*kColumns=*/false>(
            s, query_[k].x, RowsOperand<KeyTile>(keys, 0, 16 * k), k > 0);
      }
      CommitProducts();
      WaitForProducts<0>();
      HoldAccumulators(s);
      return;
    }
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) s[n][i] = 0;
    }
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        Right b[2];
        Products::template LoadRight<KeyTile>(keys, n * 16, k * 16, b);
        Products::Multiply(s[2 * n], query_[k], b[0]);
        Products::Multiply(s[2 * n + 1], query_[k], b[1]);
      }
    }
  }

  // Whether some query of the block does not see some key of the tile.
  __device__ bool NeedsMask(int tile) const {
    if (tile >= diagonal_tile_) return true;
    return segments_ != nullptr &&
           shared_.segment[tile % 2][0] != last_segment_;
  }
  // Whether the lane's row sees a column of the tile.
  __device__ bool IsVisible(int tile, int column, int half) const {
    const int key = tile * kKeys + column;
    if (System::kStrict ? key >= Row(half) : key > Row(half)) return false;
    return segments_ == nullptr ||
           shared_.segment[tile % 2][column] == row_segment_[half];
  }

  // s, scores of 8 columns, becomes E, 0 where it is masked; adds to the row
  // sums.
  __device__ void ExponentiateColumns(int tile, int n, bool masked,
                                      float (&s)[4]) {
    const float2 factor =
        LoadPair(shared_.factor[tile % 2] + n * 8 + quad_ * 2);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float e =
          Exp2(fmaf(s[i], i % 2 == 0 ? factor.x : factor.y, -maximum_[i / 2]));
      if (masked && !IsVisible(tile, n * 8 + quad_ * 2 + i % 2, i / 2)) e = 0;
      s[i] = e;
      sum_[i / 2] += e;
    }
  }
  __device__ void Exponentiate(int tile, Scores& s) {
    if (NeedsMask(tile)) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        ExponentiateColumns(tile, n, true, s[n]);
      }
      return;
    }
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      ExponentiateColumns(tile, n, false, s[n]);
    }
  }

  // The same of the block's own tile where all rows are of one document: rows
  // and columns are compared within the block.
  __device__ void ExponentiateOwnTile(Scores& s) {
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      const float2 factor =
          LoadPair(shared_.factor[diagonal_tile_ % 2] + n * 8 + quad_ * 2);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = n * 8 + quad_ * 2 + i % 2;
        const int row = warp_ * 16 + group_ + i / 2 * 8;
        const float e = Exp2(
            fmaf(s[n][i], i % 2 == 0 ? factor.x : factor.y, -maximum_[i / 2]));
        s[n][i] = (System::kStrict ? column < row : column <= row) ? e : 0.0f;
        sum_[i / 2] += s[n][i];
      }
    }
  }

  // acc += E X over the tiles from the first to before `end`; the keys of
  // `end` are then on their way, in the last group but one.
  __device__ void StreamTiles(int end) {
    self_[0] = self_[1] = 0;
    if constexpr (kContinues) {
      LoadStart();
    } else {
      ClearSums();
    }
    // Groups of copies, oldest first: keys of a tile; X of it, if it is known
    // to be solved; X of it, if it has to be awaited; keys of the next, ...
    // Empty ones keep the count. The first keys are on their way.
    if constexpr (!kWarpgroup) CopyRightHandSide();
    if (first_tile_ < end) CopyX(first_tile_);
    CommitCopies();
    CommitCopies();
    for (int tile = first_tile_; tile < end; ++tile) {
      WaitForCopies<2>();
      ShareTiles();
      CopyKeys(tile + 1);
      const bool has_next = tile + 1 < end;
      const bool is_ready = IsReady(tile + 1);
      if (has_next && is_ready) CopyX(tile + 1);
      CommitCopies();
      Scores s;
      ComputeScores(tile, s);
      Exponentiate(tile, s);
      WaitForCopies<2>();
      ShareTiles();
      Accumulate(X(tile % 2), s);
      if (has_next && !is_ready) CopyX(tile + 1);
      CommitCopies();
    }
  }
  __device__ void ClearSums() {
    sum_[0] = sum_[1] = 0;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) acc_[n][i] = 0;
    }
  }

  // Of the lane's row, times log2(e).
  __device__ float StartMaximum(int half) const {
    const int row = min(Row(half), in_.seq_len - 1);
    return in_.start_max[static_cast<int64_t>(pair_) * in_.seq_len + row] *
           kLog2E;
  }
  // The sums that the rows begin with, brought to their maximum.
  __device__ void LoadStart() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = min(Row(half), in_.seq_len - 1);
      const int64_t scalar = static_cast<int64_t>(pair_) * in_.seq_len + row;
      // Nothing met: sums of 0, a maximum that may be -inf.
      const float sum = static_cast<float>(in_.start_sum[scalar]);
      const float rescale =
          sum == 0 ? 0.0f : Exp2(StartMaximum(half) - maximum_[half]);
      sum_[half] = quad_ == 0 ? rescale * sum : 0.0f;
      const float* source = in_.start_weighted + HeadOffset(in_.start_strides) +
                            row * in_.start_strides.seq;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const float2 pair =
            LoadPairBefore(source, n * 8 + quad_ * 2, in_.head_dim, Aligned());
        acc_[n][2 * half] = rescale * pair.x;
        acc_[n][2 * half + 1] = rescale * pair.y;
      }
    }
  }

  // Whether X of a tile is known to be solved.
  __device__ bool IsReady(int tile) const {
    return tile * kKeys / kRows <= ready_block_;
  }

  // Or what the last item left would be kept in registers until now.
  __device__ void ClearDiagonal() {
#pragma unroll
    for (int t = 0; t < kWarps - 1; ++t) lower_[t] = Left();
#pragma unroll
    for (int i = 0; i < 8; ++i) own_[i / 4][i % 4] = 0;
  }

  // Phase 1, and the tiles of E of phase 2.
  __device__ void Stream() {
    StreamTiles(diagonal_tile_);
    ClearDiagonal();
#pragma unroll
    for (int d = 0; d < kDiagonalTiles; ++d) {
      WaitForCopies<0>();
      ShareTiles();
      if (d + 1 < kDiagonalTiles) CopyKeys(diagonal_tile_ + d + 1);
      KeepDiagonal(d);
    }
  }

  // Phases 1 and 2 of a warpgroup. What the next block of rows waits for comes
  // last: the block's own tile and its inverse need all scores but no X, so the
  // solution of the block before is awaited behind them. Where heads are few,
  // so is the one before that: or two blocks of a head would wait for each
  // other's inverses.
  __device__ void StreamAhead() {
    const int last = diagonal_tile_ - 1;
    const int before = last - 1;
    const bool has_last = first_tile_ <= last;
    const bool keeps = kFewHeads && first_tile_ <= before;
    StreamTiles(kFewHeads ? before : last);
    const bool before_is_ready = keeps && IsReady(before);
    if (keeps) {
      WaitForCopies<2>();
      ShareTiles();
      CopyKeys(last);
      if (before_is_ready) CopyX(before);
      CommitCopies();
      Left e[kKeys / 16];
      WeighTile(before, e);
      Keep(e);
      CommitCopies();
    }
    const bool last_is_ready = has_last && IsReady(last);
    Left e[kKeys / 16];
    if (has_last) {
      WaitForCopies<2>();
      ShareTiles();
      CopyOwnKeys();
      if (last_is_ready) CopyX(last);
      CommitCopies();
      WeighTile(last, e);
    } else {
      CommitCopies();
    }
    WaitForCopies<1>();
    ShareTiles();
    FactorWarpgroup();
    if (keeps) {
      // All warps: they need not have seen the same flags.
      if (!before_is_ready) CopyX(before);
      CommitCopies();
      WaitForCopies<0>();
      ShareTiles();
      AccumulateKept(X(before % 2));
    }
    if (has_last && !last_is_ready) CopyX(last);
    CommitCopies();
    WaitForCopies<0>();
    ShareTiles();
    if (has_last) Accumulate(X(last % 2), e);
  }
  // e = E of a tile.
  __device__ void WeighTile(int tile, Left (&e)[kKeys / 16]) {
    Scores s;
    ComputeScores(tile, s);
    Exponentiate(tile, s);
    Pack(s, e);
  }
  // E of a tile until its X is there: not in registers, which the inverse
  // needs.
  __device__ void Keep(const Left (&e)[kKeys / 16]) {
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      shared_.kept[k][threadIdx.x] =
          make_uint4(e[k].x[0], e[k].x[1], e[k].x[2], e[k].x[3]);
    }
  }
  __device__ void AccumulateKept(const Element* x) {
    Left e[kKeys / 16];
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      const uint4 kept = shared_.kept[k][threadIdx.x];
      e[k] = {{kept.x, kept.y, kept.z, kept.w}};
    }
    Accumulate(x, e);
  }

  // The keys of the block's own rows; KRR has them already as queries.
  __device__ void CopyOwnKeys() {
    if constexpr (System::kQueriesAreKeys) {
      ShareColumns(diagonal_tile_);
      CommitCopies();
    } else {
      CopyKeys(diagonal_tile_);
    }
  }

  __device__ static void Pack(const Scores& e, Left (&a)[kKeys / 16]) {
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      a[k] = Products::FromAccumulators(e[2 * k], e[2 * k + 1]);
    }
  }
  // acc += E X, by the warpgroup.
  __device__ void Accumulate(const Element* x, const Left (&e)[kKeys / 16]) {
    HoldAccumulators(acc_);
    FenceProducts();
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      MultiplyTileRows<KeyTile>(acc_, e[k].x, x, 16 * k, /*add=*/true);
    }
    CommitProducts();
    WaitForProducts<0>();
    HoldAccumulators(acc_);
  }

  // Phase 2 of a warpgroup: the inverse of the whole block, D = I + g E, less
  // the identity, in registers. Transposed D is unit upper-triangular.
  __device__ void FactorWarpgroup() {
    Scores e;
    ComputeScores(
        System::kQueriesAreKeys ? Queries() : Keys(diagonal_tile_ % 2), e);
    if (segments_ == nullptr) {
      ExponentiateOwnTile(e);
    } else {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        ExponentiateColumns(diagonal_tile_, n, true, e[n]);
      }
    }
    FindSelf(e);
    MakeEquations();
    if (!System::kQueriesAreKeys)
      __syncthreads();  // all are done with the keys
    float* inverse = shared_.block_inverse;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = n * 8 + quad_ * 2 + i % 2;
        const int row = warp_ * 16 + group_ + i / 2 * 8;
        const float left = equation_[i / 2].left;
        // A row without an equation has left = 0, but may have infinite E.
        float value = left == 0 || column > row ? 0.0f : left * e[n][i];
        if (column == row) value = 1.0f;
        inverse[column * kUnitUpperStride + row] = value;
      }
    }
    __syncthreads();
    InvertUnitUpper(inverse);
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      float c[2][4];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int column = 16 * k + quad_ * 2 + i % 2 + i / 4 * 8;
        const int row = warp_ * 16 + group_ + i / 2 % 2 * 8;
        c[i / 4][i % 4] =
            column == row ? 0.0f : inverse[column * kUnitUpperStride + row];
      }
      block_inverse_[k] = SplitLeft::FromAccumulators(c[0], c[1]);
    }
  }

  // E_ii, from the block's own tile.
  __device__ void FindSelf(const Scores& e) {
    if (!HoldsDiagonal()) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      TakeSelf(half, DiagonalElement(e, warp_, half));
    }
  }

  // Phase 3 of a warpgroup: X = b + (D^-1 - I) b with b = h V - g acc, operands
  // in two bf16 parts.
  __device__ void SolveWarpgroup() {
    static_assert(!kWarpgroup || KeyTile::kBytes == BlockTile::kBytes,
                  "the right-hand side takes the keys' place");
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 v = LoadPair(RightHandSide(n, half));
        const RowEquation& q = equation_[half];
        float* b = acc_[n] + 2 * half;
        b[0] = q.right * v.x - q.left * b[0];
        b[1] = q.right * v.y - q.left * b[1];
        const SplitPair parts = Split(b[0], b[1]);
        const int offset = BlockTile::Offset(warp_ * 16 + group_ + half * 8,
                                             n * 8 + quad_ * 2);
        *reinterpret_cast<uint32_t*>(Keys(0) + offset) = parts.high;
        *reinterpret_cast<uint32_t*>(Keys(1) + offset) = parts.low;
      }
    }
    ShareTiles();
    HoldAccumulators(acc_);
    FenceProducts();
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      const SplitLeft& a = block_inverse_[k];
      MultiplyTileRows<KeyTile>(acc_, a.low, Keys(0), 16 * k, true);
      MultiplyTileRows<KeyTile>(acc_, a.high, Keys(1), 16 * k, true);
      MultiplyTileRows<KeyTile>(acc_, a.high, Keys(0), 16 * k, true);
    }
    CommitProducts();
    WaitForProducts<0>();
    HoldAccumulators(acc_);
    // A lane overwrites what it alone has read.
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        StorePair(RightHandSide(n, half), acc_[n][2 * half],
                  acc_[n][2 * half + 1]);
      }
    }
    __syncwarp();
    WriteRows();
  }

  // P X = value_scale V - lambda X has no correct digit for a large lambda: an
  // experiment, which may take its time.
  __device__ bool KeepsKernelX() const {
    return in_.kernel_x != nullptr && row_input_[0].x > 0;
  }
  // body(half, pair of kernel_x, the same of acc_) for the lane's.
  template <typename Body>
  __device__ void ForEachOfKernelX(const Body& body) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (Row(half) >= in_.seq_len) continue;
      float* target = in_.kernel_x + HeadOffset(in_.kernel_x_strides) +
                      Row(half) * in_.kernel_x_strides.seq;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const int column = n * 8 + quad_ * 2;
        if (column >= in_.head_dim) continue;
        body(half, reinterpret_cast<float2*>(target + column),
             make_float2(acc_[n][2 * half], acc_[n][2 * half + 1]));
      }
    }
  }
  // Adds the block's own keys, whose X are in its tile, and divides.
  __device__ void FinishKernelX() {
    const float inverse[2] = {1.0f / QuadSum(sum_[0]), 1.0f / QuadSum(sum_[1])};
    Scores e;
    ComputeScores(Queries(), e);
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      ExponentiateColumns(diagonal_tile_, n, true, e[n]);
    }
    ClearSums();
    ShareTiles();
    Accumulate(Block(), e);
    ForEachOfKernelX([&inverse](int half, float2* target, float2 sums) {
      *target = make_float2((target->x + sums.x) * inverse[half],
                            (target->y + sums.y) * inverse[half]);
    });
  }

  // acc += E X.
  __device__ void Accumulate(const Element* x, const Scores& e) {
    if constexpr (kWarpgroup) {
      Left a[kKeys / 16];
      Pack(e, a);
      Accumulate(x, a);
      return;
    }
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      const Left a = Products::FromAccumulators(e[2 * k], e[2 * k + 1]);
#pragma unroll
      for (int n = 0; n < kDim / 16; ++n) {
        Right b[2];
        Products::template LoadRightDirect<KeyTile>(x, k * 16, n * 16, b);
        Products::Multiply(acc_[2 * n], a, b[0]);
        Products::Multiply(acc_[2 * n + 1], a, b[1]);
      }
    }
  }

  // The warp's sub-blocks of diagonal tile `d` of E: those before its own are
  // kept as operands, its own as it is; later ones it does not see.
  __device__ void KeepDiagonal(int d) {
    const int tile = diagonal_tile_ + d;
#pragma unroll
    for (int p = 0; p < kKeys / 16; ++p) {
      const int t = d * (kKeys / 16) + p;
      if (t > warp_) continue;
      float e[2][4] = {};
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) {
        Right b[2];
        Products::template LoadRight<KeyTile>(Keys(tile % 2), p * 16, k * 16,
                                              b);
        Products::Multiply(e[0], query_[k], b[0]);
        Products::Multiply(e[1], query_[k], b[1]);
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        ExponentiateColumns(tile, 2 * p + n, true, e[n]);
      }
      if (t < kWarps - 1 && t < warp_) {
        lower_[t] = Products::FromAccumulators(e[0], e[1]);
      }
      if (t != warp_) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        own_[i / 4][i % 4] = e[i / 4][i % 4];
        const int column = (i / 4) * 8 + quad_ * 2 + i % 2;
        const int row = group_ + ((i / 2) % 2) * 8;
        if (column == row) {
          TakeSelf((i / 2) % 2, e[i / 4][i % 4]);
        }
      }
    }
  }

  // The lane has E_ii of a row.
  __device__ void TakeSelf(int half, float e) {
    self_[half] = e;
    if (!fixed_maximum_) return;
    // Exactly 1, whatever the rounding of a large score made of it.
    self_[half] = 1.0f;
    sum_[half] += 1.0f - e;
  }

  // The rows' equations and lse.
  __device__ void MakeEquations() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = Row(half);
      const float sum = QuadSum(sum_[half]);
      const float self = QuadSum(self_[half]);
      equation_[half] = {0.0f, 1.0f};
      if (row >= in_.seq_len || row < in_.first_row) continue;
      equation_[half] = System::Equation(row_input_[half], self, sum);
      if (quad_ == 0) {
        in_.lse[static_cast<int64_t>(pair_) * in_.seq_len + row] =
            (maximum_[half] + log2f(sum)) * kLn2;
      }
    }
  }

  // Phase 2: the rows' equations and the inverse of D_s.
  __device__ void FactorBlock() {
    MakeEquations();
    // Column j of D_s below the diagonal is row j of `inverse`.
    float* inverse = shared_.inverse + warp_ * 16 * kInverseStride;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int column = (i / 4) * 8 + quad_ * 2 + i % 2;
      const int row = group_ + ((i / 2) % 2) * 8;
      inverse[column * kInverseStride + row] =
          row > column ? own_[i / 4][i % 4] * equation_[(i / 2) % 2].left
                       : 0.0f;
    }
    __syncwarp();
    InvertUnitLower(inverse);
    __syncwarp();
    float c[2][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x =
          LoadPair(inverse + (group_ + (i % 2) * 8) * kInverseStride +
                   quad_ * 2 + (i / 2) * 8);
      c[i / 2][(i % 2) * 2] = x.x;
      c[i / 2][(i % 2) * 2 + 1] = x.y;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int column = (i / 4) * 8 + quad_ * 2 + i % 2;
      if (column == group_ + ((i / 2) % 2) * 8) c[i / 4][i % 4] = 0;
    }
    inverse_ = SplitLeft::FromAccumulators(c[0], c[1]);
  }

  // By one warp: `m` holds, transposed, the part below the diagonal of a
  // 16 x 16 unit lower-triangular matrix; it receives the inverse. Lane c
  // substitutes column c. (The product form (I - N)(I + N^2)(I + N^4)(I + N^8)
  // would need powers that grow to 3432 for a flat kernel and cancel.)
  __device__ static void InvertUnitLower(float* m) {
    const int column = threadIdx.x % 16;
    float y[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) y[i] = i == column ? 1.0f : 0.0f;
#pragma unroll
    for (int j = 0; j < 15; ++j) {
#pragma unroll
      for (int i = (j + 1) / 4 * 4; i < 16; i += 4) {
        const float4 n =
            *reinterpret_cast<const float4*>(m + j * kInverseStride + i);
        if (i > j) y[i] -= n.x * y[j];
        if (i + 1 > j) y[i + 1] -= n.y * y[j];
        if (i + 2 > j) y[i + 2] -= n.z * y[j];
        if (i + 3 > j) y[i + 3] -= n.w * y[j];
      }
    }
    __syncwarp();
    if (threadIdx.x % 32 >= 16) return;
#pragma unroll
    for (int i = 0; i < 16; ++i) m[i * kInverseStride + column] = y[i];
  }

  // Phase 3.
  __device__ void SolveBlock() {
#pragma unroll
    for (int s = 0; s < kWarps; ++s) {
      const int participants = 32 * (kWarps - s);
      if (warp_ == s) {
        SolveRows();
        if (s < kWarps - 1) ReportAtBarrier(1 + s, participants);
        __syncwarp();
        WriteRows();
      } else if (warp_ > s) {
        WaitAtBarrier(1 + s, participants);
#pragma unroll
        for (int n = 0; n < kDim / 16; ++n) {
          Right b[2];
          Products::template LoadRightDirect<BlockTile>(Block(), s * 16, n * 16,
                                                        b);
          Products::Multiply(acc_[2 * n], lower_[s], b[0]);
          Products::Multiply(acc_[2 * n + 1], lower_[s], b[1]);
        }
      }
    }
  }

  // The warp's 16 rows of X, in the block's tile.
  __device__ void SolveRows() {
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      float b[4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float2 v = LoadPair(RightHandSide(n, half));
        const RowEquation& e = equation_[half];
        b[2 * half] = e.right * v.x - e.left * acc_[n][2 * half];
        b[2 * half + 1] = e.right * v.y - e.left * acc_[n][2 * half + 1];
      }
      float x[4] = {b[0], b[1], b[2], b[3]};
      MultiplySplit(x, inverse_, b);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (Row(half) < in_.first_row) continue;  // known, stays as it is
        StorePair(RightHandSide(n, half), x[2 * half], x[2 * half + 1]);
      }
    }
  }
  // Where the lane's columns of 8-column group `n` lie in the block's tile.
  __device__ Element* RightHandSide(int n, int half) {
    return Block() +
           BlockTile::Offset(warp_ * 16 + group_ + half * 8, n * 8 + quad_ * 2);
  }

  __device__ void WriteRows() {
    const int lane = threadIdx.x % 32;
    constexpr int kWidth = BlockTile::kChunk;
    for (int i = lane; i < 16 * kDim / kWidth; i += 32) {
      const int row = warp_ * 16 + i / (kDim / kWidth);
      const int column = i % (kDim / kWidth) * kWidth;
      const int global_row = row_begin_ + row;
      if (global_row < in_.first_row || row >= num_rows_ ||
          column >= in_.head_dim) {
        continue;
      }
      const Element* source = Block() + BlockTile::Offset(row, column);
      Element* target = x_ + global_row * in_.x_strides.seq + column;
      if (Aligned()) {
        *reinterpret_cast<uint4*>(target) =
            *reinterpret_cast<const uint4*>(source);
      } else {
        for (int c = 0; c < min(kWidth, in_.head_dim - column); ++c) {
          target[c] = source[c];
        }
      }
    }
  }

  const SolveArguments& in_;
  Shared& shared_;
  const int warp_ = threadIdx.x / 32;
  const int group_ = threadIdx.x % 32 / 4;
  const int quad_ = threadIdx.x % 4;
  uint32_t launch_;

  // The item.
  int ready_block_;  // this and earlier ones of the head are known to be ready
  int block_, pair_, row_begin_, num_rows_, first_tile_, diagonal_tile_;
  const Element* key_;
  Element* x_;
  const int32_t* segments_;
  int32_t last_segment_, row_segment_[2];
  bool fixed_maximum_;
  float head_factor_;       // of the scores of the head's first key
  float row_factor_[2];     // of the lane's rows as keys
  float column_factor_;     // of the tile whose copy is next
  int32_t column_segment_;  // likewise

  Left query_[kDim / 16];
  float acc_[kDim / 8][4];     // sum of E_ij X_j over the keys so far
  float maximum_[2], sum_[2];  // m_i log2(e), the lane's share of Z_i
  float self_[2];              // E_ii, in the lane that computed it
  RowInput row_input_[2];
  Left lower_[kWarps - 1];  // sub-blocks of E before the warp's own
  float own_[2][4];         // its own
  RowEquation equation_[2];
  SplitLeft inverse_;
  SplitLeft block_inverse_[kKeys / 16];  // of a warpgroup
};

template <typename Solver, int kBlocksOfMultiprocessor>
__global__ void __launch_bounds__(Solver::kThreads, kBlocksOfMultiprocessor)
    ForwardSolveKernel(const __grid_constant__ SolveArguments in) {
  extern __shared__ __align__(1024) char shared[];
  Solver solver(in, reinterpret_cast<typename Solver::Shared*>(shared));
  solver.Run();
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_TRIANGULAR_SOLVE_CUH_
