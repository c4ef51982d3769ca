// SPDX-License-Identifier: Apache-2.0

#include <cstdint>

#include "ops/adamw.h"
#include "ops/adamw_factors.h"
#include "ops/cuda/memory_pass.cuh"

namespace cubit {
namespace {

using cuda::LoadPack;
using cuda::Pack;
using cuda::StorePack;

constexpr int kThreads = 256;
constexpr int kWidth = 4;
static_assert(kAdamWGroup % kWidth == 0, "a pack is in one group");

struct AdamWArrays {
  const uint8_t* decay;     // null: all are decayed
  const float* grad_scale;  // null: 1
  const float* grad;
  float* m;
  float* v;
  float* weight;
  __nv_bfloat16* compute;  // null: none
};

__global__ void SumInOrderKernel(const double* terms, int64_t count,
                                 double* sum) {
  double total = 0;
#pragma unroll 8
  for (int64_t i = 0; i < count; ++i) total += terms[i];
  *sum = total;
}

__global__ void ClipScaleKernel(const double* sum_of_squares, double max_norm,
                                float* scale) {
  const double norm = sqrt(*sum_of_squares);
  if (!isfinite(norm)) {
    *scale = __int_as_float(0x7fc00000);  // NaN
  } else if (max_norm > 0 && norm > max_norm) {
    *scale = static_cast<float>(max_norm / norm);
  } else {
    *scale = 1.0f;
  }
}

__device__ __forceinline__ void UpdateOne(const AdamWFactors& f,
                                          float weight_decay, float g, float* m,
                                          float* v, float* weight) {
  *m = f.beta1 * *m + f.one_minus_beta1 * g;
  *v = f.beta2 * *v + f.one_minus_beta2 * g * g;
  const float m_hat = f.m_correction * *m;
  const float v_hat = f.v_correction * *v;
  *weight -= f.learning_rate *
             (m_hat / (sqrtf(v_hat) + f.epsilon) + weight_decay * *weight);
}

template <int kPackWidth>
__global__ void AdamWKernel(AdamWFactors f, AdamWArrays arrays,
                            int64_t num_packs) {
  const int64_t pack =
      static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (pack >= num_packs) return;
  const int64_t i = pack * kPackWidth;
  const Pack<float, kPackWidth> grad =
      LoadPack<float, kPackWidth>(arrays.grad + i);
  Pack<float, kPackWidth> m = LoadPack<float, kPackWidth>(arrays.m + i);
  Pack<float, kPackWidth> v = LoadPack<float, kPackWidth>(arrays.v + i);
  Pack<float, kPackWidth> w = LoadPack<float, kPackWidth>(arrays.weight + i);
  const float scale = arrays.grad_scale == nullptr ? 1.0f : *arrays.grad_scale;
  if (isnan(scale)) return;
  const bool decayed =
      arrays.decay == nullptr || arrays.decay[i / kAdamWGroup] != 0;
  const float weight_decay = decayed ? f.weight_decay : 0.0f;
#pragma unroll
  for (int k = 0; k < kPackWidth; ++k) {
    UpdateOne(f, weight_decay, scale * grad.values[k], &m.values[k],
              &v.values[k], &w.values[k]);
  }
  StorePack(m, arrays.m + i);
  StorePack(v, arrays.v + i);
  StorePack(w, arrays.weight + i);
  if (arrays.compute == nullptr) return;
  Pack<__nv_bfloat16, kPackWidth> rounded;
#pragma unroll
  for (int k = 0; k < kPackWidth; ++k) {
    rounded.values[k] = __float2bfloat16(w.values[k]);
  }
  StorePack(rounded, arrays.compute + i);
}

// Elements [begin, begin + count), `begin` where a group begins.
AdamWArrays Advance(AdamWArrays arrays, int64_t begin) {
  if (arrays.decay != nullptr) arrays.decay += begin / kAdamWGroup;
  arrays.grad += begin;
  arrays.m += begin;
  arrays.v += begin;
  arrays.weight += begin;
  if (arrays.compute != nullptr) arrays.compute += begin;
  return arrays;
}

template <int kPackWidth>
void Launch(const AdamWFactors& factors, const AdamWArrays& arrays,
            int64_t count, Stream& stream) {
  const int64_t packs = count / kPackWidth;
  if (packs == 0) return;
  AdamWKernel<kPackWidth>
      <<<cuda::CeilDivide(packs, kThreads), kThreads, 0, CudaStream(stream)>>>(
          factors, arrays, packs);
  CUBIT_CUDA_CHECK_LAUNCH();
}

}  // namespace

void SumInOrder(ConstTensor terms, Tensor sum, Stream& stream) {
  CUBIT_CHECK_EQ(sum.num_elements(), 1);
  SumInOrderKernel<<<1, 1, 0, CudaStream(stream)>>>(
      terms.data<double>(), terms.num_elements(), sum.data<double>());
  CUBIT_CUDA_CHECK_LAUNCH();
}

void ClipScale(ConstTensor sum_of_squares, double max_norm, Tensor scale,
               Stream& stream) {
  CUBIT_CHECK_EQ(sum_of_squares.num_elements(), 1);
  CUBIT_CHECK_EQ(scale.num_elements(), 1);
  ClipScaleKernel<<<1, 1, 0, CudaStream(stream)>>>(
      sum_of_squares.data<double>(), max_norm, scale.data<float>());
  CUBIT_CUDA_CHECK_LAUNCH();
}

void AdamWUpdate(const AdamWStep& step, ConstTensor decay,
                 ConstTensor grad_scale, ConstTensor grad, Tensor m, Tensor v,
                 Tensor weight, Tensor compute, Stream& stream) {
  const AdamWFactors factors =
      CheckAdamW(step, decay, grad_scale, grad, m, v, weight, compute);
  CUBIT_CHECK(compute.empty() || compute.dtype() == DType::kBFloat16)
      << Name(compute.dtype());
  AdamWArrays arrays;
  arrays.decay = decay.empty() ? nullptr : decay.data<uint8_t>();
  arrays.grad_scale = grad_scale.empty() ? nullptr : grad_scale.data<float>();
  arrays.grad = grad.data<float>();
  arrays.m = m.data<float>();
  arrays.v = v.data<float>();
  arrays.weight = weight.data<float>();
  arrays.compute = cuda::Elements<__nv_bfloat16>(compute);
  const bool aligned =
      cuda::IsAligned16(arrays.grad) && cuda::IsAligned16(arrays.m) &&
      cuda::IsAligned16(arrays.v) && cuda::IsAligned16(arrays.weight) &&
      cuda::IsAligned16(arrays.compute);
  const int64_t count = grad.num_elements();
  const int64_t wide = aligned ? count / kAdamWGroup * kAdamWGroup : 0;
  Launch<kWidth>(factors, arrays, wide, stream);
  Launch<1>(factors, Advance(arrays, wide), count - wide, stream);
}

}  // namespace cubit
