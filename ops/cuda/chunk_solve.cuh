// SPDX-License-Identifier: Apache-2.0
//
// The systems of a chunk on its own diagonal (ChunkSolveArguments), forward
// from running sums and adjoint. As in adjoint_solve.cuh one block of threads
// solves kChunkRows rows of one head: it takes them from the queue
// (solve_queue.cuh) in the order in which they can be solved, streams the
// blocks of the chunk that are solved before its own, multiplies by the inverse
// of its own 64 x 64 unit triangular block, and publishes the result. Where
// products are bf16, so are the values of x and y, as in krr.h.

#ifndef CUBIT_OPS_CUDA_CHUNK_SOLVE_CUH_
#define CUBIT_OPS_CUDA_CHUNK_SOLVE_CUH_

#include <cmath>
#include <cstdint>

#include "ops/cuda/chunk_arguments.h"
#include "ops/cuda/chunk_pair.cuh"
#include "ops/cuda/chunk_running_rows.cuh"
#include "ops/cuda/chunk_tiles.cuh"
#include "ops/cuda/solve_queue.cuh"
#include "ops/cuda/unit_upper.cuh"
#include "ops/cuda/warp_products.cuh"

namespace cubit {
namespace cuda {

static_assert(kChunkRows == kUnitUpperSize, "a block is one inverse");

template <typename ProductsType, int kDimOfHead>
struct ChunkSolveMemory {
  using Products = ProductsType;
  using Element = typename Products::Element;
  static constexpr int kDim = kDimOfHead;
  using HeadTile = Tile<Element, kChunkRows, kDim>;
  using FloatTile = Tile<float, kChunkRows, kDim>;

  alignas(1024) char own[HeadTile::kBytes];
  union {
    alignas(1024) char scored[HeadTile::kBytes];
    float right_side[FloatTile::kBytes / 4];
  };
  union {
    alignas(1024) char weighed[HeadTile::kBytes];
    float solution[FloatTile::kBytes / 4];
  };
  alignas(16) float inverse[UnitUpperTile::kBytes / 4];
  alignas(16) float weights[UnitUpperTile::kBytes / 4];  // E of the own block
  float scale[kChunkRows];   // forward: c, of streamed columns
  float lse[kChunkRows];     // adjoint: of streamed rows
  float factor[kChunkRows];  // adjoint: f, likewise
  float self[kChunkRows];    // adjoint: P_jj
  float g[kChunkRows];       // adjoint
  int item;
};

// Place and tiles, for both directions.
template <typename Memory>
class ChunkSolverBase {
 public:
  using Products = typename Memory::Products;
  using Element = typename Memory::Element;
  using HeadTile = typename Memory::HeadTile;
  using FloatTile = typename Memory::FloatTile;
  static constexpr int kDim = Memory::kDim;
  static constexpr int kStride = FloatTile::kStride;

 protected:
  __device__ __forceinline__ ChunkSolverBase(const ChunkSolveArguments& in,
                                             int block, int pair,
                                             uint32_t launch, Memory* m)
      : in_(in),
        m_(*m),
        launch_(launch),
        block_(block),
        pair_(pair),
        b_(pair / in.chunk.num_heads),
        h_(pair % in.chunk.num_heads),
        first_(block * kChunkRows),
        seq_len_(in.chunk.num_rows),
        mask_(MaskOf(in.chunk, b_)),
        row0_(static_cast<int64_t>(pair) * in.chunk.num_rows),
        lambda_(in.is_delta() ? 0.0
                              : exp(static_cast<double>(in.log_lambda[h_]))) {}

  __device__ __forceinline__ int Own(int half) const {
    return first_ + own_row_ + group_ + 8 * half;
  }
  __device__ __forceinline__ int NumPairs() const {
    return in_.chunk.batch * in_.chunk.num_heads;
  }
  __device__ __forceinline__ int NumBlocks() const {
    return (seq_len_ + kChunkRows - 1) / kChunkRows;
  }

  // Rows from `row` to a tile that nobody reads any more; complete for all
  // threads after the barrier at the end.
  __device__ __forceinline__ void LoadAndWait(const ChunkHeads& heads, int row,
                                              char* tile) {
    CopyChunkRows<HeadTile>(heads, b_, h_, row, seq_len_, in_.chunk.head_dim,
                            reinterpret_cast<Element*>(tile));
    CommitCopies();
    WaitForCopies<0>();
    __syncthreads();
  }
  __device__ __forceinline__ static const Element* Elements(const char* tile) {
    return reinterpret_cast<const Element*>(tile);
  }

  // weights = own rows times the transpose of the streamed ones.
  __device__ __forceinline__ void Score(float (&weights)[kChunkRows / 8][4]) {
    MultiplyTransposed<Products, HeadTile, HeadTile>(
        Elements(m_.own), own_row_, Elements(m_.scored), weights);
  }

  // A number of the solution as it is stored.
  __device__ __forceinline__ static float Stored(float x) {
    return sizeof(Element) == 2 ? __bfloat162float(__float2bfloat16_rn(x)) : x;
  }

  // The warp's 16 rows of m_.solution to memory.
  __device__ __forceinline__ void StoreSolution(const ChunkHeads& heads) {
    for (int i = 0; i < 16; ++i) {
      const int row = first_ + own_row_ + i;
      if (row >= seq_len_) break;
      const int64_t target = ChunkRowOffset(heads, b_, h_, row);
      for (int c = threadIdx.x % 32; c < in_.chunk.head_dim; c += 32) {
        StoreChunkElement(m_.solution[(own_row_ + i) * kStride + c], heads,
                          target + c);
      }
    }
  }

  const ChunkSolveArguments& in_;
  Memory& m_;
  const uint32_t launch_;
  const int block_, pair_, b_, h_;
  const int first_;  // row of the chunk
  const int seq_len_;
  const ChunkMaskView mask_;
  const int64_t row0_;  // of [B, H, T]
  const double lambda_;
  const int group_ = threadIdx.x % 32 / 4;
  const int quad_ = threadIdx.x % 4;
  const int own_row_ = threadIdx.x / 32 * 16;  // of the warp, in the block
};

// --- Forward ----------------------------------------------------------------

template <typename Memory>
class ChunkSolver : public ChunkSolverBase<Memory> {
  using Base = ChunkSolverBase<Memory>;
  using Products = typename Base::Products;
  static constexpr int kDim = Base::kDim;
  static constexpr int kStride = Base::kStride;
  static constexpr int kLast = kChunkRows - 1;

 public:
  __device__ __forceinline__ ChunkSolver(const ChunkSolveArguments& in,
                                         int block, int pair, uint32_t launch,
                                         Memory* m)
      : Base(in, block, pair, launch, m) {}

  __device__ void Run() {
    const ChunkArguments& chunk = this->in_.chunk;
    rows_.keeps_max = KeepsRowMax(chunk.row_scale, this->row0_);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = this->Own(half);
      ranges_[half] = ColumnsOf(this->mask_, row);
      rows_.Load(chunk, this->b_, this->h_, this->row0_, half, row);
    }
    this->LoadAndWait(chunk.a, this->first_, this->m_.own);
    Stream();
    WeighOwnBlock();
    FormInverse();
    SolveBlock();
    Finish();
  }

 private:
  __device__ __forceinline__ uint32_t* Flag(int block) const {
    return this->in_.queue->ready +
           static_cast<int64_t>(block) * this->NumPairs() + this->pair_;
  }

  // Scores of own rows and columns [column, + kChunkRows) become weights.
  __device__ __forceinline__ void WeighTile(int column) {
    const ChunkArguments& chunk = this->in_.chunk;
    __syncthreads();  // everyone is done with the last tile
    if (threadIdx.x < kChunkRows) {
      const int i = column + threadIdx.x;
      this->m_.scale[threadIdx.x] =
          i < this->seq_len_ ? ColumnScale(chunk, this->pair_, i) : 0.0f;
    }
    this->LoadAndWait(chunk.b, column, this->m_.scored);
    this->Score(weights_);
    rows_.template Weigh<kChunkRows, true>(ranges_, column, this->m_.scale,
                                           weights_);
  }

  // The chunk's blocks before the own one.
  __device__ __forceinline__ void Stream() {
    const int begin =
        VisibleColumns(this->mask_, this->first_).begin / kChunkRows;
    for (int block = begin; block < this->block_; ++block) {
      WeighTile(block * kChunkRows);
      AwaitReady(Flag(block), this->launch_, this->block_ - block);
      this->LoadAndWait(this->in_.chunk.x, block * kChunkRows,
                        this->m_.weighed);
      MultiplyAdd<Products, typename Base::HeadTile>(
          weights_, this->Elements(this->m_.weighed), rows_.weighted);
    }
  }

  // E of the own block, to m_.weights; then the sums are whole.
  __device__ __forceinline__ void WeighOwnBlock() {
    WeighTile(this->first_);
    float self[2] = {0, 0};
#pragma unroll
    for (int n = 0; n < kChunkRows / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int half = e / 2;
        const int row = this->own_row_ + this->group_ + 8 * half;
        const int column = n * 8 + this->quad_ * 2 + e % 2;
        if (row == column && !this->in_.is_delta()) {
          if (rows_.keeps_max) {
            // Exactly 1, whatever the rounding of a large score made of it.
            rows_.sum[half] += 1.0 - static_cast<double>(weights_[n][e]);
            weights_[n][e] = 1;
          }
          self[half] = weights_[n][e];
        }
        this->m_.weights[row * kUnitUpperStride + column] = weights_[n][e];
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      self[half] = QuadSum(self[half]);
      total_[half] = QuadSum(rows_.sum[half]);
      SetEquation(half, self[half]);
    }
  }

  __device__ __forceinline__ void SetEquation(int half, float self) {
    const int row = this->Own(half);
    left_[half] = right_[half] = 0;
    if (row >= this->seq_len_) return;
    const double sum = total_[half];
    if (this->in_.is_delta()) {
      // The first row of a document sees no key: X = V.
      const double beta = static_cast<double>(
          RowFactor(this->in_.chunk, this->b_, this->h_, row));
      left_[half] = sum == 0 ? 0.0f : static_cast<float>(beta / sum);
      right_[half] = 1;
      return;
    }
    const double left = 1.0 / (static_cast<double>(self) + this->lambda_ * sum);
    left_[half] = static_cast<float>(left);
    right_[half] = static_cast<float>(
        left * sum *
        static_cast<double>(this->in_.value_scale[this->row0_ + row]));
  }

  // The inverse of I + left E. With rows and columns counted from the last, a
  // lower triangle is an upper one.
  __device__ __forceinline__ void FormInverse() {
#pragma unroll
    for (int n = 0; n < kChunkRows / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = this->own_row_ + this->group_ + e / 2 * 8;
        const int column = n * 8 + this->quad_ * 2 + e % 2;
        float value = column < row ? left_[e / 2] * weights_[n][e] : 0.0f;
        if (column == row) value = 1;
        this->m_.inverse[(kLast - row) * kUnitUpperStride + kLast - column] =
            value;
      }
    }
    __syncthreads();  // also: everyone is done with the scored tile
    InvertUnitUpper(this->m_.inverse);
  }

  // m_.solution = inverse (right V - left weighted).
  __device__ __forceinline__ void SolveBlock() {
    const ChunkHeads& v = this->in_.v;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = this->Own(half);
      const bool valid = row < this->seq_len_;
      const int64_t v_row =
          ChunkRowOffset(v, this->b_, this->h_, valid ? row : 0);
      const int from_last = kLast - (this->own_row_ + this->group_ + 8 * half);
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const int c = n * 8 + this->quad_ * 2 + side;
          const float value = valid && c < this->in_.chunk.head_dim
                                  ? ChunkElement(v, v_row + c)
                                  : 0.0f;
          this->m_.right_side[from_last * kStride + c] =
              right_[half] * value -
              left_[half] * rows_.weighted[n][2 * half + side];
        }
      }
    }
    __syncthreads();
    float x[kDim / 8][4];
    SetZero(x);
    MultiplyAddExactly<UnitUpperTile, typename Base::FloatTile>(
        this->m_.inverse, this->own_row_, this->own_row_, kChunkRows,
        this->m_.right_side, x);
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = kLast - (this->own_row_ + this->group_ + e / 2 * 8);
        this->m_.solution[row * kStride + n * 8 + this->quad_ * 2 + e % 2] =
            Base::Stored(x[n][e]);
      }
    }
    __syncthreads();
  }

  __device__ __forceinline__ void Finish() {
    const ChunkArguments& chunk = this->in_.chunk;
    this->StoreSolution(chunk.x);
    PublishReady(Flag(this->block_), this->launch_);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = this->Own(half);
      if (row < this->seq_len_ && this->quad_ == 0) {
        this->in_.lse[this->row0_ + row] =
            total_[half] == 0
                ? -INFINITY
                : static_cast<float>(static_cast<double>(rows_.maximum[half]) +
                                     log(total_[half]));
      }
    }
    if (this->in_.kernel_x.empty()) return;
    // E is zero after the row's own column.
    MultiplyAddExactly<UnitUpperTile, typename Base::FloatTile>(
        this->m_.weights, this->own_row_, 0, this->own_row_ + 16,
        this->m_.solution, rows_.weighted);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = this->Own(half);
      if (row >= this->seq_len_) continue;
      const float inverse =
          total_[half] == 0 ? 0.0f : static_cast<float>(1.0 / total_[half]);
      const ChunkHeads& target = this->in_.kernel_x;
      ForEachOfRow<kDim>(rows_.weighted, half, chunk.head_dim,
                         ChunkRowOffset(target, this->b_, this->h_, row),
                         [&target, inverse](float& x, int64_t index) {
                           static_cast<float*>(target.data)[index] =
                               inverse * x;
                         });
    }
  }

  ChunkRange ranges_[2];
  RunningRows<kDim> rows_;
  float weights_[kChunkRows / 8][4];
  double total_[2];
  float left_[2], right_[2];
};

// --- Adjoint ----------------------------------------------------------------

template <typename Memory>
class ChunkAdjointSolver : public ChunkSolverBase<Memory> {
  using Base = ChunkSolverBase<Memory>;
  using Products = typename Base::Products;
  static constexpr int kDim = Base::kDim;
  static constexpr int kStride = Base::kStride;

 public:
  __device__ __forceinline__ ChunkAdjointSolver(const ChunkSolveArguments& in,
                                                int block, int pair,
                                                uint32_t launch, Memory* m)
      : Base(in, block, pair, launch, m) {}

  __device__ void Run() {
    const ChunkArguments& chunk = this->in_.chunk;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int column = this->Own(half);
      ranges_[half] = RowsOf(this->mask_, column);
      scale_[half] = column < this->seq_len_
                         ? ColumnScale(chunk, this->pair_, column)
                         : 0.0f;
    }
    LoadRightSide();
    this->LoadAndWait(chunk.b, this->first_, this->m_.own);
    FormInverse();
    Stream();
    Finish();
  }

 private:
  // The last block is solved first.
  __device__ __forceinline__ uint32_t* Flag(int block) const {
    return this->in_.queue->ready +
           static_cast<int64_t>(this->NumBlocks() - 1 - block) *
               this->NumPairs() +
           this->pair_;
  }

  // sums_ = -g.
  __device__ __forceinline__ void LoadRightSide() {
    const ChunkHeads& g = this->in_.g;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        sums_[n][2 * half] = sums_[n][2 * half + 1] = 0;
      }
      const int row = this->Own(half);
      if (row >= this->seq_len_) continue;
      ForEachOfRow<kDim>(
          sums_, half, this->in_.chunk.head_dim,
          ChunkRowOffset(g, this->b_, this->h_, row),
          [&g](float& x, int64_t index) {
            x = -LoadCoherent(static_cast<const float*>(g.data) + index);
          });
    }
  }

  // weights_ = P of rows [row, + kChunkRows), transposed.
  __device__ __forceinline__ void WeighTile(int row) {
    const ChunkArguments& chunk = this->in_.chunk;
    __syncthreads();  // everyone is done with the last tile
    if (threadIdx.x < kChunkRows) {
      const int i = row + threadIdx.x;
      const bool valid = i < this->seq_len_;
      this->m_.lse[threadIdx.x] = valid ? chunk.lse[this->row0_ + i] : 0.0f;
      this->m_.factor[threadIdx.x] =
          valid ? RowFactor(chunk, this->b_, this->h_, i) : 0.0f;
    }
    this->LoadAndWait(chunk.a, row, this->m_.scored);
    this->Score(weights_);
#pragma unroll
    for (int n = 0; n < kChunkRows / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = n * 8 + this->quad_ * 2 + e % 2;
        weights_[n][e] =
            IsInside(ranges_[e / 2], row + i)
                ? ChunkExp(weights_[n][e] * scale_[e / 2] - this->m_.lse[i])
                : 0.0f;
      }
    }
  }

  // m_.inverse = (I + N)^-1, N_ji = g_i P_ij for i > j.
  __device__ __forceinline__ void FormInverse() {
    WeighTile(this->first_);
#pragma unroll
    for (int n = 0; n < kChunkRows / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = n * 8 + this->quad_ * 2 + e % 2;
        const int j = this->own_row_ + this->group_ + e / 2 * 8;
        if (i == j) this->m_.self[j] = weights_[n][e];
      }
    }
    __syncthreads();
    if (threadIdx.x < kChunkRows) {
      const int i = threadIdx.x;
      float g = 0;
      if (this->first_ + i < this->seq_len_) {
        g = this->in_.is_delta()
                ? this->m_.factor[i]
                : static_cast<float>(
                      1.0 /
                      (static_cast<double>(this->m_.self[i]) + this->lambda_));
      }
      this->m_.g[i] = g;
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kChunkRows / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = n * 8 + this->quad_ * 2 + e % 2;
        const int j = this->own_row_ + this->group_ + e / 2 * 8;
        float value = i > j ? this->m_.g[i] * weights_[n][e] : 0.0f;
        if (i == j) value = 1;
        this->m_.inverse[j * kUnitUpperStride + i] = value;
      }
    }
    __syncthreads();
    InvertUnitUpper(this->m_.inverse);
  }

  // sums_ += P^T (f Y) over the chunk's later blocks, the last first.
  __device__ __forceinline__ void Stream() {
    const int last_column = min(this->first_ + kChunkRows, this->seq_len_) - 1;
    const int end = VisibleRows(this->mask_, last_column).end;
    for (int block = (end - 1) / kChunkRows; block > this->block_; --block) {
      WeighTile(block * kChunkRows);
#pragma unroll
      for (int n = 0; n < kChunkRows / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          weights_[n][e] *= this->m_.factor[n * 8 + this->quad_ * 2 + e % 2];
        }
      }
      AwaitReady(Flag(block), this->launch_, block - this->block_);
      this->LoadAndWait(this->in_.chunk.y, block * kChunkRows,
                        this->m_.weighed);
      MultiplyAdd<Products, typename Base::HeadTile>(
          weights_, this->Elements(this->m_.weighed), sums_);
    }
  }

  // Y = diag(1 / D) inverse (-sums).
  __device__ __forceinline__ void Finish() {
    __syncthreads();  // everyone is done with the tiles
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = this->own_row_ + this->group_ + e / 2 * 8;
        this->m_.right_side[row * kStride + n * 8 + this->quad_ * 2 + e % 2] =
            -sums_[n][e];
      }
    }
    __syncthreads();
    SetZero(sums_);
    MultiplyAddExactly<UnitUpperTile, typename Base::FloatTile>(
        this->m_.inverse, this->own_row_, this->own_row_, kChunkRows,
        this->m_.right_side, sums_);
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = this->own_row_ + this->group_ + e / 2 * 8;
        const float factor = this->in_.is_delta() ? 1.0f : this->m_.g[row];
        this->m_.solution[row * kStride + n * 8 + this->quad_ * 2 + e % 2] =
            Base::Stored(factor * sums_[n][e]);
      }
    }
    __syncwarp();
    this->StoreSolution(this->in_.chunk.y);
    PublishReady(Flag(this->block_), this->launch_);
  }

  ChunkRange ranges_[2];
  float scale_[2];
  float weights_[kChunkRows / 8][4];
  float sums_[kDim / 8][4];
};

// One block of threads an item; blocks of rows in order of the numbers that
// the queue gives out, ascending or, in the adjoint, descending.
template <template <typename> class Solver, typename Memory, bool kAscending>
__global__ void __launch_bounds__(kChunkThreads)
    ChunkSolveKernel(const __grid_constant__ ChunkSolveArguments in) {
  extern __shared__ __align__(1024) char shared[];
  Memory* memory = reinterpret_cast<Memory*>(shared);
  if (threadIdx.x == 0) {
    memory->item = static_cast<int>(atomicAdd(&in.queue->next_item, 1u));
  }
  __syncthreads();
  const int num_pairs = in.chunk.batch * in.chunk.num_heads;
  const int num_blocks = (in.chunk.num_rows + kChunkRows - 1) / kChunkRows;
  const int turn = memory->item / num_pairs;
  const int pair = memory->item % num_pairs;
  const uint32_t launch =
      *const_cast<volatile uint32_t*>(&in.queue->launch) + 1;
  Solver<Memory>(in, kAscending ? turn : num_blocks - 1 - turn, pair, launch,
                 memory)
      .Run();
  if (threadIdx.x == 0) LeaveQueue(in.queue);
}

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_CHUNK_SOLVE_CUH_
