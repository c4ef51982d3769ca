// SPDX-License-Identifier: Apache-2.0

#include <cstdint>

#include "ops/cuda/norm.cuh"
#include "ops/rms_norm.h"

namespace cubit {

void RmsNormForward(ConstTensor x, ConstTensor weight, float eps, Tensor y,
                    Tensor rstd, Stream& stream) {
  const int64_t num_rows = x.dim(0);
  const int64_t dim = x.dim(1);
  CUBIT_CHECK_SHAPE(weight, {dim});
  CUBIT_CHECK_SHAPE(y, {num_rows, dim});
  CUBIT_CHECK_SHAPE(rstd, {num_rows});
  CUBIT_CHECK(y.dtype() == x.dtype()) << Name(y.dtype());
  const cuda::NormForwardArguments arguments = {x.raw(),
                                                weight.data<float>(),
                                                nullptr,
                                                num_rows,
                                                static_cast<int>(dim),
                                                eps,
                                                y.raw(),
                                                nullptr,
                                                rstd.data<float>()};
  cuda::Dispatch(x.dtype(), [&](auto zero) {
    cuda::LaunchNormForward<decltype(zero), false>(arguments, stream);
  });
}

void RmsNormBackward(ConstTensor d_y, ConstTensor x, ConstTensor weight,
                     ConstTensor rstd, Tensor d_x, Tensor d_weight,
                     Tensor d_x_sums, Stream& stream) {
  const int64_t num_rows = x.dim(0);
  const int64_t dim = x.dim(1);
  CUBIT_CHECK_SHAPE(d_y, {num_rows, dim});
  CUBIT_CHECK_SHAPE(weight, {dim});
  CUBIT_CHECK_SHAPE(rstd, {num_rows});
  CUBIT_CHECK_SHAPE(d_x, {num_rows, dim});
  CUBIT_CHECK_SHAPE(d_weight, {dim});
  if (!d_x_sums.empty()) CUBIT_CHECK_SHAPE(d_x_sums, {dim});
  CUBIT_CHECK(d_y.dtype() == x.dtype() && d_x.dtype() == x.dtype())
      << Name(d_y.dtype()) << ", " << Name(d_x.dtype());
  const cuda::NormBackwardArguments arguments = {
      d_y.raw(),          x.raw(),  weight.data<float>(),  nullptr,
      rstd.data<float>(), num_rows, static_cast<int>(dim), d_x.raw()};
  const cuda::SumTargets<cuda::kNormSums<false>> targets = {
      {d_weight.data<float>(),
       d_x_sums.empty() ? nullptr : d_x_sums.data<float>()}};
  cuda::Dispatch(x.dtype(), [&](auto zero) {
    cuda::LaunchNormBackward<decltype(zero), false>(arguments, targets, stream);
  });
}

}  // namespace cubit
