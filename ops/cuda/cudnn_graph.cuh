// SPDX-License-Identifier: Apache-2.0
//
// Graphs of cuDNN's backend interface (cudnn_backend.h), as far as attention
// needs them: tensors and operations are added one by one, then compiled into a
// plan that runs on a stream. What cuDNN refuses is remembered in status();
// nothing here ends the process but a plan that fails to run.

#ifndef CUBIT_OPS_CUDA_CUDNN_GRAPH_CUH_
#define CUBIT_OPS_CUDA_CUDNN_GRAPH_CUH_

#include <cudnn.h>

#include <array>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace cubit {
namespace cuda {

// Owns one backend descriptor. Move-only.
class CudnnDescriptor {
 public:
  CudnnDescriptor() = default;
  // Not created if *status is an error already; sets it if this fails.
  CudnnDescriptor(cudnnBackendDescriptorType_t type, cudnnStatus_t* status);
  ~CudnnDescriptor();
  CudnnDescriptor(CudnnDescriptor&& other) noexcept
      : descriptor_(std::exchange(other.descriptor_, nullptr)) {}
  CudnnDescriptor& operator=(CudnnDescriptor&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }

  void Set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
           int64_t count, const void* values, cudnnStatus_t* status);
  void Set(cudnnBackendAttributeName_t name, const CudnnDescriptor& value,
           cudnnStatus_t* status);
  void Finalize(cudnnStatus_t* status);

  cudnnBackendDescriptor_t get() const { return descriptor_; }

 private:
  cudnnBackendDescriptor_t descriptor_ = nullptr;
};

// [B, H, rows, columns].
struct CudnnShape {
  std::array<int64_t, 4> dims;
  std::array<int64_t, 4> strides;

  CudnnShape Transposed() const {
    CudnnShape shape = *this;
    std::swap(shape.dims[2], shape.dims[3]);
    std::swap(shape.strides[2], shape.strides[3]);
    return shape;
  }
  static CudnnShape Contiguous(int64_t b, int64_t h, int64_t rows,
                               int64_t columns) {
    return {{b, h, rows, columns},
            {h * rows * columns, rows * columns, columns, 1}};
  }
};

struct CudnnPlan {
  CudnnDescriptor plan;
  int64_t workspace_bytes = 0;
  bool deterministic = false;
};

// Tensors are named by the numbers that the methods return (unique ids).
class CudnnGraph {
 public:
  // Memory that the caller gives when the plan runs.
  int64_t Input(const CudnnShape& shape, cudnnDataType_t type);
  // One fp32 number on the host, given when the plan runs.
  int64_t Number();

  // Results live inside the graph (an operation's result that is to be memory
  // is named by `target`, an Input).
  int64_t Virtual(const CudnnShape& shape, cudnnDataType_t type);

  // y = mode(x, b).
  void Pointwise(cudnnPointwiseMode_t mode, cudnnDataType_t compute, int64_t x,
                 int64_t b, int64_t y);
  // y = mode(x).
  void Pointwise(cudnnPointwiseMode_t mode, int64_t x, int64_t y);
  // y = index of each element of x along `axis`.
  void Index(int64_t axis, int64_t x, int64_t y);
  // y = choose ? x : other.
  void Select(int64_t choose, int64_t x, int64_t other, int64_t y);
  void Reduce(cudnnReduceTensorOp_t op, int64_t x, int64_t y);
  void Multiply(int64_t a, int64_t b, int64_t c);
  // The same elements in the shape of y.
  void Reshape(int64_t x, int64_t y);

  // The first plan that cuDNN's heuristics offer and support; without one,
  // status() tells why.
  CudnnPlan Build(cudnnHandle_t handle);
  cudnnStatus_t status() const { return status_; }

 private:
  int64_t AddTensor(const CudnnShape& shape, cudnnDataType_t type,
                    bool is_virtual, bool by_value);
  void AddPointwise(cudnnPointwiseMode_t mode, cudnnDataType_t compute,
                    int64_t axis, int64_t x, int64_t b, int64_t choose,
                    int64_t y);
  const CudnnDescriptor& tensor(int64_t id) const {
    return tensors_[static_cast<size_t>(id - 1)];
  }
  CudnnPlan Compile(cudnnHandle_t handle, const CudnnDescriptor& config);

  cudnnStatus_t status_ = CUDNN_STATUS_SUCCESS;
  std::vector<CudnnDescriptor> tensors_;
  std::vector<CudnnDescriptor> modes_;  // descriptors that operations refer to
  std::vector<CudnnDescriptor> operations_;
};

// One tensor's memory, or the address of a number.
struct CudnnBinding {
  int64_t id;
  void* data;
};

// Runs `plan` on the handle's stream. CHECKs that it could be started.
void RunCudnnPlan(cudnnHandle_t handle, const CudnnPlan& plan,
                  const std::vector<CudnnBinding>& bindings, void* workspace);

}  // namespace cuda
}  // namespace cubit

#endif  // CUBIT_OPS_CUDA_CUDNN_GRAPH_CUH_
