// SPDX-License-Identifier: Apache-2.0

#include "runtime/tensor.h"

#include <type_traits>

#include "absl/strings/str_cat.h"

namespace cubit {
namespace {

Shape SlicedShape(const Shape& shape, int64_t begin, int64_t count) {
  CUBIT_CHECK_GE(shape.rank(), 1);
  CUBIT_CHECK(begin >= 0 && count >= 0 && begin + count <= shape[0])
      << "rows [" << begin << ", " << begin + count << ") of "
      << shape.ToString();
  Shape sliced;
  sliced.Append(count);
  for (int i = 1; i < shape.rank(); ++i) sliced.Append(shape[i]);
  return sliced;
}

int64_t RowBytes(const Shape& shape, DType dtype) {
  return shape[0] == 0 ? 0 : shape.num_elements() / shape[0] * SizeOf(dtype);
}

// `data` + `bytes`; null stays null: a measuring arena's tensors have no memory
// and may still be sliced.
template <typename Pointer>
Pointer Advance(Pointer data, int64_t bytes) {
  using Byte =
      std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>,
                         const char, char>;
  return data == nullptr ? nullptr : static_cast<Byte*>(data) + bytes;
}

// Fills everything but the pointer of a view on `shape` [B, T, C].
template <typename View>
View DescribeHeads(const Shape& shape, DType dtype, int64_t first_column,
                   int64_t num_heads, int64_t head_dim) {
  CUBIT_CHECK_EQ(shape.rank(), 3);
  CUBIT_CHECK(first_column >= 0 && num_heads >= 0 && head_dim >= 0 &&
              first_column + num_heads * head_dim <= shape[2])
      << num_heads << " heads of " << head_dim << " from column "
      << first_column << " of " << shape.ToString();
  View view;
  view.dtype = dtype;
  view.batch = shape[0];
  view.seq_len = shape[1];
  view.num_heads = num_heads;
  view.head_dim = head_dim;
  view.batch_stride = shape[1] * shape[2];
  view.seq_stride = shape[2];
  view.head_stride = head_dim;
  return view;
}

// The same for per-token scalars of `shape` [B, H, T].
template <typename View>
View DescribeScalars(const Shape& shape) {
  CUBIT_CHECK_EQ(shape.rank(), 3);
  View view;
  view.batch = shape[0];
  view.seq_len = shape[2];
  view.num_heads = shape[1];
  view.head_dim = 1;
  view.batch_stride = shape[1] * shape[2];
  view.seq_stride = 1;
  view.head_stride = shape[2];
  return view;
}

template <typename View>
View SlicedSequence(View x, int64_t begin, int64_t count) {
  CUBIT_CHECK(begin >= 0 && count >= 0 && begin + count <= x.seq_len)
      << "rows [" << begin << ", " << begin + count << ") of " << x.seq_len;
  x.data = Advance(x.data, begin * x.seq_stride * SizeOf(x.dtype));
  x.seq_len = count;
  return x;
}

}  // namespace

std::string Shape::ToString() const {
  std::string text = "[";
  for (int i = 0; i < rank_; ++i) {
    absl::StrAppend(&text, i == 0 ? "" : ", ", dims_[static_cast<size_t>(i)]);
  }
  return text + "]";
}

ConstTensor ConstTensor::Slice(int64_t begin, int64_t count) const {
  const Shape sliced = SlicedShape(shape_, begin, count);
  return ConstTensor(Advance(data_, begin * RowBytes(shape_, dtype_)), dtype_,
                     sliced);
}

Tensor Tensor::Slice(int64_t begin, int64_t count) const {
  const Shape sliced = SlicedShape(shape_, begin, count);
  return Tensor(Advance(data_, begin * RowBytes(shape_, dtype_)), dtype_,
                sliced);
}

HeadTensor::operator ConstHeadTensor() const {
  ConstHeadTensor view;
  view.data = data;
  view.dtype = dtype;
  view.batch = batch;
  view.seq_len = seq_len;
  view.num_heads = num_heads;
  view.head_dim = head_dim;
  view.batch_stride = batch_stride;
  view.seq_stride = seq_stride;
  view.head_stride = head_stride;
  return view;
}

HeadTensor HeadsOf(const Tensor& columns, int64_t first_column,
                   int64_t num_heads, int64_t head_dim) {
  HeadTensor view = DescribeHeads<HeadTensor>(
      columns.shape(), columns.dtype(), first_column, num_heads, head_dim);
  view.data = Advance(columns.raw(), first_column * SizeOf(columns.dtype()));
  return view;
}

ConstHeadTensor HeadsOf(const ConstTensor& columns, int64_t first_column,
                        int64_t num_heads, int64_t head_dim) {
  ConstHeadTensor view = DescribeHeads<ConstHeadTensor>(
      columns.shape(), columns.dtype(), first_column, num_heads, head_dim);
  view.data = Advance(columns.raw(), first_column * SizeOf(columns.dtype()));
  return view;
}

HeadTensor ScalarsOf(const Tensor& per_token) {
  HeadTensor view = DescribeScalars<HeadTensor>(per_token.shape());
  view.data = per_token.raw();
  view.dtype = per_token.dtype();
  return view;
}

ConstHeadTensor ScalarsOf(const ConstTensor& per_token) {
  ConstHeadTensor view = DescribeScalars<ConstHeadTensor>(per_token.shape());
  view.data = per_token.raw();
  view.dtype = per_token.dtype();
  return view;
}

HeadTensor SliceSequence(HeadTensor x, int64_t begin, int64_t count) {
  return SlicedSequence(x, begin, count);
}
ConstHeadTensor SliceSequence(ConstHeadTensor x, int64_t begin, int64_t count) {
  return SlicedSequence(x, begin, count);
}

}  // namespace cubit
