// SPDX-License-Identifier: Apache-2.0
//
// A block of rows of the forward solve (triangular_solve.cuh) and the tiles of
// keys that it sees: copies, scores and E of tiles, the sums over those before
// the block (phase 1), and the equations of its rows.

#ifndef CUBIT_OPS_CUDA_FORWARD_TILES_CUH_
#define CUBIT_OPS_CUDA_FORWARD_TILES_CUH_

#include <cmath>
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

// Parameters are those of ForwardSolver.
template <typename System, typename ProductsType, int kDimOfHead, int kNumWarps,
          bool kWarpgroup, bool kContinues, bool kFewHeads>
class ForwardTiles {
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
  static_assert(!kContinues || System::kQueriesAreKeys);
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

 protected:
  __device__ ForwardTiles(const SolveArguments& in, Shared* shared)
      : in_(in), shared_(*shared) {}

  using Scores = float[kKeys / 8][4];

  // Whether all rows are whole 16-byte vectors; warpgroups take no others.
  __device__ bool Aligned() const { return kWarpgroup || in_.aligned; }

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
  RowEquation equation_[2];
};

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_FORWARD_TILES_CUH_
