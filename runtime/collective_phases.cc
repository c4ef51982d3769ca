// SPDX-License-Identifier: Apache-2.0

#include "runtime/collective_phases.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "runtime/check.h"
#include "runtime/communicator.h"
#include "runtime/dtype.h"
#include "runtime/tensor.h"

namespace cubit {
namespace {

// Element range of part `index` when `n` elements are dealt out to `size`.
std::pair<int64_t, int64_t> Part(int64_t n, int size, int index) {
  return {n * index / size, n * (index + 1) / size};
}

// Elements that a sum keeps on the stack: output may be one of the inputs.
constexpr int64_t kBlock = 512;

// output[begin + i] = reduction over inputs[q][offset + i], q ascending.
template <typename T>
void Reduce(const std::vector<const T*>& inputs, ReduceOp op, int64_t n,
            T* output) {
  std::array<T, kBlock> block;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t count = std::min(kBlock, n - begin);
    std::copy_n(inputs[0] + begin, count, block.begin());
    for (size_t q = 1; q < inputs.size(); ++q) {
      const T* x = inputs[q] + begin;
      for (int64_t i = 0; i < count; ++i) {
        T& value = block[static_cast<size_t>(i)];
        value = op == ReduceOp::kSum ? value + x[i] : std::max(value, x[i]);
      }
    }
    std::copy_n(block.begin(), count, output + begin);
  }
}

const char* Bytes(const ConstTensor& x, int64_t element) {
  return static_cast<const char*>(x.raw()) + element * SizeOf(x.dtype());
}

char* MutableBytes(const Tensor& x, int64_t element) {
  return static_cast<char*>(x.raw()) + element * SizeOf(x.dtype());
}

void Copy(const void* from, void* to, int64_t bytes) {
  if (bytes > 0 && from != to) {
    std::memcpy(to, from, static_cast<size_t>(bytes));
  }
}

// Elements [begin, begin + n) of all inputs, reduced into `output`.
template <typename T>
void ReduceRange(const std::vector<CollectiveCall>& calls, int64_t begin,
                 int64_t n, void* output) {
  if (n == 0) return;
  std::vector<const T*> inputs;
  inputs.reserve(calls.size());
  for (const CollectiveCall& call : calls) {
    inputs.push_back(call.input.data<T>() + begin);
  }
  Reduce(inputs, calls[0].reduce_op, n, static_cast<T*>(output));
}

void ReduceRange(const std::vector<CollectiveCall>& calls, int64_t begin,
                 int64_t n, void* output) {
  switch (calls[0].input.dtype()) {
    case DType::kFloat32:
      return ReduceRange<float>(calls, begin, n, output);
    case DType::kFloat64:
      return ReduceRange<double>(calls, begin, n, output);
    case DType::kInt64:
      return ReduceRange<int64_t>(calls, begin, n, output);
    default:
      CUBIT_CHECK(false) << "dtype " << Name(calls[0].input.dtype());
  }
}

}  // namespace

void ReadInputs(const std::vector<CollectiveCall>& calls, int rank) {
  const int size = static_cast<int>(calls.size());
  const CollectiveCall& mine = calls[static_cast<size_t>(rank)];
  const Tensor& out = mine.output;
  switch (mine.kind) {
    case OperationKind::kAllReduce: {
      const auto [begin, end] = Part(out.num_elements(), size, rank);
      ReduceRange(calls, begin, end - begin, MutableBytes(out, begin));
      break;
    }
    case OperationKind::kReduceScatter: {
      const int64_t n = out.num_elements();
      ReduceRange(calls, rank * n, n, out.raw());
      break;
    }
    case OperationKind::kAllGather: {
      const int64_t n = mine.input.num_elements();
      for (int q = 0; q < size; ++q) {
        Copy(calls[static_cast<size_t>(q)].input.raw(),
             MutableBytes(out, q * n), mine.input.size_bytes());
      }
      break;
    }
    case OperationKind::kAllToAll: {
      const int64_t n = out.num_elements() / size;
      for (int q = 0; q < size; ++q) {
        Copy(Bytes(calls[static_cast<size_t>(q)].input, rank * n),
             MutableBytes(out, q * n), n * SizeOf(out.dtype()));
      }
      break;
    }
    case OperationKind::kBroadcast:
      Copy(calls[static_cast<size_t>(mine.root)].input.raw(), out.raw(),
           out.size_bytes());
      break;
    default:
      break;
  }
}

void ReadOutputs(const std::vector<CollectiveCall>& calls, int rank) {
  const int size = static_cast<int>(calls.size());
  const Tensor& out = calls[static_cast<size_t>(rank)].output;
  if (calls[0].kind != OperationKind::kAllReduce) return;
  for (int q = 0; q < size; ++q) {
    if (q == rank) continue;
    const auto [begin, end] = Part(out.num_elements(), size, q);
    Copy(Bytes(calls[static_cast<size_t>(q)].output, begin),
         MutableBytes(out, begin), (end - begin) * SizeOf(out.dtype()));
  }
}

}  // namespace cubit
