// SPDX-License-Identifier: Apache-2.0
//
// One product of matrices through cuBLASLt. The algorithm for a kind of product
// is chosen once in a process, by timing those that give the same bits as the
// one that cuBLASLt proposes first: which of them wins changes no result, so
// two runs agree bit for bit (docs/decisions/0019).

#ifndef CUBIT_OPS_CUDA_LT_MATMUL_H_
#define CUBIT_OPS_CUDA_LT_MATMUL_H_

#include <cstdint>

#include "runtime/device.h"
#include "runtime/dtype.h"

namespace cubit {
namespace cuda {

// What is done to a result before it is stored.
enum class Epilogue {
  kNone,
  kBias,          // + bias [m]
  kGelu,          // aux = the sum, d = GELU(aux)
  kGeluBias,      // the same after + bias [m]
  kGeluGradient,  // times GELU'(aux)
};

// d = epilogue(op(a) op(b) + c), matrices by columns without gaps: op(a) [m,
// k], op(b) [k, n], c and d [m, n]; op(z) = z^T if its flag is set. A matrix by
// rows is its transpose by columns.
struct LtProduct {
  bool transpose_a = false;
  bool transpose_b = false;
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  DType input = DType::kFloat32;   // of a, b, bias, aux
  DType output = DType::kFloat32;  // of c and d
  const void* a = nullptr;
  const void* b = nullptr;
  const void* c = nullptr;  // null: none; may be d
  void* d = nullptr;
  Epilogue epilogue = Epilogue::kNone;
  const void* bias = nullptr;
  void* aux = nullptr;  // [m, n]
};

// Sums in fp32. CHECK: m, n, k >= 1.
void LtMatmul(const LtProduct& product, Stream& stream);

// Every kind of product so far chooses its algorithm again when it is computed
// next, by times under load (ChooseProductsUnderLoad in matmul.h). Returns how
// many will.
int ChooseUnderLoad();

// Whether a choice between ways to compute it is worth their timing.
bool IsWorthTiming(const LtProduct& product);
// Whether a CUDA graph is captured from `stream`: then nothing can be timed.
bool IsCaptured(const Stream& stream);

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_LT_MATMUL_H_
