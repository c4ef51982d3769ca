// SPDX-License-Identifier: Apache-2.0

#include <cstdint>

#include "ops/cross_entropy.h"
#include "ops/cuda/activation_math.cuh"
#include "ops/cuda/memory_pass.cuh"

namespace cubit {
namespace {

using cuda::LoadPack;
using cuda::Pack;
using cuda::StorePack;
using cuda::ToFloat;

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / cuda::kWarpSize;
// Under every finite logit, and unlike -inf its difference to itself is 0.
constexpr float kLowest = -3.402823466e38f;

struct CrossEntropyArguments {
  const void* logits;
  const int32_t* targets;
  int vocab_size;
  int valid_vocab;
  float z_loss;
  float grad_scale;
  float* losses;
  void* d_logits;  // null: none
};

// max and sum of exp(x - max) over what was seen.
struct SoftmaxSum {
  float max;
  float sum;
};

template <typename T>
__device__ __forceinline__ SoftmaxSum Merge(SoftmaxSum a, SoftmaxSum b) {
  const float max = fmaxf(a.max, b.max);
  return {max, a.sum * cuda::Exp<T>(a.max - max) +
                   b.sum * cuda::Exp<T>(b.max - max)};
}

// Over the block, the same in all threads, in a fixed order.
template <typename T>
__device__ SoftmaxSum MergeBlock(SoftmaxSum x, SoftmaxSum* shared) {
#pragma unroll
  for (int offset = cuda::kWarpSize / 2; offset > 0; offset /= 2) {
    const SoftmaxSum other = {__shfl_xor_sync(0xffffffffu, x.max, offset),
                              __shfl_xor_sync(0xffffffffu, x.sum, offset)};
    x = Merge<T>(x, other);
  }
  if (threadIdx.x % cuda::kWarpSize == 0) {
    shared[threadIdx.x / cuda::kWarpSize] = x;
  }
  __syncthreads();
  x = shared[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) x = Merge<T>(x, shared[warp]);
  return x;
}

// Takes a pack in; elements from `valid` on count as absent.
template <typename T, int kWidth>
__device__ __forceinline__ void Accumulate(const Pack<T, kWidth>& pack,
                                           int valid, SoftmaxSum* state) {
  float values[kWidth];
  float max = state->max;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    values[i] = i < valid ? ToFloat(pack.values[i]) : -INFINITY;
    max = fmaxf(max, values[i]);
  }
  if (max > state->max) {
    state->sum *= cuda::Exp<T>(state->max - max);
    state->max = max;
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    state->sum += cuda::Exp<T>(values[i] - max);
  }
}

// What a thread takes of a row: packs threadIdx.x, + kThreads, ...; calls
// body(pack index) for those of part `part` of kParts.
constexpr int kParts = 4;
template <typename Body>
__device__ __forceinline__ void ForEachPack(int num_packs, int part,
                                            Body body) {
  const int rounds = (num_packs + kThreads - 1) / kThreads;
  const int rounds_in_part = (rounds + kParts - 1) / kParts;
  const int begin = part * rounds_in_part * kThreads;
  const int end = min(num_packs, begin + rounds_in_part * kThreads);
  for (int p = begin + static_cast<int>(threadIdx.x); p < end; p += kThreads) {
    body(p);
  }
}

// The row's softmax sum while the row is copied to `kept`: all of it is on its
// way before the first part is looked at.
template <typename T, int kWidth>
__device__ __forceinline__ SoftmaxSum AccumulateKept(const T* row,
                                                     int num_packs,
                                                     int valid_vocab,
                                                     Pack<T, kWidth>* kept) {
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    ForEachPack(num_packs, part, [&](int p) {
      cuda::CopyAsync16(cuda::SharedAddress(kept + p),
                        row + static_cast<int64_t>(p) * kWidth, true);
    });
    cuda::CommitCopies();
  }
  SoftmaxSum state = {kLowest, 0.0f};
  const auto take = [&](int p) {
    Accumulate(kept[p], valid_vocab - p * kWidth, &state);
  };
  // A thread reads what it copied itself, so that no barrier is needed.
  cuda::WaitForCopies<3>();
  ForEachPack(num_packs, 0, take);
  cuda::WaitForCopies<2>();
  ForEachPack(num_packs, 1, take);
  cuda::WaitForCopies<1>();
  ForEachPack(num_packs, 2, take);
  cuda::WaitForCopies<0>();
  ForEachPack(num_packs, 3, take);
  return state;
}

// A row that does not fit into shared memory.
template <typename T, int kWidth>
__device__ __forceinline__ SoftmaxSum AccumulateRow(const T* row, int num_packs,
                                                    int valid_vocab) {
  SoftmaxSum state = {kLowest, 0.0f};
  for (int p = static_cast<int>(threadIdx.x); p < num_packs; p += kThreads) {
    Accumulate(LoadPack<T, kWidth>(row + static_cast<int64_t>(p) * kWidth),
               valid_vocab - p * kWidth, &state);
  }
  return state;
}

// factor exp(x - max), less grad_scale at the target; 0 in the padding.
template <typename T, int kWidth>
__device__ __forceinline__ Pack<T, kWidth> Gradient(
    const CrossEntropyArguments& a, const Pack<T, kWidth>& pack, int first,
    int target, float max, float factor) {
  float d[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    d[i] = factor * cuda::Exp<T>(ToFloat(pack.values[i]) - max);
  }
  if (first + kWidth > a.valid_vocab ||
      static_cast<unsigned>(target - first) < static_cast<unsigned>(kWidth)) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (first + i == target) d[i] -= a.grad_scale;
      if (first + i >= a.valid_vocab) d[i] = 0.0f;
    }
  }
  Pack<T, kWidth> result;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) result.values[i] = cuda::FromFloat<T>(d[i]);
  return result;
}

template <typename T, int kWidth>
__device__ __forceinline__ void WriteZeros(int num_packs, T* d_row) {
  const Pack<T, kWidth> zeros = {};
  for (int p = static_cast<int>(threadIdx.x); p < num_packs; p += kThreads) {
    StorePack(zeros, d_row + static_cast<int64_t>(p) * kWidth);
  }
}

// A block a row. The row is read once: with kKeep it stays in shared memory
// for the gradient; without it is read again.
template <typename T, int kWidth, bool kKeep>
__global__ void __launch_bounds__(kThreads, 2)
    CrossEntropyKernel(CrossEntropyArguments a) {
  extern __shared__ uint4 kept_storage[];
  __shared__ SoftmaxSum shared[kWarps];
  Pack<T, kWidth>* kept = reinterpret_cast<Pack<T, kWidth>*>(kept_storage);
  const int64_t n = blockIdx.x;
  const T* row = static_cast<const T*>(a.logits) + n * a.vocab_size;
  T* d_row = a.d_logits == nullptr
                 ? nullptr
                 : static_cast<T*>(a.d_logits) + n * a.vocab_size;
  const int num_packs = a.vocab_size / kWidth;
  const int target = a.targets[n];
  if (target == kIgnoredTarget) {
    if (threadIdx.x == 0) a.losses[n] = 0.0f;
    if (d_row != nullptr) WriteZeros<T, kWidth>(num_packs, d_row);
    return;
  }
  const bool valid_target = target >= 0 && target < a.valid_vocab;
  // Before d_row, which may be row, is written.
  const float target_logit = valid_target ? ToFloat(row[target]) : NAN;
  SoftmaxSum state;
  if constexpr (kKeep) {
    state = AccumulateKept<T, kWidth>(row, num_packs, a.valid_vocab, kept);
  } else {
    state = AccumulateRow<T, kWidth>(row, num_packs, a.valid_vocab);
  }
  state = MergeBlock<T>(state, shared);
  const float log_sum = logf(state.sum);
  if (threadIdx.x == 0) a.losses[n] = state.max - target_logit + log_sum;
  if (d_row == nullptr) return;
  const float slope = 1.0f + 2.0f * a.z_loss * (state.max + log_sum);
  const float factor = valid_target ? a.grad_scale * slope / state.sum : NAN;
  for (int part = 0; part < kParts; ++part) {
    ForEachPack(num_packs, part, [&](int p) {
      const int64_t first = static_cast<int64_t>(p) * kWidth;
      const Pack<T, kWidth> pack =
          kKeep ? kept[p] : LoadPack<T, kWidth>(row + first);
      StorePack(Gradient(a, pack, p * kWidth, target, state.max, factor),
                d_row + first);
    });
  }
}

// Where a slice's columns begin, and what all slices of a row came to
// (cross_entropy.h): values [P, n, 3].
struct SliceStatistics {
  const float* values;
  int num_slices;
  int64_t num_rows;
  int begin;        // of this slice
  int valid_vocab;  // of all of them
};

struct RowTotal {
  float max;
  float sum;
  float target_logit;
};

__device__ __forceinline__ RowTotal MergeSlices(const SliceStatistics& s,
                                                int64_t n) {
  const int64_t stride = 3 * s.num_rows;
  const float* row = s.values + 3 * n;
  RowTotal total = {row[0], 0.0f, 0.0f};
  for (int p = 1; p < s.num_slices; ++p) {
    total.max = fmaxf(total.max, row[p * stride]);
  }
  for (int p = 0; p < s.num_slices; ++p) {
    const float* slice = row + p * stride;
    total.sum += slice[1] * expf(slice[0] - total.max);
    total.target_logit += slice[2];
  }
  return total;
}

// The column of a target in a slice, or -1: of another, ignored, or none.
__device__ __forceinline__ int ColumnOf(int target, int begin, int existing) {
  const bool here = target >= begin && target - begin < existing;
  return here ? target - begin : -1;
}

// A block a row. Of `a`, valid_vocab counts the slice's columns that exist.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    StatisticsKernel(CrossEntropyArguments a, int begin, float* statistics) {
  __shared__ SoftmaxSum shared[kWarps];
  const int64_t n = blockIdx.x;
  const T* row = static_cast<const T*>(a.logits) + n * a.vocab_size;
  const SoftmaxSum state = MergeBlock<T>(
      AccumulateRow<T, kWidth>(row, a.vocab_size / kWidth, a.valid_vocab),
      shared);
  if (threadIdx.x != 0) return;
  const int column = ColumnOf(a.targets[n], begin, a.valid_vocab);
  statistics[3 * n] = state.max;
  statistics[3 * n + 1] = state.sum;
  statistics[3 * n + 2] = column < 0 ? 0.0f : ToFloat(row[column]);
}

// A thread a row.
__global__ void LossesKernel(SliceStatistics statistics, const int32_t* targets,
                             float* losses) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= statistics.num_rows) return;
  const int target = targets[n];
  const RowTotal total = MergeSlices(statistics, n);
  const bool valid = target >= 0 && target < statistics.valid_vocab;
  const float loss = total.max - total.target_logit + logf(total.sum);
  losses[n] = target == kIgnoredTarget ? 0.0f : valid ? loss : NAN;
}

// A block a row, likewise.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    GradientKernel(CrossEntropyArguments a, SliceStatistics statistics) {
  const int64_t n = blockIdx.x;
  const T* row = static_cast<const T*>(a.logits) + n * a.vocab_size;
  T* d_row = static_cast<T*>(a.d_logits) + n * a.vocab_size;
  const int num_packs = a.vocab_size / kWidth;
  const int target = a.targets[n];
  if (target == kIgnoredTarget) {
    WriteZeros<T, kWidth>(num_packs, d_row);
    return;
  }
  const bool valid = target >= 0 && target < statistics.valid_vocab;
  const int column = ColumnOf(target, statistics.begin, a.valid_vocab);
  const RowTotal total = MergeSlices(statistics, n);
  const float slope = 1.0f + 2.0f * a.z_loss * (total.max + logf(total.sum));
  const float factor = valid ? a.grad_scale * slope / total.sum : NAN;
  for (int p = static_cast<int>(threadIdx.x); p < num_packs; p += kThreads) {
    const int64_t first = static_cast<int64_t>(p) * kWidth;
    StorePack(Gradient(a, LoadPack<T, kWidth>(row + first), p * kWidth, column,
                       total.max, factor),
              d_row + first);
  }
}

template <typename T, int kWidth, bool kKeep>
void Launch(const CrossEntropyArguments& arguments, int64_t num_rows,
            Stream& stream) {
  const auto kernel = &CrossEntropyKernel<T, kWidth, kKeep>;
  int bytes = 0;
  if (kKeep) {
    bytes = arguments.vocab_size * static_cast<int>(sizeof(T));
    CUBIT_CUDA_CHECK(cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  }
  kernel<<<static_cast<unsigned>(num_rows), kThreads, bytes,
           CudaStream(stream)>>>(arguments);
  CUBIT_CUDA_CHECK_LAUNCH();
}

// Bytes of shared memory that a block can have besides its own.
int64_t MostSharedBytes() {
  static const int bytes = [] {
    int device = 0;
    int value = 0;
    CUBIT_CUDA_CHECK(cudaGetDevice(&device));
    CUBIT_CUDA_CHECK(cudaDeviceGetAttribute(
        &value, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    return value - static_cast<int>(sizeof(SoftmaxSum)) * kWarps;
  }();
  return bytes;
}

}  // namespace

void CrossEntropy(ConstTensor logits, ConstTensor targets, int64_t valid_vocab,
                  float z_loss, float grad_scale, Tensor losses,
                  Tensor d_logits, Stream& stream) {
  const int64_t num_rows = logits.dim(0);
  const int64_t vocab_size = logits.dim(1);
  CUBIT_CHECK_SHAPE(targets, {num_rows});
  CUBIT_CHECK_SHAPE(losses, {num_rows});
  CUBIT_CHECK(valid_vocab >= 1 && valid_vocab <= vocab_size) << valid_vocab;
  CUBIT_CHECK_LT(vocab_size, int64_t{1} << 30);
  if (!d_logits.empty()) {
    CUBIT_CHECK_SHAPE(d_logits, {num_rows, vocab_size});
    CUBIT_CHECK(d_logits.dtype() == logits.dtype()) << Name(d_logits.dtype());
  }
  if (num_rows == 0) return;
  const CrossEntropyArguments arguments = {logits.raw(),
                                           targets.data<int32_t>(),
                                           static_cast<int>(vocab_size),
                                           static_cast<int>(valid_vocab),
                                           z_loss,
                                           grad_scale,
                                           losses.data<float>(),
                                           d_logits.raw()};
  cuda::Dispatch(logits.dtype(), [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWidth = cuda::kVectorWidth<T>;
    const bool wide = vocab_size % kWidth == 0 &&
                      cuda::IsAligned16(logits.raw()) &&
                      cuda::IsAligned16(d_logits.raw());
    const bool keep = vocab_size * SizeOf(logits.dtype()) <= MostSharedBytes();
    if (wide && keep) {
      Launch<T, kWidth, true>(arguments, num_rows, stream);
    } else if (wide) {
      Launch<T, kWidth, false>(arguments, num_rows, stream);
    } else {
      Launch<T, 1, false>(arguments, num_rows, stream);
    }
  });
}

void CrossEntropyStatistics(ConstTensor logits, ConstTensor targets,
                            VocabularySlice slice, Tensor statistics,
                            Stream& stream) {
  const int64_t num_rows = logits.dim(0);
  const int64_t columns = logits.dim(1);
  CUBIT_CHECK_SHAPE(targets, {num_rows});
  CUBIT_CHECK_SHAPE(statistics, {num_rows, 3});
  CUBIT_CHECK_LT(slice.begin + columns, int64_t{1} << 30);
  if (num_rows == 0) return;
  CrossEntropyArguments arguments = {};
  arguments.logits = logits.raw();
  arguments.targets = targets.data<int32_t>();
  arguments.vocab_size = static_cast<int>(columns);
  arguments.valid_vocab = static_cast<int>(slice.Existing(columns));
  cuda::Dispatch(logits.dtype(), [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWidth = cuda::kVectorWidth<T>;
    const bool wide = columns % kWidth == 0 && cuda::IsAligned16(logits.raw());
    const auto kernel =
        wide ? &StatisticsKernel<T, kWidth> : &StatisticsKernel<T, 1>;
    kernel<<<static_cast<unsigned>(num_rows), kThreads, 0,
             CudaStream(stream)>>>(arguments, static_cast<int>(slice.begin),
                                   statistics.data<float>());
    CUBIT_CUDA_CHECK_LAUNCH();
  });
}

void CrossEntropyLosses(ConstTensor statistics, ConstTensor targets,
                        int64_t valid_vocab, Tensor losses, Stream& stream) {
  const int64_t num_slices = statistics.dim(0);
  const int64_t num_rows = statistics.dim(1);
  CUBIT_CHECK_SHAPE(statistics, {num_slices, num_rows, 3});
  CUBIT_CHECK_SHAPE(targets, {num_rows});
  CUBIT_CHECK_SHAPE(losses, {num_rows});
  if (num_rows == 0) return;
  LossesKernel<<<cuda::CeilDivide(num_rows, kThreads), kThreads, 0,
                 CudaStream(stream)>>>(
      {statistics.data<float>(), static_cast<int>(num_slices), num_rows,
       /*begin=*/0, static_cast<int>(valid_vocab)},
      targets.data<int32_t>(), losses.data<float>());
  CUBIT_CUDA_CHECK_LAUNCH();
}

void CrossEntropyGradient(ConstTensor logits, ConstTensor targets,
                          VocabularySlice slice, ConstTensor statistics,
                          float z_loss, float grad_scale, Tensor d_logits,
                          Stream& stream) {
  const int64_t num_slices = statistics.dim(0);
  const int64_t num_rows = logits.dim(0);
  const int64_t columns = logits.dim(1);
  CUBIT_CHECK_SHAPE(targets, {num_rows});
  CUBIT_CHECK_SHAPE(statistics, {num_slices, num_rows, 3});
  CUBIT_CHECK_SHAPE(d_logits, {num_rows, columns});
  CUBIT_CHECK(d_logits.dtype() == logits.dtype()) << Name(d_logits.dtype());
  CUBIT_CHECK_LT(slice.begin + columns, int64_t{1} << 30);
  if (num_rows == 0) return;
  const CrossEntropyArguments arguments = {
      logits.raw(),
      targets.data<int32_t>(),
      static_cast<int>(columns),
      static_cast<int>(slice.Existing(columns)),
      z_loss,
      grad_scale,
      /*losses=*/nullptr,
      d_logits.raw()};
  const SliceStatistics rows = {
      statistics.data<float>(), static_cast<int>(num_slices), num_rows,
      static_cast<int>(slice.begin), static_cast<int>(slice.size)};
  cuda::Dispatch(logits.dtype(), [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWidth = cuda::kVectorWidth<T>;
    const bool wide = columns % kWidth == 0 &&
                      cuda::IsAligned16(logits.raw()) &&
                      cuda::IsAligned16(d_logits.raw());
    const auto kernel =
        wide ? &GradientKernel<T, kWidth> : &GradientKernel<T, 1>;
    kernel<<<static_cast<unsigned>(num_rows), kThreads, 0,
             CudaStream(stream)>>>(arguments, rows);
    CUBIT_CUDA_CHECK_LAUNCH();
  });
}

}  // namespace cubit
