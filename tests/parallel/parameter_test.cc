// SPDX-License-Identifier: Apache-2.0

#include "parallel/parameter.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"

#include "runtime/check.h"
#include "runtime/philox.h"

namespace cubit {
namespace {

constexpr uint64_t kSeed = 5;
constexpr double kStddev = 0.02;

ShardSpec Part(Shape shape, int dim, int64_t begin, int64_t count) {
  ShardSpec spec;
  spec.global_shape = shape;
  spec.dim = dim;
  spec.begin = begin;
  spec.count = count;
  return spec;
}

// Elements of the rank's part that are not those of the whole tensor.
int64_t Different(const Parameter& parameter) {
  const ShardSpec& shard = parameter.shard;
  const Philox random(kSeed, parameter.name);
  const int64_t columns = shard.global_shape[1];
  const bool rows_cut = !shard.is_whole() && shard.dim == 0;
  const bool columns_cut = !shard.is_whole() && shard.dim == 1;
  const Tensor& value = parameter.value;
  int64_t different = 0;
  for (int64_t i = 0; i < value.num_elements(); ++i) {
    const int64_t row = i / value.dim(1) + (rows_cut ? shard.begin : 0);
    const int64_t column = i % value.dim(1) + (columns_cut ? shard.begin : 0);
    const double normal =
        random.Normal(static_cast<uint64_t>(row * columns + column));
    different += value.data<float>()[i] !=
                 static_cast<float>(parameter.init.stddev * normal);
  }
  return different;
}

TEST(Initialize, GivesShardsTheBitsOfTheWhole) {
  ParameterStore store;
  const Initializer normal = Initializer::Normal(kStddev);
  const std::vector<Parameter*> parameters = {
      store.Add("whole", ShardSpec::Whole({9, 100}), normal, true),
      store.Add("rows", Part({12, 100}, 0, 8, 4), normal, true),
      store.Add("columns", Part({9, 201}, 1, 67, 67), normal, true)};
  CUBIT_CHECK_OK(store.Allocate(/*with_gradients=*/false));
  Stream stream;
  CUBIT_CHECK_OK(store.Initialize(kSeed, stream));
  for (const Parameter* parameter : parameters) {
    EXPECT_EQ(Different(*parameter), 0) << parameter->name;
  }
}

// More than goes to the device at once, three times.
TEST(Initialize, SendsPieces) {
  ParameterStore store;
  Parameter* const parameter =
      store.Add("large", Part({2000, 10001}, 0, 1000, 1000),
                Initializer::Normal(kStddev), true);
  CUBIT_CHECK_OK(store.Allocate(/*with_gradients=*/false));
  Stream stream;
  CUBIT_CHECK_OK(store.Initialize(kSeed, stream));
  EXPECT_EQ(Different(*parameter), 0);
}

TEST(Initialize, Constants) {
  ParameterStore store;
  Parameter* const parameter = store.Add("scale", ShardSpec::Whole({7}),
                                         Initializer::Constant(1), false);
  CUBIT_CHECK_OK(store.Allocate(/*with_gradients=*/false));
  Stream stream;
  CUBIT_CHECK_OK(store.Initialize(kSeed, stream));
  for (int64_t i = 0; i < 7; ++i) {
    EXPECT_EQ(parameter->value.data<float>()[i], 1.0f);
  }
}

// What is written, behind one another, behind padding, at the begin and the end
// of the store or not: all else becomes zero.
TEST(ZeroGradients, LeavesWhatTheFirstBackwardWrites) {
  ParameterStore store;
  const Initializer zero = Initializer::Constant(0);
  const std::vector<Parameter*> parameters = {
      store.Add("first", ShardSpec::Whole({5, 7}), zero, true),
      store.Add("added", ShardSpec::Whole({3}), zero, false),
      store.Add("q", ShardSpec::Whole({4, 3}), zero, true),
      store.Add("k", ShardSpec::Whole({2, 3}), zero, true, /*follow=*/true)};
  store.Pad(9);
  Parameter* const last = store.Add("last", ShardSpec::Whole({70}), zero, true);
  for (Parameter* written : {parameters[0], parameters[2], parameters[3], last})
    written->gradient_is_written = true;
  CUBIT_CHECK_OK(store.Allocate(/*with_gradients=*/true));
  const Tensor all = store.flat_gradients();
  std::fill_n(all.data<float>(), all.num_elements(), 1.0f);
  Stream stream;
  store.ZeroGradients(stream);
  int64_t ones = 0;
  for (int64_t i = 0; i < all.num_elements(); ++i) {
    ones += all.data<float>()[i] == 1.0f;
  }
  EXPECT_EQ(ones, 35 + 12 + 6 + 70);
  EXPECT_EQ(parameters[1]->gradient.data<float>()[0], 0);
  EXPECT_EQ(last->gradient.data<float>()[69], 1);
}

}  // namespace
}  // namespace cubit
