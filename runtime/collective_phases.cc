// SPDX-License-Identifier: Apache-2.0

#include "runtime/collective_phases.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"

#include "runtime/bfloat16.h"
#include "runtime/check.h"
#include "runtime/communicator.h"
#include "runtime/dtype.h"
#include "runtime/tensor.h"

namespace cubit {
namespace {

// Elements that a sum keeps on the stack: output may be one of the inputs.
constexpr int64_t kBlock = 512;

// The type in which terms of T are added.
template <typename T>
struct Term {
  using Type = T;
  static T Read(T x) { return x; }
  static T Write(T x) { return x; }
};
template <>
struct Term<BFloat16> {
  using Type = float;
  static float Read(BFloat16 x) { return ToFloat(x); }
  static BFloat16 Write(float x) { return ToBFloat16(x); }
};

template <typename T>
void Reduce(const std::vector<const void*>& inputs, ReduceOp op, int64_t n,
            T* output) {
  using Value = typename Term<T>::Type;
  std::array<Value, kBlock> block;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t count = std::min(kBlock, n - begin);
    const T* first = static_cast<const T*>(inputs[0]) + begin;
    std::transform(first, first + count, block.begin(), Term<T>::Read);
    for (size_t q = 1; q < inputs.size(); ++q) {
      const T* x = static_cast<const T*>(inputs[q]) + begin;
      for (int64_t i = 0; i < count; ++i) {
        Value& value = block[static_cast<size_t>(i)];
        const Value term = Term<T>::Read(x[i]);
        value = op == ReduceOp::kSum ? value + term : std::max(value, term);
      }
    }
    std::transform(block.begin(), block.begin() + count, output + begin,
                   Term<T>::Write);
  }
}

bool SameCall(const CollectiveCall& a, const CollectiveCall& b) {
  return a.kind == b.kind && a.reduce_op == b.reduce_op && a.root == b.root &&
         a.input.dtype() == b.input.dtype() &&
         a.input.shape() == b.input.shape();
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
void ReduceRange(const std::vector<CollectiveCall>& calls, int64_t begin,
                 int64_t n, void* output) {
  std::vector<const void*> inputs;
  inputs.reserve(calls.size());
  for (const CollectiveCall& call : calls) {
    inputs.push_back(Bytes(call.input, begin));
  }
  ReduceInOrder(inputs, calls[0].input.dtype(), calls[0].reduce_op, n, output);
}

}  // namespace

std::string JoinRanks(const std::vector<int>& ranks) {
  return ranks.empty() ? "none" : absl::StrJoin(ranks, ", ");
}

std::string DescribeTensor(const ConstTensor& x) {
  return absl::StrCat(Name(x.dtype()), " ", x.shape().ToString());
}

absl::Status CompareCalls(const std::vector<CollectiveCall>& calls,
                          absl::string_view group) {
  const CollectiveCall& first = calls[0];
  for (size_t q = 1; q < calls.size(); ++q) {
    if (SameCall(first, calls[q])) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "group \"%s\", operation #%d: rank 0 called %s, rank %d called %s: all "
        "ranks must call the same operation with the same arguments",
        group, first.sequence, first.ToString(), q, calls[q].ToString()));
  }
  return absl::OkStatus();
}

absl::StatusOr<SplitMembers> MembersOf(const std::vector<CollectiveCall>& calls,
                                       int rank, absl::string_view prefix) {
  const CollectiveCall& mine = calls[static_cast<size_t>(rank)];
  std::vector<std::pair<int, int>> order;  // key, rank here
  for (int q = 0; q < static_cast<int>(calls.size()); ++q) {
    const CollectiveCall& other = calls[static_cast<size_t>(q)];
    if (other.color != mine.color) continue;
    order.emplace_back(other.key, q);
    if (other.name == mine.name || mine.color < 0) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "%scolor %d is \"%s\" on rank %d and \"%s\" on rank %d: wanted one "
        "name",
        prefix, mine.color, mine.name, rank, other.name, q));
  }
  std::sort(order.begin(), order.end());
  SplitMembers members;
  for (const auto& [key, q] : order) {
    if (q == rank) members.rank = static_cast<int>(members.ranks.size());
    members.ranks.push_back(q);
  }
  return members;
}

ElementRange PartOf(int64_t n, int size, int index) {
  const int64_t begin = n * index / size;
  return {begin, n * (index + 1) / size - begin};
}

void ReduceInOrder(const std::vector<const void*>& inputs, DType dtype,
                   ReduceOp op, int64_t n, void* output) {
  switch (dtype) {
    case DType::kFloat32:
      return Reduce(inputs, op, n, static_cast<float*>(output));
    case DType::kFloat64:
      return Reduce(inputs, op, n, static_cast<double*>(output));
    case DType::kBFloat16:
      return Reduce(inputs, op, n, static_cast<BFloat16*>(output));
    case DType::kInt64:
      return Reduce(inputs, op, n, static_cast<int64_t*>(output));
    default:
      CUBIT_CHECK(false) << "dtype " << Name(dtype);
  }
}

void ReadInputs(const std::vector<CollectiveCall>& calls, int rank) {
  const int size = static_cast<int>(calls.size());
  const CollectiveCall& mine = calls[static_cast<size_t>(rank)];
  const Tensor& out = mine.output;
  switch (mine.kind) {
    case OperationKind::kAllReduce: {
      const auto [begin, count] = PartOf(out.num_elements(), size, rank);
      ReduceRange(calls, begin, count, MutableBytes(out, begin));
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
    const auto [begin, count] = PartOf(out.num_elements(), size, q);
    Copy(Bytes(calls[static_cast<size_t>(q)].output, begin),
         MutableBytes(out, begin), count * SizeOf(out.dtype()));
  }
}

}  // namespace cubit
