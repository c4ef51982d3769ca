// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/functional/function_ref.h"

#include "ops/decode.h"
#include "runtime/thread_pool.h"

namespace cubit {
namespace {

float Dot(const float* a, const float* b, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

void AddScaled(float factor, const float* x, float* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

// exp(scores - max) in place; returns the sum.
float Exponentiate(std::vector<float>& scores) {
  const float max = *std::max_element(scores.begin(), scores.end());
  float sum = 0;
  for (float& score : scores) {
    score = std::exp(score - max);
    sum += score;
  }
  return sum;
}

// sum_j weights[j] rows[b, j, h] over the first weights.size() rows.
void WeightedSum(const std::vector<float>& weights, ConstHeadTensor rows,
                 int64_t b, int64_t h, float* out) {
  std::fill(out, out + rows.head_dim, 0.0f);
  for (size_t j = 0; j < weights.size(); ++j) {
    AddScaled(weights[j], rows.row<float>(b, static_cast<int64_t>(j), h), out,
              rows.head_dim);
  }
}

// scale * (query . keys[b, j, h]) for j < count.
std::vector<float> Scores(const float* query, ConstHeadTensor keys, float scale,
                          int64_t count, int64_t b, int64_t h) {
  std::vector<float> scores(static_cast<size_t>(count));
  for (int64_t j = 0; j < count; ++j) {
    scores[static_cast<size_t>(j)] =
        scale * Dot(query, keys.row<float>(b, j, h), keys.head_dim);
  }
  return scores;
}

void ForEachHead(int64_t batch, int64_t heads,
                 absl::FunctionRef<void(int64_t b, int64_t h)> body) {
  ParallelFor(batch * heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i / heads, i % heads);
  });
}

}  // namespace

void AttentionDecode(ConstHeadTensor q, ConstHeadTensor k, ConstHeadTensor v,
                     float scale, int64_t position, HeadTensor out, Stream&) {
  CUBIT_CHECK_LT(position, k.seq_len);
  ForEachHead(q.batch, q.num_heads, [&](int64_t b, int64_t h) {
    std::vector<float> weights =
        Scores(q.row<float>(b, 0, h), k, scale, position + 1, b, h);
    const float sum = Exponentiate(weights);
    float* row = out.row<float>(b, 0, h);
    WeightedSum(weights, v, b, h, row);
    for (int64_t i = 0; i < out.head_dim; ++i) row[i] /= sum;
  });
}

void KrrDecode(ConstHeadTensor r, ConstHeadTensor column_scale,
               ConstHeadTensor v, ConstHeadTensor value_scale,
               ConstTensor log_lambda, int64_t position, HeadTensor x,
               Stream&) {
  CUBIT_CHECK_LT(position, r.seq_len);
  ForEachHead(r.batch, r.num_heads, [&](int64_t b, int64_t h) {
    std::vector<float> weights =
        Scores(r.row<float>(b, position, h), r, 1.0f, position + 1, b, h);
    for (int64_t j = 0; j <= position; ++j) {
      weights[static_cast<size_t>(j)] *= *column_scale.row<float>(b, j, h);
    }
    const float sum = Exponentiate(weights);
    const float diagonal = weights.back();
    weights.pop_back();
    float* row = x.row<float>(b, position, h);
    WeightedSum(weights, x, b, h, row);
    // (P + lambda I) x = s v, times the row's sum.
    const float* value = v.row<float>(b, 0, h);
    const float value_factor = sum * *value_scale.row<float>(b, 0, h);
    const float divisor =
        diagonal + std::exp(log_lambda.data<float>()[h]) * sum;
    for (int64_t i = 0; i < x.head_dim; ++i) {
      row[i] = (value_factor * value[i] - row[i]) / divisor;
    }
  });
}

void DeltaDecode(ConstHeadTensor w, ConstHeadTensor k, ConstHeadTensor v,
                 ConstHeadTensor beta, float scale, int64_t position,
                 HeadTensor x, Stream&) {
  CUBIT_CHECK_LT(position, k.seq_len);
  ForEachHead(w.batch, w.num_heads, [&](int64_t b, int64_t h) {
    float* row = x.row<float>(b, position, h);
    const float* value = v.row<float>(b, 0, h);
    if (position == 0) {
      std::copy(value, value + x.head_dim, row);
      return;
    }
    std::vector<float> weights =
        Scores(w.row<float>(b, 0, h), k, scale, position, b, h);
    const float sum = Exponentiate(weights);
    WeightedSum(weights, x, b, h, row);
    const float factor = *beta.row<float>(b, 0, h) / sum;
    for (int64_t i = 0; i < x.head_dim; ++i) {
      row[i] = value[i] - factor * row[i];
    }
  });
}

}  // namespace cubit
