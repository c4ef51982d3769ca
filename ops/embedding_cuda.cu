// SPDX-License-Identifier: Apache-2.0

#include <cstdint>
#include <cub/device/device_radix_sort.cuh>
#include <limits>

#include "ops/cuda/memory_pass.cuh"
#include "ops/embedding.h"

namespace cubit {
namespace {

using cuda::FromFloat;
using cuda::LoadPack;
using cuda::Pack;
using cuda::StorePack;
using cuda::ToFloat;

constexpr int kThreads = 256;
constexpr int kWarpsInBlock = kThreads / cuda::kWarpSize;
constexpr unsigned kAllLanes = 0xffffffffu;

// Tokens [begin, begin + count) of `vocab_size` have rows here.
struct HeldTokens {
  int begin;
  int count;
  int vocab_size;

  __device__ bool Contains(int id) const {
    return id >= begin && id < vocab_size && id - begin < count;
  }
};

HeldTokens Held(const VocabularySlice& slice, int64_t count) {
  return {static_cast<int>(slice.begin), static_cast<int>(count),
          static_cast<int>(slice.size)};
}

template <typename T, int kWidth>
__global__ void GatherKernel(const int32_t* ids, const T* weight,
                             uint32_t num_packs, uint32_t packs_in_row,
                             HeldTokens held, T* y) {
  const uint32_t pack = blockIdx.x * kThreads + threadIdx.x;
  if (pack >= num_packs) return;
  const uint32_t row = pack / packs_in_row;
  const int id = ids[row];
  Pack<T, kWidth> values;
  if (held.Contains(id)) {
    values = LoadPack<T, kWidth>(
        weight + (static_cast<int64_t>(id - held.begin) * packs_in_row + pack -
                  static_cast<int64_t>(row) * packs_in_row) *
                     kWidth);
  } else {
    const float fill = id >= 0 && id < held.vocab_size ? 0.0f : NAN;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values.values[i] = FromFloat<T>(fill);
  }
  StorePack(values, y + static_cast<int64_t>(pack) * kWidth);
}

// Keys of the sort: the token's row, or held.count for one that has none here.
__global__ void MakeKeysKernel(const int32_t* ids, int count, HeldTokens held,
                               uint32_t* keys, uint32_t* positions) {
  const int n = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (n >= count) return;
  const int id = ids[n];
  keys[n] =
      static_cast<uint32_t>(held.Contains(id) ? id - held.begin : held.count);
  positions[n] = static_cast<uint32_t>(n);
}

// The sorted tokens, and where each stood.
struct SortedTokens {
  const uint32_t* keys;
  const uint32_t* positions;
  int count;
  int vocab_size;
  int dim;
};

// fp32 columns of the table, 16 bytes at a time where there are as many.
template <int kWidth>
constexpr int kTableWidth = kWidth < 4 ? kWidth : 4;

// Adds the rows of the run of equal tokens that begins at `first`, in its
// order, to kWidth columns a lane; kUnroll rows are on their way at a time. The
// whole warp calls it.
template <typename T, int kWidth, int kUnroll>
__device__ void AddRun(const SortedTokens& tokens, int first, int column,
                       const T* d_y, float* d_weight) {
  constexpr int kStep = kTableWidth<kWidth>;
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const uint32_t key = tokens.keys[first];
  const bool active = column < tokens.dim;
  // Lanes over the end read column 0 and write nothing.
  const int safe_column = active ? column : 0;
  float* target =
      d_weight + static_cast<int64_t>(key) * tokens.dim + safe_column;
  Pack<float, kStep> sums[kWidth / kStep];
#pragma unroll
  for (int i = 0; i < kWidth / kStep; ++i) {
    sums[i] = LoadPack<float, kStep>(target + i * kStep);
  }
  for (int begin = first; begin < tokens.count; begin += cuda::kWarpSize) {
    const int index = begin + lane;
    const bool same = index < tokens.count && tokens.keys[index] == key;
    const uint32_t position = same ? tokens.positions[index] : 0;
    const int run = __popc(__ballot_sync(kAllLanes, same));
    for (int j = 0; j < run; j += kUnroll) {
      Pack<T, kWidth> rows[kUnroll];
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) {
        const int64_t n =
            __shfl_sync(kAllLanes, position, (j + k) % cuda::kWarpSize);
        if (j + k < run) {
          rows[k] = LoadPack<T, kWidth>(d_y + n * tokens.dim + safe_column);
        }
      }
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) {
        if (j + k >= run) break;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          sums[i / kStep].values[i % kStep] += ToFloat(rows[k].values[i]);
        }
      }
    }
    if (run < cuda::kWarpSize) break;
  }
  if (!active) return;
#pragma unroll
  for (int i = 0; i < kWidth / kStep; ++i) {
    StorePack(sums[i], target + i * kStep);
  }
}

// Whether a run of at least one token of the vocabulary begins at i.
__device__ __forceinline__ bool BeginsRun(const SortedTokens& tokens, int i) {
  if (i >= tokens.count) return false;
  const uint32_t key = tokens.keys[i];
  if (key >= static_cast<uint32_t>(tokens.vocab_size)) return false;
  return i == 0 || tokens.keys[i - 1] != key;
}

// Runs of at least `length`, which would keep one warp long: few, so each is
// cut into narrow columns. One warp looks at 32 places.
constexpr int kLongRun = 64;

__device__ __forceinline__ bool IsLong(const SortedTokens& tokens, int i) {
  const int last = i + kLongRun - 1;
  return last < tokens.count && tokens.keys[last] == tokens.keys[i];
}

// blockIdx.y: a slice of 32 kWidth columns. A warp a place; runs that are not
// long, or all runs if !skip_long.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    AddRunsKernel(SortedTokens tokens, bool skip_long, const T* d_y,
                  float* d_weight) {
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int place = static_cast<int>(blockIdx.x) * kWarpsInBlock + warp;
  if (!BeginsRun(tokens, place)) return;
  if (skip_long && IsLong(tokens, place)) return;
  const int column =
      (static_cast<int>(blockIdx.y) * cuda::kWarpSize + lane) * kWidth;
  AddRun<T, kWidth, 4>(tokens, place, column, d_y, d_weight);
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    AddLongRunsKernel(SortedTokens tokens, const T* d_y, float* d_weight) {
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int first =
      (static_cast<int>(blockIdx.x) * kWarpsInBlock + warp) * cuda::kWarpSize;
  const int place = first + lane;
  const bool begins = BeginsRun(tokens, place) && IsLong(tokens, place);
  const int column =
      (static_cast<int>(blockIdx.y) * cuda::kWarpSize + lane) * kWidth;
  for (unsigned found = __ballot_sync(kAllLanes, begins); found != 0;
       found &= found - 1) {
    AddRun<T, kWidth, 32>(tokens, first + __ffs(static_cast<int>(found)) - 1,
                          column, d_y, d_weight);
  }
}

// Stable: equal tokens stay in the order of n.
SortedTokens Sort(const int32_t* ids, int count, HeldTokens held, int dim,
                  Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  int bits = 1;
  while ((int64_t{1} << bits) <= held.count) ++bits;
  const int64_t array_bytes =
      (int64_t{count} * int64_t{sizeof(uint32_t)} + 255) / 256 * 256;
  uint32_t* none = nullptr;
  size_t sort_bytes = 0;
  CUBIT_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(
      nullptr, sort_bytes, none, none, none, none, count, 0, bits, native));
  char* space = static_cast<char*>(CudaWorkspace(
      4 * array_bytes + static_cast<int64_t>(sort_bytes), stream));
  const auto array = [&](int i) {
    return reinterpret_cast<uint32_t*>(space + i * array_bytes);
  };
  MakeKeysKernel<<<cuda::CeilDivide(count, kThreads), kThreads, 0, native>>>(
      ids, count, held, array(0), array(1));
  CUBIT_CUDA_CHECK_LAUNCH();
  CUBIT_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(
      space + 4 * array_bytes, sort_bytes, array(0), array(2), array(1),
      array(3), count, 0, bits, native));
  return {array(2), array(3), count, held.count, dim};
}

template <typename T, int kWidth>
void AddRuns(const SortedTokens& tokens, bool skip_long, const T* d_y,
             float* d_weight, Stream& stream) {
  const dim3 grid(
      static_cast<unsigned>(cuda::CeilDivide(tokens.count, kWarpsInBlock)),
      static_cast<unsigned>(
          cuda::CeilDivide(tokens.dim, cuda::kWarpSize * kWidth)));
  AddRunsKernel<T, kWidth><<<grid, kThreads, 0, CudaStream(stream)>>>(
      tokens, skip_long, d_y, d_weight);
  CUBIT_CUDA_CHECK_LAUNCH();
}

template <typename T>
void AddLongRuns(const SortedTokens& tokens, const T* d_y, float* d_weight,
                 Stream& stream) {
  constexpr int kWidth = 2;
  const dim3 grid(
      static_cast<unsigned>(cuda::CeilDivide(tokens.count, kThreads)),
      static_cast<unsigned>(
          cuda::CeilDivide(tokens.dim, cuda::kWarpSize * kWidth)));
  AddLongRunsKernel<T, kWidth>
      <<<grid, kThreads, 0, CudaStream(stream)>>>(tokens, d_y, d_weight);
  CUBIT_CUDA_CHECK_LAUNCH();
}

}  // namespace

void EmbeddingForward(ConstTensor ids, ConstTensor weight,
                      VocabularySlice slice, Tensor y, Stream& stream) {
  const int64_t count = ids.num_elements();
  const int64_t dim = weight.dim(1);
  CUBIT_CHECK_SHAPE(y, {count, dim});
  CUBIT_CHECK(y.dtype() == weight.dtype()) << Name(y.dtype());
  CUBIT_CHECK_LT(slice.size, int64_t{1} << 30);
  if (count == 0) return;
  cuda::Dispatch(weight.dtype(), [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWidth = cuda::kVectorWidth<T>;
    const bool wide = dim % kWidth == 0 && cuda::IsAligned16(weight.raw()) &&
                      cuda::IsAligned16(y.raw());
    const int64_t packs_in_row = wide ? dim / kWidth : dim;
    const int64_t packs = count * packs_in_row;
    CUBIT_CHECK_LT(packs, int64_t{std::numeric_limits<int32_t>::max()});
    const auto kernel = wide ? &GatherKernel<T, kWidth> : &GatherKernel<T, 1>;
    kernel<<<cuda::CeilDivide(packs, kThreads), kThreads, 0,
             CudaStream(stream)>>>(
        ids.data<int32_t>(), cuda::Elements<T>(weight),
        static_cast<uint32_t>(packs), static_cast<uint32_t>(packs_in_row),
        Held(slice, weight.dim(0)), cuda::Elements<T>(y));
    CUBIT_CUDA_CHECK_LAUNCH();
  });
}

void EmbeddingBackward(ConstTensor ids, ConstTensor d_y, VocabularySlice slice,
                       Tensor d_weight, Stream& stream) {
  const int64_t count = ids.num_elements();
  const int64_t dim = d_weight.dim(1);
  CUBIT_CHECK_SHAPE(d_y, {count, dim});
  CUBIT_CHECK_LT(count, int64_t{1} << 30);
  CUBIT_CHECK_LT(slice.size, int64_t{1} << 30);
  if (count == 0) return;
  const SortedTokens tokens =
      Sort(ids.data<int32_t>(), static_cast<int>(count),
           Held(slice, d_weight.dim(0)), static_cast<int>(dim), stream);
  float* target = d_weight.data<float>();
  cuda::Dispatch(d_y.dtype(), [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWidth = cuda::kVectorWidth<T>;
    const T* source = cuda::Elements<T>(d_y);
    if (dim % kWidth == 0 && cuda::IsAligned16(source) &&
        cuda::IsAligned16(target)) {
      AddRuns<T, kWidth>(tokens, /*skip_long=*/true, source, target, stream);
      AddLongRuns(tokens, source, target, stream);
    } else {
      AddRuns<T, 1>(tokens, /*skip_long=*/false, source, target, stream);
    }
  });
}

}  // namespace cubit
