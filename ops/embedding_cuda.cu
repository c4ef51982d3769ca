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
using cuda::RawPack;
using cuda::StorePack;

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

// Where runs of equal tokens begin among the sorted ones, in any order.
struct RunList {
  uint32_t* places;
  int* count;
};

// Runs of at least kLongRun tokens would keep one warp long; they are few, so
// each is cut into narrow columns.
constexpr int kLongRun = 64;
struct Runs {
  RunList of_few;
  RunList of_many;
};

// Keys of the sort: the token's row, or held.count for one that has none here.
// `runs` is empty then.
__global__ void MakeKeysKernel(const int32_t* ids, int count, HeldTokens held,
                               uint32_t* keys, uint32_t* positions, Runs runs) {
  const int n = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (n == 0) *runs.of_few.count = *runs.of_many.count = 0;
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

// Whether a run of at least one token of the vocabulary begins at i.
__device__ __forceinline__ bool BeginsRun(const SortedTokens& tokens, int i) {
  if (i >= tokens.count) return false;
  const uint32_t key = tokens.keys[i];
  if (key >= static_cast<uint32_t>(tokens.vocab_size)) return false;
  return i == 0 || tokens.keys[i - 1] != key;
}

__device__ __forceinline__ bool IsLong(const SortedTokens& tokens, int i) {
  const int last = i + kLongRun - 1;
  return last < tokens.count && tokens.keys[last] == tokens.keys[i];
}

// Appends the places of the lanes with `wanted`. The whole warp calls it.
__device__ __forceinline__ void Append(bool wanted, int place, RunList list) {
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const unsigned all = __ballot_sync(kAllLanes, wanted);
  int begin = 0;
  if (lane == 0 && all != 0) begin = atomicAdd(list.count, __popc(all));
  begin = __shfl_sync(kAllLanes, begin, 0);
  if (!wanted) return;
  list.places[begin + __popc(all & ((1u << lane) - 1))] =
      static_cast<uint32_t>(place);
}

__global__ void __launch_bounds__(kThreads)
    ListRunsKernel(SortedTokens tokens, Runs runs) {
  const int place = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  const bool begins = BeginsRun(tokens, place);
  const bool is_long = begins && IsLong(tokens, place);
  Append(begins && !is_long, place, runs.of_few);
  Append(is_long, place, runs.of_many);
}

// fp32 columns of the table, 16 bytes at a time where there are as many.
template <int kWidth>
constexpr int kTableWidth = kWidth < 4 ? kWidth : 4;

// Place `index` of a run of `key`, or one behind its end.
struct RunPlace {
  __device__ __forceinline__ RunPlace(const SortedTokens& tokens, uint32_t key,
                                      int index)
      : inside(index < tokens.count && tokens.keys[index] == key),
        position(index < tokens.count ? tokens.positions[index] : 0) {}

  bool inside;
  uint32_t position;
};

// Adds the rows of the run of equal tokens that begins at `first`, in its
// order, to kWidth columns a lane; kUnroll rows are on their way at a time. The
// whole warp calls it.
template <typename T, int kWidth, int kUnroll>
__device__ __forceinline__ void AddRun(const SortedTokens& tokens, int first,
                                       int column, const T* d_y,
                                       float* d_weight) {
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
  int index = first + lane;
  RunPlace place(tokens, key, index);
  int run = cuda::kWarpSize;
  while (run == cuda::kWarpSize) {
    run = __popc(__ballot_sync(kAllLanes, place.inside));
    const uint32_t position = place.position;
    // The next places are on their way while these rows are.
    index += cuda::kWarpSize;
    if (run == cuda::kWarpSize) place = RunPlace(tokens, key, index);
    for (int j = 0; j < run; j += kUnroll) {
      RawPack<T, kWidth> rows[kUnroll];
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) {
        const int64_t n =
            __shfl_sync(kAllLanes, position, (j + k) % cuda::kWarpSize);
        if (j + k < run) rows[k].Load(d_y + n * tokens.dim + safe_column);
      }
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) {
        if (j + k >= run) break;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          sums[i / kStep].values[i % kStep] += rows[k].Get(i);
        }
      }
    }
  }
  if (!active) return;
#pragma unroll
  for (int i = 0; i < kWidth / kStep; ++i) {
    StorePack(sums[i], target + i * kStep);
  }
}

// A warp a run of the list and slice of 32 kWidth columns; `block` of those
// that share the list, blocks_in_slice of them for each slice.
template <typename T, int kWidth, int kUnroll>
__device__ __forceinline__ void AddListedRun(const SortedTokens& tokens,
                                             const RunList& list, int block,
                                             int blocks_in_slice, const T* d_y,
                                             float* d_weight) {
  const int warp = static_cast<int>(threadIdx.x) / cuda::kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % cuda::kWarpSize;
  const int run = block % blocks_in_slice * kWarpsInBlock + warp;
  if (run >= *list.count) return;
  const int slice = block / blocks_in_slice;
  AddRun<T, kWidth, kUnroll>(tokens, static_cast<int>(list.places[run]),
                             (slice * cuda::kWarpSize + lane) * kWidth, d_y,
                             d_weight);
}

// Blocks of AddRunsKernel: those of the long runs, which take longest, come
// first.
struct RunGrid {
  int long_blocks;
  int long_in_slice;
  int short_in_slice;
};

template <typename T, int kWidth, int kLongWidth>
__global__ void __launch_bounds__(kThreads)
    AddRunsKernel(SortedTokens tokens, Runs runs, RunGrid grid, const T* d_y,
                  float* d_weight) {
  const int block = static_cast<int>(blockIdx.x);
  if (block < grid.long_blocks) {
    AddListedRun<T, kLongWidth, 32>(tokens, runs.of_many, block,
                                    grid.long_in_slice, d_y, d_weight);
  } else {
    AddListedRun<T, kWidth, 8>(tokens, runs.of_few, block - grid.long_blocks,
                               grid.short_in_slice, d_y, d_weight);
  }
}

struct SortedRuns {
  SortedTokens tokens;
  Runs runs;
};

// Stable: equal tokens stay in the order of n.
SortedRuns Sort(const int32_t* ids, int count, HeldTokens held, int dim,
                Stream& stream) {
  const cudaStream_t native = CudaStream(stream);
  int bits = 1;
  while ((int64_t{1} << bits) <= held.count) ++bits;
  constexpr int64_t kCountBytes = 256;
  const int64_t array_bytes =
      (int64_t{count} * int64_t{sizeof(uint32_t)} + 255) / 256 * 256;
  uint32_t* none = nullptr;
  size_t sort_bytes = 0;
  CUBIT_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(
      nullptr, sort_bytes, none, none, none, none, count, 0, bits, native));
  char* space = static_cast<char*>(CudaWorkspace(
      kCountBytes + 4 * array_bytes + static_cast<int64_t>(sort_bytes),
      stream));
  const auto array = [&](int i) {
    return reinterpret_cast<uint32_t*>(space + kCountBytes + i * array_bytes);
  };
  // What is sorted is not read again: the list of runs takes its place.
  int* counts = reinterpret_cast<int*>(space);
  const Runs runs = {{array(0), counts}, {array(1), counts + 1}};
  const SortedTokens tokens = {array(2), array(3), count, held.count, dim};
  const int blocks = cuda::CeilDivide(count, kThreads);
  MakeKeysKernel<<<blocks, kThreads, 0, native>>>(ids, count, held, array(0),
                                                  array(1), runs);
  CUBIT_CUDA_CHECK_LAUNCH();
  CUBIT_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(
      array(4), sort_bytes, array(0), array(2), array(1), array(3), count, 0,
      bits, native));
  ListRunsKernel<<<blocks, kThreads, 0, native>>>(tokens, runs);
  CUBIT_CUDA_CHECK_LAUNCH();
  return {tokens, runs};
}

// The number of runs is known to the device alone: blocks for as many as there
// may be.
template <typename T, int kWidth, int kLongWidth>
void AddRuns(const SortedRuns& sorted, const T* d_y, float* d_weight,
             Stream& stream) {
  const auto slices = [&](int width) {
    return cuda::CeilDivide(sorted.tokens.dim, cuda::kWarpSize * width);
  };
  const int count = sorted.tokens.count;
  RunGrid grid;
  grid.short_in_slice = cuda::CeilDivide(count, kWarpsInBlock);
  grid.long_in_slice = cuda::CeilDivide(count, kLongRun * kWarpsInBlock);
  grid.long_blocks = grid.long_in_slice * slices(kLongWidth);
  const int blocks = grid.long_blocks + grid.short_in_slice * slices(kWidth);
  AddRunsKernel<T, kWidth, kLongWidth>
      <<<blocks, kThreads, 0, CudaStream(stream)>>>(sorted.tokens, sorted.runs,
                                                    grid, d_y, d_weight);
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
  const SortedRuns sorted =
      Sort(ids.data<int32_t>(), static_cast<int>(count),
           Held(slice, d_weight.dim(0)), static_cast<int>(dim), stream);
  float* target = d_weight.data<float>();
  cuda::Dispatch(d_y.dtype(), [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWidth = cuda::kVectorWidth<T>;
    const T* source = cuda::Elements<T>(d_y);
    if (dim % kWidth == 0 && cuda::IsAligned16(source) &&
        cuda::IsAligned16(target)) {
      constexpr int kWordWidth = 4 / static_cast<int>(sizeof(T));
      AddRuns<T, kWidth, kWordWidth>(sorted, source, target, stream);
    } else {
      AddRuns<T, 1, 1>(sorted, source, target, stream);
    }
  });
}

}  // namespace cubit
