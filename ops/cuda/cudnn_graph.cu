// SPDX-License-Identifier: Apache-2.0

#include <algorithm>

#include "ops/cuda/cudnn_graph.cuh"
#include "runtime/check.h"

namespace cubit {
namespace cuda {
namespace {

constexpr int64_t kNone = 0;  // no tensor

void Note(cudnnStatus_t result, cudnnStatus_t* status) {
  if (*status == CUDNN_STATUS_SUCCESS) *status = result;
}

}  // namespace

CudnnDescriptor::CudnnDescriptor(cudnnBackendDescriptorType_t type,
                                 cudnnStatus_t* status) {
  if (*status != CUDNN_STATUS_SUCCESS) return;
  Note(cudnnBackendCreateDescriptor(type, &descriptor_), status);
}

CudnnDescriptor::~CudnnDescriptor() {
  if (descriptor_ != nullptr) cudnnBackendDestroyDescriptor(descriptor_);
}

void CudnnDescriptor::Set(cudnnBackendAttributeName_t name,
                          cudnnBackendAttributeType_t type, int64_t count,
                          const void* values, cudnnStatus_t* status) {
  if (*status != CUDNN_STATUS_SUCCESS) return;
  Note(cudnnBackendSetAttribute(descriptor_, name, type, count, values),
       status);
}

void CudnnDescriptor::Set(cudnnBackendAttributeName_t name,
                          const CudnnDescriptor& value, cudnnStatus_t* status) {
  const cudnnBackendDescriptor_t raw = value.get();
  Set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &raw, status);
}

void CudnnDescriptor::Finalize(cudnnStatus_t* status) {
  if (*status != CUDNN_STATUS_SUCCESS) return;
  Note(cudnnBackendFinalize(descriptor_), status);
}

int64_t CudnnGraph::Input(const CudnnShape& shape, cudnnDataType_t type) {
  return AddTensor(shape, type, false, false);
}

int64_t CudnnGraph::Number() {
  return AddTensor({{1, 1, 1, 1}, {1, 1, 1, 1}}, CUDNN_DATA_FLOAT, false, true);
}

int64_t CudnnGraph::Virtual(const CudnnShape& shape, cudnnDataType_t type) {
  return AddTensor(shape, type, true, false);
}

int64_t CudnnGraph::AddTensor(const CudnnShape& shape, cudnnDataType_t type,
                              bool is_virtual, bool by_value) {
  const int64_t id = static_cast<int64_t>(tensors_.size()) + 1;
  const int64_t alignment = 16;
  CudnnDescriptor tensor(CUDNN_BACKEND_TENSOR_DESCRIPTOR, &status_);
  tensor.Set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type,
             &status_);
  tensor.Set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4,
             shape.dims.data(), &status_);
  tensor.Set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4,
             shape.strides.data(), &status_);
  tensor.Set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id, &status_);
  tensor.Set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment,
             &status_);
  if (is_virtual) {
    tensor.Set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual,
               &status_);
  }
  if (by_value) {
    tensor.Set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value,
               &status_);
  }
  tensor.Finalize(&status_);
  tensors_.push_back(std::move(tensor));
  return id;
}

void CudnnGraph::AddPointwise(cudnnPointwiseMode_t mode,
                              cudnnDataType_t compute, int64_t axis, int64_t x,
                              int64_t b, int64_t choose, int64_t y) {
  CudnnDescriptor description(CUDNN_BACKEND_POINTWISE_DESCRIPTOR, &status_);
  description.Set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1,
                  &mode, &status_);
  description.Set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1,
                  &compute, &status_);
  if (mode == CUDNN_POINTWISE_GEN_INDEX) {
    description.Set(CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis,
                    &status_);
  }
  description.Finalize(&status_);
  CudnnDescriptor operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR,
                            &status_);
  operation.Set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, description,
                &status_);
  operation.Set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, tensor(x), &status_);
  if (b != kNone) {
    operation.Set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, tensor(b), &status_);
  }
  if (choose != kNone) {
    operation.Set(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, tensor(choose),
                  &status_);
  }
  operation.Set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, tensor(y), &status_);
  operation.Finalize(&status_);
  modes_.push_back(std::move(description));
  operations_.push_back(std::move(operation));
}

void CudnnGraph::Pointwise(cudnnPointwiseMode_t mode, cudnnDataType_t compute,
                           int64_t x, int64_t b, int64_t y) {
  AddPointwise(mode, compute, 0, x, b, kNone, y);
}

void CudnnGraph::Pointwise(cudnnPointwiseMode_t mode, int64_t x, int64_t y) {
  AddPointwise(mode, CUDNN_DATA_FLOAT, 0, x, kNone, kNone, y);
}

void CudnnGraph::Index(int64_t axis, int64_t x, int64_t y) {
  AddPointwise(CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_FLOAT, axis, x, kNone,
               kNone, y);
}

void CudnnGraph::Select(int64_t choose, int64_t x, int64_t other, int64_t y) {
  AddPointwise(CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, 0, x, other,
               choose, y);
}

void CudnnGraph::Reduce(cudnnReduceTensorOp_t op, int64_t x, int64_t y) {
  const cudnnDataType_t compute = CUDNN_DATA_FLOAT;
  CudnnDescriptor description(CUDNN_BACKEND_REDUCTION_DESCRIPTOR, &status_);
  description.Set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1,
                  &compute, &status_);
  description.Set(CUDNN_ATTR_REDUCTION_OPERATOR,
                  CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &op, &status_);
  description.Finalize(&status_);
  CudnnDescriptor operation(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR,
                            &status_);
  operation.Set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, description, &status_);
  operation.Set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, tensor(x), &status_);
  operation.Set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, tensor(y), &status_);
  operation.Finalize(&status_);
  modes_.push_back(std::move(description));
  operations_.push_back(std::move(operation));
}

void CudnnGraph::Multiply(int64_t a, int64_t b, int64_t c) {
  const cudnnDataType_t compute = CUDNN_DATA_FLOAT;
  CudnnDescriptor description(CUDNN_BACKEND_MATMUL_DESCRIPTOR, &status_);
  description.Set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1,
                  &compute, &status_);
  description.Finalize(&status_);
  CudnnDescriptor operation(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR,
                            &status_);
  operation.Set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, tensor(a), &status_);
  operation.Set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, tensor(b), &status_);
  operation.Set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, tensor(c), &status_);
  operation.Set(CUDNN_ATTR_OPERATION_MATMUL_DESC, description, &status_);
  operation.Finalize(&status_);
  modes_.push_back(std::move(description));
  operations_.push_back(std::move(operation));
}

void CudnnGraph::Reshape(int64_t x, int64_t y) {
  CudnnDescriptor operation(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR,
                            &status_);
  operation.Set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, tensor(x), &status_);
  operation.Set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, tensor(y), &status_);
  operation.Finalize(&status_);
  operations_.push_back(std::move(operation));
}

CudnnPlan CudnnGraph::Compile(cudnnHandle_t handle,
                              const CudnnDescriptor& config) {
  cudnnStatus_t status = CUDNN_STATUS_SUCCESS;
  CudnnPlan result;
  result.plan =
      CudnnDescriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, &status);
  result.plan.Set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1,
                  &handle, &status);
  result.plan.Set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config, &status);
  result.plan.Finalize(&status);
  int64_t count = 0;
  if (status == CUDNN_STATUS_SUCCESS) {
    Note(cudnnBackendGetAttribute(
             result.plan.get(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
             CUDNN_TYPE_INT64, 1, &count, &result.workspace_bytes),
         &status);
  }
  if (status != CUDNN_STATUS_SUCCESS) return {};

  // Is the engine marked as one whose results vary?
  CudnnDescriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &status);
  cudnnBackendDescriptor_t raw = engine.get();
  Note(cudnnBackendGetAttribute(config.get(), CUDNN_ATTR_ENGINECFG_ENGINE,
                                CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count, &raw),
       &status);
  std::array<cudnnBackendNumericalNote_t, CUDNN_NUMERICAL_NOTE_TYPE_COUNT>
      notes;
  Note(cudnnBackendGetAttribute(
           raw, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
           CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &count, notes.data()),
       &status);
  result.deterministic =
      status == CUDNN_STATUS_SUCCESS &&
      std::find(notes.begin(), notes.begin() + count,
                CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) == notes.begin() + count;
  return result;
}

CudnnPlan CudnnGraph::Build(cudnnHandle_t handle) {
  std::vector<cudnnBackendDescriptor_t> raw;
  for (const CudnnDescriptor& operation : operations_) {
    raw.push_back(operation.get());
  }
  CudnnDescriptor graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, &status_);
  graph.Set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle,
            &status_);
  graph.Set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
            static_cast<int64_t>(raw.size()), raw.data(), &status_);
  graph.Finalize(&status_);
  const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
  CudnnDescriptor heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, &status_);
  heuristics.Set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph, &status_);
  heuristics.Set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode,
                 &status_);
  heuristics.Finalize(&status_);
  if (status_ != CUDNN_STATUS_SUCCESS) return {};

  constexpr int64_t kMostConfigs = 8;
  std::vector<CudnnDescriptor> configs;
  raw.clear();
  for (int64_t i = 0; i < kMostConfigs; ++i) {
    configs.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &status_);
    raw.push_back(configs.back().get());
  }
  int64_t count = 0;
  Note(cudnnBackendGetAttribute(heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                CUDNN_TYPE_BACKEND_DESCRIPTOR, kMostConfigs,
                                &count, raw.data()),
       &status_);
  if (status_ != CUDNN_STATUS_SUCCESS) return {};
  for (int64_t i = 0; i < std::min(count, kMostConfigs); ++i) {
    CudnnPlan plan = Compile(handle, configs[static_cast<size_t>(i)]);
    if (plan.plan.get() != nullptr) return plan;
  }
  status_ = CUDNN_STATUS_NOT_SUPPORTED;
  return {};
}

void RunCudnnPlan(cudnnHandle_t handle, const CudnnPlan& plan,
                  const std::vector<CudnnBinding>& bindings, void* workspace) {
  std::vector<int64_t> ids;
  std::vector<void*> pointers;
  for (const CudnnBinding& binding : bindings) {
    ids.push_back(binding.id);
    pointers.push_back(binding.data);
  }
  const auto count = static_cast<int64_t>(ids.size());
  cudnnStatus_t status = CUDNN_STATUS_SUCCESS;
  CudnnDescriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &status);
  pack.Set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count,
           ids.data(), &status);
  pack.Set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count,
           pointers.data(), &status);
  pack.Set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1,
           &workspace, &status);
  pack.Finalize(&status);
  if (status == CUDNN_STATUS_SUCCESS) {
    status = cudnnBackendExecute(handle, plan.plan.get(), pack.get());
  }
  CUBIT_CHECK(status == CUDNN_STATUS_SUCCESS)
      << "cuDNN: " << cudnnGetErrorString(status);
}

}  // namespace cuda
}  // namespace cubit
