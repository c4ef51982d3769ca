// SPDX-License-Identifier: Apache-2.0
//
// Rows of a tensor are columns of cuBLASLt's matrices: y = x W^T is, for it,
// y^T [out, N] = W^T^T [out, in] x^T [in, N].

#include <cstdint>

#include "ops/activations.h"
#include "ops/cuda/column_sums.cuh"
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

// Does a product with GELU in its epilogue exist? cuBLASLt wants tensor cores
// for it, and rows that begin at 16 bytes.
bool CanFuseGelu(const ConstTensor& pre) {
  return pre.dtype() == DType::kBFloat16 && pre.dim(1) % 8 == 0 &&
         cuda::IsAligned16(pre.raw());
}

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

}  // namespace

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
  if (!CanFuseGelu(pre) || !cuda::IsAligned16(y.raw())) {
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
                             ConstTensor pre, Tensor d_pre, Stream& stream) {
  CUBIT_CHECK_EQ(pre.shape(), d_pre.shape());
  CHECK_DTYPE(pre, d_pre);
  if (!CanFuseGelu(pre) || !cuda::IsAligned16(d_pre.raw())) {
    LinearBackwardInput(d_y, weight, /*accumulate=*/false, d_pre, stream);
    GeluBackward(d_pre, pre, d_pre, stream);
    return;
  }
  LtProduct product = Backward(d_y, weight, d_pre);
  product.epilogue = Epilogue::kGeluGradient;
  product.aux = const_cast<void*>(pre.raw());  // read alone
  if (d_pre.num_elements() == 0) return;
  cuda::LtMatmul(product, stream);
}

void LinearBackwardWeight(ConstTensor d_y, ConstTensor x, Tensor d_weight,
                          Tensor d_bias, Stream& stream) {
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
  product.c = product.d;
  if (num_rows == 0) return;
  cuda::LtMatmul(product, stream);
  if (d_bias.empty()) return;
  CUBIT_CHECK_SHAPE(d_bias, {out});
  cuda::Dispatch(d_y.dtype(), [&](auto zero) {
    using T = decltype(zero);
    cuda::AddColumnSums(cuda::Elements<T>(d_y), num_rows, out,
                        d_bias.data<float>(), stream);
  });
}

}  // namespace cubit
