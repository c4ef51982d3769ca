// SPDX-License-Identifier: Apache-2.0

#include "ops/blas.h"

#include <algorithm>
#include <limits>

#include "cblas.h"

#include "runtime/check.h"

namespace cubit {
namespace {

// OpenBLAS would otherwise run each call on threads of its own, and cut it by
// their number.
bool UseOneThread() {
  openblas_set_num_threads(1);
  return true;
}

blasint Narrow(int64_t value) {
  CUBIT_CHECK(value >= 0 && value <= std::numeric_limits<blasint>::max())
      << value;
  return static_cast<blasint>(value);
}

}  // namespace

// The parameters are those of the BLAS.
// NOLINTNEXTLINE(readability-function-size)
void Sgemm(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k,
           float alpha, const float* a, int64_t lda, const float* b,
           int64_t ldb, float beta, float* c, int64_t ldc) {
  static const bool one_thread = UseOneThread();
  CUBIT_CHECK(one_thread);
  CUBIT_CHECK_GE(lda, std::max<int64_t>(1, trans_a ? m : k));
  CUBIT_CHECK_GE(ldb, std::max<int64_t>(1, trans_b ? k : n));
  CUBIT_CHECK_GE(ldc, std::max<int64_t>(1, n));
  cblas_sgemm(CblasRowMajor, trans_a ? CblasTrans : CblasNoTrans,
              trans_b ? CblasTrans : CblasNoTrans, Narrow(m), Narrow(n),
              Narrow(k), alpha, a, Narrow(lda), b, Narrow(ldb), beta, c,
              Narrow(ldc));
}

}  // namespace cubit
