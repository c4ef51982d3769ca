// SPDX-License-Identifier: Apache-2.0
//
// A kind of product as cuBLASLt describes it, and the algorithms that cuBLASLt
// has for it. What is tried and chosen: lt_trial.h, lt_matmul.cu.

#ifndef CUBIT_OPS_CUDA_LT_PROBLEM_H_
#define CUBIT_OPS_CUDA_LT_PROBLEM_H_

#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include <cublasLt.h>

#include "ops/cuda/lt_matmul.h"
#include "runtime/device.h"

namespace cubit {
namespace cuda {

// Ends the process (status 2: the run can be resumed) with cuBLASLt's words.
[[noreturn]] void CublasFailure(const char* expression, cublasStatus_t status,
                                const char* file, int line);

#define CUBIT_CUBLAS_CHECK(expression)                                         \
  do {                                                                         \
    const cublasStatus_t cubit_cublas_status = (expression);                   \
    if (cubit_cublas_status != CUBLAS_STATUS_SUCCESS) {                        \
      ::cubit::cuda::CublasFailure(#expression, cubit_cublas_status, __FILE__, \
                                   __LINE__);                                  \
    }                                                                          \
  } while (false)

// How cuBLASLt computes a product: a kernel and its parameters. Plain data.
using LtAlgorithm = cublasLtMatmulAlgo_t;

// What cuBLASLt may use beside the operands; NVIDIA's advice for Hopper.
constexpr int64_t kLtWorkspaceBytes = int64_t{32} << 20;

// The largest power of two, at most a vector's 16 bytes, that divides an
// address: no kernel asks for more.
uint32_t LtAlignment(const void* pointer);

// cuBLASLt's descriptors of products of one size, layout and epilogue.
class LtProblem {
 public:
  // CHECK: m, n, k >= 1, types that are served.
  explicit LtProblem(const LtProduct& product);

  // At most `most`, cuBLASLt's first choice first; what it says is a function
  // of the product, the alignment of the operands, the library and the GPU.
  std::vector<LtAlgorithm> Proposals(int most) const;
  // Whether cuBLASLt computes this product so, with kLtWorkspaceBytes.
  bool IsServedBy(const LtAlgorithm& algorithm) const;
  // Starts `product`, which is of this kind, with the result in `d`.
  cublasStatus_t Launch(const LtProduct& product, const LtAlgorithm& algorithm,
                        void* d, Stream& stream) const;

 private:
  struct Destroyer {
    void operator()(cublasLtMatmulDesc_t operation) const;
    void operator()(cublasLtMatrixLayout_t layout) const;
  };
  template <typename Handle>
  using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroyer>;

  static Owned<cublasLtMatrixLayout_t> Layout(DType dtype, int64_t rows,
                                              int64_t columns);
  template <typename T>
  void Set(cublasLtMatmulDescAttributes_t attribute, const T& value) const;
  void SetPointers(const LtProduct& product) const;

  Owned<cublasLtMatmulDesc_t> operation_;
  Owned<cublasLtMatrixLayout_t> a_, b_, d_;
  uint32_t alignments_[4];  // of a, b, c, d
};

// What cuBLASLt proposes for products whose m, n or k is half of this one's or
// twice as large, as far as it serves this one: its kernels for sizes near it
// are not always among its proposals (docs/decisions/0019).
std::vector<LtAlgorithm> ProposalsOfNeighbours(const LtProduct& product,
                                               const LtProblem& problem);

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_LT_PROBLEM_H_
