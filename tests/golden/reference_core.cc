// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "ops/attention_reference.h"
#include "ops/delta_solve_reference.h"
#include "ops/head_norm_reference.h"
#include "ops/krr_reference.h"
#include "ops/reference_matrix.h"
#include "ops/rotary_reference.h"
#include "tests/golden/bfloat16_products.h"
#include "tests/golden/mixer_core.h"

namespace cubit {
namespace golden {
namespace {

template <typename T>
using Matrix = reference::Matrix<T>;
template <typename T>
using Vector = reference::Vector<T>;

template <typename T>
Vector<T> StoredAll(Vector<T> values) {
  for (T& value : values) value = Stored(value);
  return values;
}
template <typename T>
Matrix<T> StoredAll(const Matrix<T>& x) {
  return Matrix<T>(x.rows(), x.columns(), StoredAll(x.values()));
}

// Head (b, h) of the arrays of a case, and of the results.
template <typename T>
class Head {
 public:
  Head(const Case& c, int64_t b, int64_t h, Results* results)
      : c_(c), b_(b), h_(h), results_(results) {}

  Matrix<T> Rows(const std::string& name) const {
    return Matrix<T>(c_.seq_len, c_.head_dim,
                     StoredAll(Part(name, c_.seq_len * c_.head_dim)));
  }
  Vector<T> Scalars(const std::string& name) const {
    return StoredAll(Part(name, c_.seq_len));
  }
  T Parameter(const std::string& name) const {
    return T(c_.input(name).values[static_cast<size_t>(h_)]);
  }
  // Writes this head's part of a result.
  void Write(const std::string& name, const Vector<T>& values) {
    const int64_t count = static_cast<int64_t>(values.size());
    std::vector<double>& all = Result(name, c_.batch * c_.num_heads * count);
    std::transform(values.begin(), values.end(),
                   all.begin() + (b_ * c_.num_heads + h_) * count,
                   [](const T& value) { return static_cast<double>(value); });
  }
  // Adds to a gradient [H].
  void Add(const std::string& name, const T& value) {
    Result(name, c_.num_heads)[static_cast<size_t>(h_)] +=
        static_cast<double>(value);
  }

 private:
  Vector<T> Part(const std::string& name, int64_t count) const {
    const auto begin =
        c_.input(name).values.begin() + (b_ * c_.num_heads + h_) * count;
    return Vector<T>(begin, begin + count);
  }
  std::vector<double>& Result(const std::string& name, int64_t count) {
    std::vector<double>& values = (*results_)[name];
    values.resize(static_cast<size_t>(count));
    return values;
  }

  const Case& c_;
  int64_t b_;
  int64_t h_;
  Results* results_;
};

// A projection on its way into the core: q, k normalised if the case says so,
// then rotated. Backward undoes it.
template <typename T>
class Entry {
 public:
  Entry(const Case& c, bool normalised, const Matrix<T>& x)
      : c_(c), normalised_(normalised), x_(x) {}

  Matrix<T> Forward() {
    Matrix<T> y = x_;
    if (normalised_) {
      auto norm =
          reference::HeadNormForward<T>(x_.values(), {}, 1, c_.head_dim);
      y = Matrix<T>(c_.seq_len, c_.head_dim, std::move(norm.y));
      inv_norm_ = std::move(norm.inv_norm);
    }
    return c_.rope ? reference::Rotary(y, c_.rope_base, 0, 1) : y;
  }
  Vector<T> Backward(Matrix<T> d_y) const {
    if (c_.rope) d_y = reference::Rotary(d_y, c_.rope_base, 0, -1);
    if (!normalised_) return d_y.values();
    return reference::HeadNormBackward<T>(d_y.values(), x_.values(), {},
                                          inv_norm_, 1, c_.head_dim)
        .d_x;
  }

 private:
  const Case& c_;
  bool normalised_;
  Matrix<T> x_;
  Vector<T> inv_norm_;
};

template <typename T>
Matrix<T> Sum(Matrix<T> a, const Matrix<T>& b) {
  for (size_t i = 0; i < a.values().size(); ++i) a.values()[i] += b.values()[i];
  return a;
}

// out = A V.
template <typename T>
void RunSoftmax(const Case& c, const reference::Mask& mask, Head<T>* head) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(c.head_dim));
  Entry<T> q_entry(c, c.qk_norm, head->Rows("q"));
  Entry<T> k_entry(c, c.qk_norm, head->Rows("k"));
  const Matrix<T> q = q_entry.Forward();
  const Matrix<T> k = k_entry.Forward();
  const Matrix<T> v = head->Rows("v");
  const auto attention = reference::AttentionForward(q, k, v, scale, mask);
  head->Write("out", attention.out.values());
  head->Write("lse_attention", attention.lse);

  const auto d =
      reference::AttentionBackward(q, k, v, scale, mask, head->Rows("dout"));
  head->Write("dq", q_entry.Backward(d.d_q));
  head->Write("dk", k_entry.Backward(d.d_k));
  head->Write("dv", d.d_v.values());
}

// out = A X, (P + lambda I) X = diag(s) V.
template <typename T>
void RunCubit(const Case& c, const reference::Mask& mask, Head<T>* head) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(c.head_dim));
  Entry<T> q_entry(c, c.qk_norm, head->Rows("q"));
  Entry<T> k_entry(c, c.qk_norm, head->Rows("k"));
  Entry<T> r_entry(c, false, head->Rows("r"));
  const Matrix<T> q = q_entry.Forward();
  const Matrix<T> k = k_entry.Forward();
  const Matrix<T> r = r_entry.Forward();
  const Matrix<T> v = head->Rows("v");
  const reference::KrrParameters<T> parameters = {
      head->Parameter("scale"), head->Parameter("lower"),
      head->Parameter("upper_scale"), head->Parameter("log_lambda")};
  const Vector<T> lrr = c.lrr ? head->Scalars("lrr_logits") : Vector<T>();
  const auto factors = reference::KrrFactorsForward(r, lrr, parameters);
  auto solution =
      reference::KrrSolveForward(r, v, factors, parameters.log_lambda, mask);
  solution.x = StoredAll(solution.x);
  const auto attention =
      reference::AttentionForward(q, k, solution.x, scale, mask);
  head->Write("out", attention.out.values());
  head->Write("lse_attention", attention.lse);
  head->Write("x", solution.x.values());
  head->Write("lse_kernel", solution.lse);

  const auto d = reference::AttentionBackward(q, k, solution.x, scale, mask,
                                              head->Rows("dout"));
  const auto d_solve = reference::KrrSolveBackward(
      r, v, factors, parameters.log_lambda, mask, solution.x, StoredAll(d.d_v));
  const auto d_factors = reference::KrrFactorsBackward(
      r, lrr, parameters, d_solve.d_column_scale, d_solve.d_value_scale);
  head->Write("dq", q_entry.Backward(d.d_q));
  head->Write("dk", k_entry.Backward(d.d_k));
  head->Write("dr", r_entry.Backward(Sum(d_solve.d_r, d_factors.d_r)));
  head->Write("dv", d_solve.d_v.values());
  head->Write("dlrr_logits", c.lrr ? d_factors.d_lrr_logits
                                   : Vector<T>(static_cast<size_t>(c.seq_len)));
  head->Add("dscale", d_factors.d_scale);
  head->Add("dlower", d_factors.d_lower);
  head->Add("dupper_scale", d_factors.d_upper_scale);
  head->Add("dlog_lambda", d_solve.d_log_lambda);
}

// out = A X, (I + diag(beta) W) X = V.
template <typename T>
void RunDeltaFormer(const Case& c, const reference::Mask& mask, Head<T>* head) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(c.head_dim));
  Entry<T> q_entry(c, c.qk_norm, head->Rows("q"));
  Entry<T> k_entry(c, c.qk_norm, head->Rows("k"));
  Entry<T> w_entry(c, false, head->Rows("w"));
  const Matrix<T> q = q_entry.Forward();
  const Matrix<T> k = k_entry.Forward();
  const Matrix<T> w = w_entry.Forward();
  const Vector<T> beta = head->Scalars("beta");
  auto solution =
      reference::DeltaSolveForward(w, k, head->Rows("v"), beta, scale, mask);
  solution.x = StoredAll(solution.x);
  const auto attention =
      reference::AttentionForward(q, k, solution.x, scale, mask);
  head->Write("out", attention.out.values());
  head->Write("lse_attention", attention.lse);
  head->Write("x", solution.x.values());
  head->Write("lse_kernel", solution.lse);

  const auto d = reference::AttentionBackward(q, k, solution.x, scale, mask,
                                              head->Rows("dout"));
  const auto d_solve = reference::DeltaSolveBackward(
      w, k, beta, scale, mask, solution.x, StoredAll(d.d_v));
  head->Write("dq", q_entry.Backward(d.d_q));
  head->Write("dk", k_entry.Backward(Sum(d.d_k, d_solve.d_k)));
  head->Write("dw", w_entry.Backward(d_solve.d_w));
  head->Write("dv", d_solve.d_v.values());
  head->Write("dbeta", d_solve.d_beta);
}

template <typename T>
Results RunAs(const Case& c) {
  Results results;
  for (int64_t b = 0; b < c.batch; ++b) {
    reference::Mask mask;
    mask.causal = c.causal;
    if (c.document_mask) {
      const auto begin = c.input("segment_ids").values.begin() + b * c.seq_len;
      mask.segments.assign(begin, begin + c.seq_len);
    }
    for (int64_t h = 0; h < c.num_heads; ++h) {
      Head<T> head(c, b, h, &results);
      switch (c.mixer) {
        case Mixer::kSoftmax:
          RunSoftmax(c, mask, &head);
          break;
        case Mixer::kCubit:
          RunCubit(c, mask, &head);
          break;
        case Mixer::kDeltaFormer:
          RunDeltaFormer(c, mask, &head);
          break;
      }
    }
  }
  if (c.mixer == Mixer::kDeltaFormer) {
    WriteEmptyRowsAsZero(&results["lse_kernel"]);
  }
  return results;
}

template <int kGrid>
Results RunOnGrid(const Case& c) {
  Results results = RunAs<WithBFloat16Products<kGrid>>(c);
  const int64_t rows = c.batch * c.num_heads * c.seq_len * c.head_dim;
  for (auto& [name, values] : results) {
    if (static_cast<int64_t>(values.size()) != rows) continue;
    for (double& value : values) value = RoundToBFloat16(value, kGrid);
  }
  return results;
}

template <int... kGrids>
std::vector<Results> RunOnGrids(const Case& c,
                                std::integer_sequence<int, kGrids...>) {
  return {RunOnGrid<kGrids>(c)...};
}

}  // namespace

void WriteEmptyRowsAsZero(std::vector<double>* lse) {
  std::replace(lse->begin(), lse->end(),
               -std::numeric_limits<double>::infinity(), 0.0);
}

Results RunReference(const Case& c) { return RunAs<double>(c); }

std::vector<Results> RunPlainBFloat16(const Case& c) {
  return RunOnGrids(c, std::make_integer_sequence<int, kNumGrids>());
}

}  // namespace golden
}  // namespace cubit
