// SPDX-License-Identifier: Apache-2.0

#include <cstdint>

#include "ops/cuda/memory_pass.cuh"
#include "ops/sum_parts.h"

namespace cubit {
namespace {

using cuda::FromFloat;
using cuda::LoadPack;
using cuda::Pack;
using cuda::StorePack;
using cuda::ToFloat;

constexpr int kThreads = 256;

template <typename T>
struct Terms {
  const T* parts;
  const T* bias;      // or null
  const T* residual;  // or null
  int num_parts;
  int64_t count;  // elements of a part
  int64_t width;  // of a row
};

template <typename T, int kWidth>
__device__ __forceinline__ void AddPack(const T* source, float* sums) {
  const Pack<T, kWidth> pack = LoadPack<T, kWidth>(source);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) sums[i] += ToFloat(pack.values[i]);
}

// kWidth elements of a row a thread.
template <typename T, int kWidth>
__global__ void SumPartsKernel(Terms<T> terms, T* y) {
  const int64_t first =
      (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWidth;
  if (first >= terms.count) return;
  float sums[kWidth] = {};
  for (int p = 0; p < terms.num_parts; ++p) {
    AddPack<T, kWidth>(terms.parts + p * terms.count + first, sums);
  }
  if (terms.bias != nullptr) {
    AddPack<T, kWidth>(terms.bias + first % terms.width, sums);
  }
  if (terms.residual != nullptr) {
    AddPack<T, kWidth>(terms.residual + first, sums);
  }
  Pack<T, kWidth> result;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) result.values[i] = FromFloat<T>(sums[i]);
  StorePack(result, y + first);
}

void CheckDType(const ConstTensor& tensor, DType dtype) {
  if (tensor.empty()) return;
  CUBIT_CHECK(tensor.dtype() == dtype)
      << Name(tensor.dtype()) << " beside " << Name(dtype);
}

}  // namespace

void SumParts(ConstTensor parts, ConstTensor bias, ConstTensor residual,
              Tensor y, Stream& stream) {
  const int64_t num_rows = y.dim(0);
  const int64_t width = y.dim(1);
  CUBIT_CHECK_GE(parts.dim(0), 1);
  CUBIT_CHECK_SHAPE(parts, {parts.dim(0), num_rows, width});
  if (!bias.empty()) CUBIT_CHECK_SHAPE(bias, {width});
  if (!residual.empty()) CUBIT_CHECK_SHAPE(residual, {num_rows, width});
  for (const ConstTensor& tensor : {parts, bias, residual}) {
    CheckDType(tensor, y.dtype());
  }
  if (num_rows * width == 0) return;
  cuda::Dispatch(y.dtype(), [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWidth = cuda::kVectorWidth<T>;
    Terms<T> terms;
    terms.parts = cuda::Elements<T>(parts);
    terms.bias = cuda::Elements<T>(bias);
    terms.residual = cuda::Elements<T>(residual);
    terms.num_parts = static_cast<int>(parts.dim(0));
    terms.count = num_rows * width;
    terms.width = width;
    // A null pointer is aligned. Rows of whole packs keep every part aligned.
    const bool wide = width % kWidth == 0 && cuda::IsAligned16(parts.raw()) &&
                      cuda::IsAligned16(bias.raw()) &&
                      cuda::IsAligned16(residual.raw()) &&
                      cuda::IsAligned16(y.raw());
    const auto kernel =
        wide ? &SumPartsKernel<T, kWidth> : &SumPartsKernel<T, 1>;
    const int64_t packs = terms.count / (wide ? kWidth : 1);
    kernel<<<cuda::CeilDivide(packs, kThreads), kThreads, 0,
             CudaStream(stream)>>>(terms, cuda::Elements<T>(y));
    CUBIT_CUDA_CHECK_LAUNCH();
  });
}

}  // namespace cubit
