// SPDX-License-Identifier: Apache-2.0
//
// Single-threaded products of the CPU ops, by OpenBLAS. The ops cut their work
// into pieces and run the pieces on the ThreadPool; a product never starts
// threads of its own.

#ifndef CUBIT_OPS_BLAS_H_
#define CUBIT_OPS_BLAS_H_

#include <cstdint>

namespace cubit {

// c = alpha op(a) op(b) + beta c, row-major, op(z) = z^T if its flag is set.
//   op(a) [m, k], op(b) [k, n], c [m, n]; `lda`, `ldb`, `ldc` are the distances
//   in elements between the stored rows. With beta = 0, c is not read: NaN in
//   it does not survive.
// c may not overlap a or b. Runs on the calling thread alone, may be called
// from many at once, and gives the same bits for the same call on one machine.
// CHECK: sizes and strides are those of a matrix and fit in 31 bits.
void Sgemm(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k,
           float alpha, const float* a, int64_t lda, const float* b,
           int64_t ldb, float beta, float* c, int64_t ldc);

}  // namespace cubit

#endif  // CUBIT_OPS_BLAS_H_
