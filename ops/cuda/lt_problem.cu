// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "ops/cuda/lt_problem.h"
#include "runtime/check.h"
#include "runtime/command_line.h"
#include "runtime/cuda_check.h"

namespace cubit {
namespace cuda {
namespace {

cublasLtHandle_t Handle() {
  static const cublasLtHandle_t handle = [] {
    cublasLtHandle_t created = nullptr;
    CUBIT_CUBLAS_CHECK(cublasLtCreate(&created));
    return created;
  }();
  return handle;
}

cudaDataType_t CudaType(DType dtype) {
  CUBIT_CHECK(dtype == DType::kFloat32 || dtype == DType::kBFloat16)
      << Name(dtype);
  return dtype == DType::kFloat32 ? CUDA_R_32F : CUDA_R_16BF;
}

cublasLtEpilogue_t LtEpilogue(Epilogue epilogue) {
  switch (epilogue) {
    case Epilogue::kNone:
      return CUBLASLT_EPILOGUE_DEFAULT;
    case Epilogue::kBias:
      return CUBLASLT_EPILOGUE_BIAS;
    case Epilogue::kGelu:
      return CUBLASLT_EPILOGUE_GELU_AUX;
    case Epilogue::kGeluBias:
      return CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
    case Epilogue::kGeluGradient:
      return CUBLASLT_EPILOGUE_DGELU;
  }
  return CUBLASLT_EPILOGUE_DEFAULT;
}

bool HasAux(Epilogue epilogue) {
  return epilogue == Epilogue::kGelu || epilogue == Epilogue::kGeluBias ||
         epilogue == Epilogue::kGeluGradient;
}

// What an algorithm may be for a product.
class Preference {
 public:
  Preference() {
    CUBIT_CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&preference_));
  }
  ~Preference() {
    CUBIT_CUBLAS_CHECK(cublasLtMatmulPreferenceDestroy(preference_));
  }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;

  template <typename T>
  void Set(cublasLtMatmulPreferenceAttributes_t attribute, const T& value) {
    CUBIT_CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(
        preference_, attribute, &value, sizeof(value)));
  }
  cublasLtMatmulPreference_t get() const { return preference_; }

 private:
  cublasLtMatmulPreference_t preference_ = nullptr;
};

}  // namespace

void CublasFailure(const char* expression, cublasStatus_t status,
                   const char* file, int line) {
  std::fprintf(stderr, "%s:%d: %s failed: %s\n", file, line, expression,
               cublasLtGetStatusString(status));
  std::_Exit(kExitFailed);
}

uint32_t LtAlignment(const void* pointer) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer) | 16;
  return static_cast<uint32_t>(address & (~address + 1));
}

void LtProblem::Destroyer::operator()(cublasLtMatmulDesc_t operation) const {
  CUBIT_CUBLAS_CHECK(cublasLtMatmulDescDestroy(operation));
}
void LtProblem::Destroyer::operator()(cublasLtMatrixLayout_t layout) const {
  CUBIT_CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(layout));
}

LtProblem::Owned<cublasLtMatrixLayout_t> LtProblem::Layout(DType dtype,
                                                           int64_t rows,
                                                           int64_t columns) {
  cublasLtMatrixLayout_t layout = nullptr;
  CUBIT_CUBLAS_CHECK(cublasLtMatrixLayoutCreate(
      &layout, CudaType(dtype), static_cast<uint64_t>(rows),
      static_cast<uint64_t>(columns), rows));
  return Owned<cublasLtMatrixLayout_t>(layout);
}

template <typename T>
void LtProblem::Set(cublasLtMatmulDescAttributes_t attribute,
                    const T& value) const {
  CUBIT_CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(operation_.get(), attribute,
                                                    &value, sizeof(value)));
}

LtProblem::LtProblem(const LtProduct& p) {
  CUBIT_CHECK(p.m >= 1 && p.n >= 1 && p.k >= 1)
      << p.m << ", " << p.n << ", " << p.k;
  cublasLtMatmulDesc_t operation = nullptr;
  CUBIT_CUBLAS_CHECK(
      cublasLtMatmulDescCreate(&operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  operation_.reset(operation);
  Set(CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  Set(CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  Set(CUBLASLT_MATMUL_DESC_EPILOGUE, LtEpilogue(p.epilogue));
  if (HasAux(p.epilogue)) Set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, p.m);
  a_ = p.transpose_a ? Layout(p.input, p.k, p.m) : Layout(p.input, p.m, p.k);
  b_ = p.transpose_b ? Layout(p.input, p.n, p.k) : Layout(p.input, p.k, p.n);
  d_ = Layout(p.output, p.m, p.n);
  SetPointers(p);  // what is proposed may depend on their alignment
  alignments_[0] = LtAlignment(p.a);
  alignments_[1] = LtAlignment(p.b);
  alignments_[2] = LtAlignment(p.c == nullptr ? p.d : p.c);
  alignments_[3] = LtAlignment(p.d);
}

std::vector<LtAlgorithm> LtProblem::Proposals(int most) const {
  Preference preference;
  preference.Set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                 static_cast<uint64_t>(kLtWorkspaceBytes));
  preference.Set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignments_[0]);
  preference.Set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignments_[1]);
  preference.Set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignments_[2]);
  preference.Set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignments_[3]);
  // Partial sums of a split k are added in a fixed order, never by atomics in
  // the result.
  preference.Set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                 static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  std::vector<cublasLtMatmulHeuristicResult_t> results(
      static_cast<size_t>(most));
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      Handle(), operation_.get(), a_.get(), b_.get(), d_.get(), d_.get(),
      preference.get(), most, results.data(), &found);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return {};
  CUBIT_CUBLAS_CHECK(status);
  results.resize(static_cast<size_t>(found));
  std::vector<LtAlgorithm> algorithms;
  for (const auto& result : results) algorithms.push_back(result.algo);
  return algorithms;
}

bool LtProblem::IsServedBy(const LtAlgorithm& algorithm) const {
  cublasLtMatmulHeuristicResult_t result = {};
  return cublasLtMatmulAlgoCheck(Handle(), operation_.get(), a_.get(), b_.get(),
                                 d_.get(), d_.get(), &algorithm,
                                 &result) == CUBLAS_STATUS_SUCCESS &&
         result.workspaceSize <= static_cast<size_t>(kLtWorkspaceBytes);
}

void LtProblem::SetPointers(const LtProduct& p) const {
  if (p.bias != nullptr) Set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
  if (p.aux != nullptr) Set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, p.aux);
}

cublasStatus_t LtProblem::Launch(const LtProduct& p,
                                 const LtAlgorithm& algorithm, void* d,
                                 Stream& stream) const {
  SetPointers(p);
  const float alpha = 1.0f;
  const float beta = p.c == nullptr ? 0.0f : 1.0f;
  void* workspace = CudaWorkspace(kLtWorkspaceBytes, stream);
  return cublasLtMatmul(
      Handle(), operation_.get(), &alpha, p.a, a_.get(), p.b, b_.get(), &beta,
      p.c == nullptr ? d : p.c, d_.get(), d, d_.get(), &algorithm, workspace,
      static_cast<size_t>(kLtWorkspaceBytes), CudaStream(stream));
}

std::vector<LtAlgorithm> ProposalsOfNeighbours(const LtProduct& product,
                                               const LtProblem& problem) {
  constexpr int kOfEach = 8;
  constexpr int64_t kAligned = 8;  // no kernel asks for more of a size
  std::vector<LtAlgorithm> algorithms;
  for (const auto size : {&LtProduct::m, &LtProduct::n, &LtProduct::k}) {
    for (const int64_t length : {product.*size / 2, product.*size * 2}) {
      LtProduct neighbour = product;
      neighbour.*size = std::max<int64_t>(length / kAligned, 1) * kAligned;
      for (const LtAlgorithm& algorithm :
           LtProblem(neighbour).Proposals(kOfEach)) {
        if (problem.IsServedBy(algorithm)) algorithms.push_back(algorithm);
      }
    }
  }
  return algorithms;
}

}  // namespace cuda
}  // namespace cubit
