// SPDX-License-Identifier: Apache-2.0
//
// Rows of a tensor are columns of cuBLASLt's matrices: y = x W^T is, for it,
// y^T [out, N] = W^T^T [out, in] x^T [in, N].

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <mutex>
#include <tuple>

#include "ops/activations.h"
#include "ops/cuda/activation_math.cuh"
#include "ops/cuda/column_sums.cuh"
#include "ops/cuda/gelu_gradient.h"
#include "ops/cuda/lt_matmul.h"
#include "ops/cuda/memory_pass.cuh"
#include "ops/matmul.h"

namespace cubit {
namespace {

using cuda::Epilogue;
using cuda::LtProduct;

#define CHECK_DTYPE(tensor, other)                                     \
  CUBIT_CHECK((tensor).dtype() == (other).dtype())                     \
      << #tensor << " is " << Name((tensor).dtype()) << ", " << #other \
      << " is " << Name((other).dtype())

// x W^T; CHECKs all but what the epilogue needs.
LtProduct Forward(const ConstTensor& x, const ConstTensor& weight,
                  const ConstTensor& bias, const Tensor& y) {
  const int64_t num_rows = x.dim(0);
  const int64_t in = x.dim(1);
  const int64_t out = weight.dim(0);
  CUBIT_CHECK_SHAPE(weight, {out, in});
  CUBIT_CHECK_SHAPE(y, {num_rows, out});
  CHECK_DTYPE(weight, x);
  CHECK_DTYPE(y, x);
  LtProduct product;
  product.transpose_a = true;
  product.m = out;
  product.n = num_rows;
  product.k = in;
  product.input = x.dtype();
  product.output = y.dtype();
  product.a = weight.raw();
  product.b = x.raw();
  product.d = y.raw();
  if (!bias.empty()) {
    CUBIT_CHECK_SHAPE(bias, {out});
    CHECK_DTYPE(bias, x);
    product.epilogue = Epilogue::kBias;
    product.bias = bias.raw();
  }
  return product;
}

// d_y W.
LtProduct Backward(const ConstTensor& d_y, const ConstTensor& weight,
                   const Tensor& d_x) {
  const int64_t num_rows = d_y.dim(0);
  const int64_t out = d_y.dim(1);
  const int64_t in = weight.dim(1);
  CUBIT_CHECK_SHAPE(weight, {out, in});
  CUBIT_CHECK_SHAPE(d_x, {num_rows, in});
  CHECK_DTYPE(weight, d_y);
  CHECK_DTYPE(d_x, d_y);
  LtProduct product;
  product.m = in;
  product.n = num_rows;
  product.k = out;
  product.input = d_y.dtype();
  product.output = d_x.dtype();
  product.a = weight.raw();
  product.b = d_y.raw();
  product.d = d_x.raw();
  return product;
}

// Rows d that become d GELU'(pre), in place, and are summed as they are stored.
template <typename T, int kElements>
struct GeluGradientRows {
  static constexpr int kWidth = kElements;
  static constexpr int kInFlight = 2;
  struct Loaded {
    cuda::RawPack<T, kWidth> d;
    cuda::RawPack<T, kWidth> pre;
  };

  T* d;
  const T* pre;

  __device__ __forceinline__ void Load(int64_t offset, Loaded* loaded) const {
    loaded->d.Load(d + offset);
    loaded->pre.Load(pre + offset);
  }
  __device__ __forceinline__ void Add(const Loaded& loaded, int64_t offset,
                                      float (&sums)[kWidth]) const {
    cuda::Pack<T, kWidth> result;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      result.values[i] = cuda::FromFloat<T>(
          loaded.d.Get(i) * cuda::GeluDerivative<T>(loaded.pre.Get(i)));
      sums[i] += cuda::ToFloat(result.values[i]);
    }
    StorePack(result, d + offset);
  }
};

// d *= GELU'(pre); sum += column sums of d. Reads both and writes d once.
template <typename T>
void GeluBackwardWithSums(const ConstTensor& pre, const Tensor& d, float* sum,
                          Stream& stream) {
  constexpr int kWide = cuda::kVectorWidth<T>;
  const int64_t num_rows = d.dim(0);
  const int64_t width = d.dim(1);
  T* to = cuda::Elements<T>(d);
  const T* from = cuda::Elements<T>(pre);
  if (width % kWide == 0 && cuda::IsAligned16(to) && cuda::IsAligned16(from)) {
    cuda::AddSumsOfRows(GeluGradientRows<T, kWide>{to, from}, num_rows, width,
                        width, sum, stream);
  } else {
    cuda::AddSumsOfRows(GeluGradientRows<T, 1>{to, from}, num_rows, width,
                        width, sum, stream);
  }
}

// Times both ways with sums, whether or not the call wants them: one way for a
// shape. Turns alternate, so that what else the device does meets both.
cuda::GeluGradientWay FasterGeluGradientWay(const ConstTensor& d_y,
                                            const ConstTensor& weight,
                                            const ConstTensor& pre,
                                            const Tensor& d_pre,
                                            Stream& stream) {
  using cuda::GeluGradientWay;
  constexpr int kRuns = 5;
  constexpr GeluGradientWay kWays[] = {GeluGradientWay::kEpilogue,
                                       GeluGradientWay::kOwnPass};
  // The sums are stored when d_pre was read for the last time; the first rows
  // of d_pre take them, and the next run writes d_pre again.
  const Tensor sums(d_pre.raw(), DType::kFloat32, {d_pre.dim(1)});
  const auto run = [&](GeluGradientWay way) {
    cuda::LinearGeluBackwardInputBy(way, d_y, weight, pre, d_pre, sums, stream);
  };
  for (const GeluGradientWay way : kWays) run(way);  // chooses algorithms
  Event begin;
  Event end;
  double shortest[] = {std::numeric_limits<double>::infinity(),
                       std::numeric_limits<double>::infinity()};
  for (int i = 0; i < kRuns; ++i) {
    for (int way = 0; way < 2; ++way) {
      begin.Record(stream);
      run(kWays[way]);
      end.Record(stream);
      end.Synchronize();
      shortest[way] =
          std::min(shortest[way], Event::SecondsBetween(begin, end));
    }
  }
  return cuda::GeluGradientWayByTimes(shortest[0], shortest[1]);
}

}  // namespace

namespace cuda {

bool HasGeluEpilogue(const ConstTensor& pre, const ConstTensor& other) {
  return pre.dtype() == DType::kBFloat16 && pre.dim(1) % 8 == 0 &&
         IsAligned16(pre.raw()) && IsAligned16(other.raw());
}

GeluGradientWay ChooseGeluGradientWay(ConstTensor d_y, ConstTensor weight,
                                      ConstTensor pre, Tensor d_pre,
                                      Stream& stream) {
  // Rows, in, out; all of them bf16.
  using Key = std::tuple<int64_t, int64_t, int64_t>;
  static auto* const mutex = new std::mutex;
  static auto* const ways = new std::map<Key, GeluGradientWay>;
  if (!HasGeluEpilogue(pre, d_pre)) return GeluGradientWay::kOwnPass;
  // One row has no room for the sums of a trial.
  if (d_pre.dim(0) < 2 || !IsWorthTiming(Backward(d_y, weight, d_pre))) {
    return GeluGradientWay::kEpilogue;
  }
  const std::lock_guard<std::mutex> lock(*mutex);
  const Key key(d_y.dim(0), pre.dim(1), d_y.dim(1));
  const auto found = ways->find(key);
  if (found != ways->end()) return found->second;
  if (IsCaptured(stream)) return GeluGradientWay::kEpilogue;
  const GeluGradientWay way =
      FasterGeluGradientWay(d_y, weight, pre, d_pre, stream);
  ways->emplace(key, way);
  return way;
}

void LinearGeluBackwardInputBy(GeluGradientWay way, ConstTensor d_y,
                               ConstTensor weight, ConstTensor pre,
                               Tensor d_pre, Tensor d_bias, Stream& stream) {
  CUBIT_CHECK_EQ(pre.shape(), d_pre.shape());
  CHECK_DTYPE(pre, d_pre);
  if (!d_bias.empty()) CUBIT_CHECK_SHAPE(d_bias, {d_pre.dim(1)});
  LtProduct product = Backward(d_y, weight, d_pre);
  if (way == GeluGradientWay::kEpilogue) {
    CUBIT_CHECK(HasGeluEpilogue(pre, d_pre)) << Name(pre.dtype());
    product.epilogue = Epilogue::kGeluGradient;
    product.aux = const_cast<void*>(pre.raw());  // read alone
  }
  if (d_pre.num_elements() == 0) return;
  LtMatmul(product, stream);
  if (way == GeluGradientWay::kEpilogue) {
    LinearBackwardBias(d_pre, d_bias, stream);
  } else if (d_bias.empty()) {
    GeluBackward(d_pre, pre, d_pre, stream);
  } else {
    Dispatch(d_pre.dtype(), [&](auto zero) {
      GeluBackwardWithSums<decltype(zero)>(pre, d_pre, d_bias.data<float>(),
                                           stream);
    });
  }
}

}  // namespace cuda

void LinearForward(ConstTensor x, ConstTensor weight, ConstTensor bias,
                   ConstTensor residual, Tensor y, Stream& stream) {
  LtProduct product = Forward(x, weight, bias, y);
  if (!residual.empty()) {
    CUBIT_CHECK_EQ(residual.shape(), y.shape());
    CHECK_DTYPE(residual, y);
    product.c = residual.raw();
  }
  if (y.num_elements() == 0) return;
  cuda::LtMatmul(product, stream);
}

void LinearGeluForward(ConstTensor x, ConstTensor weight, ConstTensor bias,
                       Tensor pre, Tensor y, Stream& stream) {
  CUBIT_CHECK_EQ(pre.shape(), y.shape());
  CHECK_DTYPE(pre, y);
  if (!cuda::HasGeluEpilogue(pre, y)) {
    LinearForward(x, weight, bias, ConstTensor(), pre, stream);
    GeluForward(pre, y, stream);
    return;
  }
  LtProduct product = Forward(x, weight, bias, y);
  product.epilogue = bias.empty() ? Epilogue::kGelu : Epilogue::kGeluBias;
  product.aux = pre.raw();
  if (y.num_elements() == 0) return;
  cuda::LtMatmul(product, stream);
}

void LinearBackwardInput(ConstTensor d_y, ConstTensor weight, bool accumulate,
                         Tensor d_x, Stream& stream) {
  LtProduct product = Backward(d_y, weight, d_x);
  if (accumulate) product.c = d_x.raw();
  if (d_x.num_elements() == 0) return;
  cuda::LtMatmul(product, stream);
}

void LinearGeluBackwardInput(ConstTensor d_y, ConstTensor weight,
                             ConstTensor pre, Tensor d_pre, Tensor d_bias,
                             Stream& stream) {
  cuda::LinearGeluBackwardInputBy(
      cuda::ChooseGeluGradientWay(d_y, weight, pre, d_pre, stream), d_y, weight,
      pre, d_pre, d_bias, stream);
}

void LinearBackwardWeight(ConstTensor d_y, ConstTensor x, bool accumulate,
                          Tensor d_weight, Tensor d_bias, Stream& stream) {
  const int64_t num_rows = d_y.dim(0);
  const int64_t out = d_y.dim(1);
  const int64_t in = x.dim(1);
  CUBIT_CHECK_SHAPE(x, {num_rows, in});
  CUBIT_CHECK_SHAPE(d_weight, {out, in});
  CHECK_DTYPE(x, d_y);
  LtProduct product;
  product.transpose_b = true;
  product.m = in;
  product.n = out;
  product.k = num_rows;
  product.input = x.dtype();
  product.output = DType::kFloat32;
  product.a = x.raw();
  product.b = d_y.raw();
  product.d = d_weight.data<float>();
  if (accumulate) product.c = product.d;
  if (num_rows == 0) {
    if (!accumulate) SetZero(d_weight.raw(), d_weight.size_bytes(), stream);
    return;
  }
  cuda::LtMatmul(product, stream);
  LinearBackwardBias(d_y, d_bias, stream);
}

void LinearBackwardBias(ConstTensor d_y, Tensor d_bias, Stream& stream) {
  if (d_bias.empty()) return;
  CUBIT_CHECK_SHAPE(d_bias, {d_y.dim(1)});
  if (d_y.dim(0) == 0) return;
  cuda::Dispatch(d_y.dtype(), [&](auto zero) {
    using T = decltype(zero);
    cuda::AddColumnSums(cuda::Elements<T>(d_y), d_y.dim(0), d_y.dim(1),
                        d_y.dim(1), d_bias.data<float>(), stream);
  });
}

int ChooseProductsUnderLoad() { return cuda::ChooseUnderLoad(); }

}  // namespace cubit
