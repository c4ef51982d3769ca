// SPDX-License-Identifier: Apache-2.0
//
// Views of memory: pointer, element type, shape. A view owns nothing, knows no
// gradient and does not broadcast; memory.h owns the bytes.
//
// The legend of shapes, here and nowhere else:
//   B micro-batch   T sequence (Tl local part)   D hidden        V vocabulary
//   H heads (Hl local)   K head dim   F feed-forward   N = B * T rows
// Every tensor declaration ends in its shape: `// [B, T, D]`. The gradient of
// `x` is `d_x`.

#ifndef CUBIT_RUNTIME_TENSOR_H_
#define CUBIT_RUNTIME_TENSOR_H_

#include <array>
#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <string>

#include "runtime/check.h"
#include "runtime/dtype.h"

namespace cubit {

// Extents of a contiguous, row-major tensor of at most four dims. Rank 0 has
// one element.
class Shape {
 public:
  static constexpr int kMaxRank = 4;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) {
    CUBIT_CHECK_LE(static_cast<int>(dims.size()), kMaxRank);
    for (int64_t dim : dims) Append(dim);
  }

  int rank() const { return rank_; }
  int64_t operator[](int dim) const {
    CUBIT_CHECK(dim >= 0 && dim < rank_) << "dim " << dim << " of " << rank_;
    return dims_[static_cast<size_t>(dim)];
  }
  int64_t num_elements() const {
    int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= dims_[static_cast<size_t>(i)];
    return n;
  }
  void Append(int64_t dim) {
    CUBIT_CHECK_GE(dim, 0);
    CUBIT_CHECK_LT(rank_, kMaxRank);
    dims_[static_cast<size_t>(rank_++)] = dim;
  }

  // "[2, 3, 4]".
  std::string ToString() const;

  friend bool operator==(const Shape& a, const Shape& b) {
    if (a.rank_ != b.rank_) return false;
    for (int i = 0; i < a.rank_; ++i) {
      if (a.dims_[static_cast<size_t>(i)] != b.dims_[static_cast<size_t>(i)]) {
        return false;
      }
    }
    return true;
  }
  friend bool operator!=(const Shape& a, const Shape& b) { return !(a == b); }
  friend std::ostream& operator<<(std::ostream& out, const Shape& shape) {
    return out << shape.ToString();
  }

 private:
  std::array<int64_t, kMaxRank> dims_ = {};
  int rank_ = 0;
};

// A contiguous tensor that is read. An empty (default) view means "absent"
// where a function says that an argument may be.
class ConstTensor {
 public:
  ConstTensor() = default;
  ConstTensor(const void* data, DType dtype, Shape shape)
      : data_(data), dtype_(dtype), shape_(shape) {}

  bool empty() const { return data_ == nullptr; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int64_t dim(int i) const { return shape_[i]; }
  int64_t num_elements() const { return shape_.num_elements(); }
  int64_t size_bytes() const { return num_elements() * SizeOf(dtype_); }
  const void* raw() const { return data_; }

  // CHECK: T is the element type.
  template <typename T>
  const T* data() const {
    CUBIT_CHECK(DTypeOf<T>::kValue == dtype_) << "dtype " << Name(dtype_);
    return static_cast<const T*>(data_);
  }

  // The same elements under another shape. CHECK: equal element counts.
  ConstTensor Reshape(Shape shape) const {
    CUBIT_CHECK_EQ(shape.num_elements(), num_elements());
    return ConstTensor(data_, dtype_, shape);
  }
  // Rows [begin, begin + count) of the first dim.
  ConstTensor Slice(int64_t begin, int64_t count) const;

 private:
  const void* data_ = nullptr;
  DType dtype_ = DType::kFloat32;
  Shape shape_;
};

// A contiguous tensor that is written; converts to ConstTensor.
class Tensor {
 public:
  Tensor() = default;
  Tensor(void* data, DType dtype, Shape shape)
      : data_(data), dtype_(dtype), shape_(shape) {}

  operator ConstTensor() const {  // NOLINT(google-explicit-constructor)
    return ConstTensor(data_, dtype_, shape_);
  }

  bool empty() const { return data_ == nullptr; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int64_t dim(int i) const { return shape_[i]; }
  int64_t num_elements() const { return shape_.num_elements(); }
  int64_t size_bytes() const { return num_elements() * SizeOf(dtype_); }
  void* raw() const { return data_; }

  template <typename T>
  T* data() const {
    CUBIT_CHECK(DTypeOf<T>::kValue == dtype_) << "dtype " << Name(dtype_);
    return static_cast<T*>(data_);
  }
  Tensor Reshape(Shape shape) const {
    CUBIT_CHECK_EQ(shape.num_elements(), num_elements());
    return Tensor(data_, dtype_, shape);
  }
  Tensor Slice(int64_t begin, int64_t count) const;

 private:
  void* data_ = nullptr;
  DType dtype_ = DType::kFloat32;
  Shape shape_;
};

// Per-head view [B, T, H, K] with free strides (in elements) and unit stride
// over K: how mixers look at columns of a fused projection [B, T, columns]
// without copying them.
template <typename Pointer>
struct HeadView {
  Pointer data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t batch = 0;      // B
  int64_t seq_len = 0;    // T
  int64_t num_heads = 0;  // H
  int64_t head_dim = 0;   // K
  int64_t batch_stride = 0;
  int64_t seq_stride = 0;
  int64_t head_stride = 0;

  bool empty() const { return data == nullptr; }
};

struct ConstHeadTensor : HeadView<const void*> {
  // The row of K elements at (b, t, h). CHECK: T is the element type.
  template <typename T>
  const T* row(int64_t b, int64_t t, int64_t h) const {
    CUBIT_CHECK(DTypeOf<T>::kValue == dtype);
    return static_cast<const T*>(data) + b * batch_stride + t * seq_stride +
           h * head_stride;
  }
};

struct HeadTensor : HeadView<void*> {
  operator ConstHeadTensor() const;  // NOLINT(google-explicit-constructor)

  template <typename T>
  T* row(int64_t b, int64_t t, int64_t h) const {
    CUBIT_CHECK(DTypeOf<T>::kValue == dtype);
    return static_cast<T*>(data) + b * batch_stride + t * seq_stride +
           h * head_stride;
  }
};

// Heads in `columns` [B, T, C] (contiguous): head h of the view is columns
// [first_column + h * head_dim, + head_dim).
HeadTensor HeadsOf(const Tensor& columns, int64_t first_column,
                   int64_t num_heads, int64_t head_dim);
ConstHeadTensor HeadsOf(const ConstTensor& columns, int64_t first_column,
                        int64_t num_heads, int64_t head_dim);

// Per-token scalars [B, H, T] (contiguous) as a view with K = 1.
HeadTensor ScalarsOf(const Tensor& per_token);
ConstHeadTensor ScalarsOf(const ConstTensor& per_token);

// Rows [begin, begin + count) of the sequence.
HeadTensor SliceSequence(HeadTensor x, int64_t begin, int64_t count);
ConstHeadTensor SliceSequence(ConstHeadTensor x, int64_t begin, int64_t count);

// CHECKs `tensor` against a shape and prints name, wanted and got.
#define CUBIT_CHECK_SHAPE(tensor, ...)                                    \
  CUBIT_CHECK((tensor).shape() == ::cubit::Shape(__VA_ARGS__))            \
      << #tensor << ": wanted " << ::cubit::Shape(__VA_ARGS__).ToString() \
      << ", got " << (tensor).shape().ToString()

}  // namespace cubit

#endif  // CUBIT_RUNTIME_TENSOR_H_
