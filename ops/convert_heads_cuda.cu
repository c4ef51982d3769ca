// SPDX-License-Identifier: Apache-2.0

#include "ops/convert_heads.h"
#include "ops/heads.h"
#include "runtime/check.h"

namespace cubit {

// Copies of heads convert on a GPU, in vectors where rows allow.
void ConvertHeads(ConstHeadTensor x, HeadTensor y, Stream& stream) {
  const bool down = x.dtype == DType::kFloat32 && y.dtype == DType::kBFloat16;
  CUBIT_CHECK(down ||
              (x.dtype == DType::kBFloat16 && y.dtype == DType::kFloat32))
      << Name(x.dtype) << " to " << Name(y.dtype);
  CopyHeads(x, y, stream);
}

}  // namespace cubit
