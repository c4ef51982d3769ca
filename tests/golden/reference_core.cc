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
#include "tests/golden/mixer_core.h"

namespace cubit {
namespace golden {
namespace {

using Matrix = reference::Matrix<double>;
using Vector = reference::Vector<double>;

// Head (b, h) of the arrays of a case, and of the results.
class Head {
 public:
  Head(const Case& c, int64_t b, int64_t h, Results* results)
      : c_(c), b_(b), h_(h), results_(results) {}

  Matrix Rows(const std::string& name) const {
    return Matrix(c_.seq_len, c_.head_dim,
                  Part(name, c_.seq_len * c_.head_dim));
  }
  Vector Scalars(const std::string& name) const {
    return Part(name, c_.seq_len);
  }
  double Parameter(const std::string& name) const {
    return c_.input(name).values[static_cast<size_t>(h_)];
  }
  // Writes this head's part of a result.
  void Write(const std::string& name, const Vector& values) {
    const int64_t count = static_cast<int64_t>(values.size());
    Vector& all = Result(name, c_.batch * c_.num_heads * count);
    std::copy(values.begin(), values.end(),
              all.begin() + (b_ * c_.num_heads + h_) * count);
  }
  // Adds to a gradient [H].
  void Add(const std::string& name, double value) {
    Result(name, c_.num_heads)[static_cast<size_t>(h_)] += value;
  }

 private:
  Vector Part(const std::string& name, int64_t count) const {
    const auto begin =
        c_.input(name).values.begin() + (b_ * c_.num_heads + h_) * count;
    return Vector(begin, begin + count);
  }
  Vector& Result(const std::string& name, int64_t count) {
    Vector& values = (*results_)[name];
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
class Entry {
 public:
  Entry(const Case& c, bool normalised, const Matrix& x)
      : c_(c), normalised_(normalised), x_(x) {}

  Matrix Forward() {
    Matrix y = x_;
    if (normalised_) {
      auto norm =
          reference::HeadNormForward<double>(x_.values(), {}, 1, c_.head_dim);
      y = Matrix(c_.seq_len, c_.head_dim, std::move(norm.y));
      inv_norm_ = std::move(norm.inv_norm);
    }
    return c_.rope ? reference::Rotary(y, c_.rope_base, 0, 1) : y;
  }
  Vector Backward(Matrix d_y) const {
    if (c_.rope) d_y = reference::Rotary(d_y, c_.rope_base, 0, -1);
    if (!normalised_) return d_y.values();
    return reference::HeadNormBackward<double>(d_y.values(), x_.values(), {},
                                               inv_norm_, 1, c_.head_dim)
        .d_x;
  }

 private:
  const Case& c_;
  bool normalised_;
  Matrix x_;
  Vector inv_norm_;
};

Matrix Sum(Matrix a, const Matrix& b) {
  for (size_t i = 0; i < a.values().size(); ++i) a.values()[i] += b.values()[i];
  return a;
}

// out = A V.
void RunSoftmax(const Case& c, const reference::Mask& mask, Head* head) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(c.head_dim));
  Entry q_entry(c, c.qk_norm, head->Rows("q"));
  Entry k_entry(c, c.qk_norm, head->Rows("k"));
  const Matrix q = q_entry.Forward();
  const Matrix k = k_entry.Forward();
  const Matrix v = head->Rows("v");
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
void RunCubit(const Case& c, const reference::Mask& mask, Head* head) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(c.head_dim));
  Entry q_entry(c, c.qk_norm, head->Rows("q"));
  Entry k_entry(c, c.qk_norm, head->Rows("k"));
  Entry r_entry(c, false, head->Rows("r"));
  const Matrix q = q_entry.Forward();
  const Matrix k = k_entry.Forward();
  const Matrix r = r_entry.Forward();
  const Matrix v = head->Rows("v");
  const reference::KrrParameters<double> parameters = {
      head->Parameter("scale"), head->Parameter("lower"),
      head->Parameter("upper_scale"), head->Parameter("log_lambda")};
  const Vector lrr = c.lrr ? head->Scalars("lrr_logits") : Vector();
  const auto factors = reference::KrrFactorsForward(r, lrr, parameters);
  const auto solution =
      reference::KrrSolveForward(r, v, factors, parameters.log_lambda, mask);
  const auto attention =
      reference::AttentionForward(q, k, solution.x, scale, mask);
  head->Write("out", attention.out.values());
  head->Write("lse_attention", attention.lse);
  head->Write("x", solution.x.values());
  head->Write("lse_kernel", solution.lse);

  const auto d = reference::AttentionBackward(q, k, solution.x, scale, mask,
                                              head->Rows("dout"));
  const auto d_solve = reference::KrrSolveBackward(
      r, v, factors, parameters.log_lambda, mask, solution.x, d.d_v);
  const auto d_factors = reference::KrrFactorsBackward(
      r, lrr, parameters, d_solve.d_column_scale, d_solve.d_value_scale);
  head->Write("dq", q_entry.Backward(d.d_q));
  head->Write("dk", k_entry.Backward(d.d_k));
  head->Write("dr", r_entry.Backward(Sum(d_solve.d_r, d_factors.d_r)));
  head->Write("dv", d_solve.d_v.values());
  head->Write("dlrr_logits", c.lrr ? d_factors.d_lrr_logits
                                   : Vector(static_cast<size_t>(c.seq_len)));
  head->Add("dscale", d_factors.d_scale);
  head->Add("dlower", d_factors.d_lower);
  head->Add("dupper_scale", d_factors.d_upper_scale);
  head->Add("dlog_lambda", d_solve.d_log_lambda);
}

// out = A X, (I + diag(beta) W) X = V.
void RunDeltaFormer(const Case& c, const reference::Mask& mask, Head* head) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(c.head_dim));
  Entry q_entry(c, c.qk_norm, head->Rows("q"));
  Entry k_entry(c, c.qk_norm, head->Rows("k"));
  Entry w_entry(c, false, head->Rows("w"));
  const Matrix q = q_entry.Forward();
  const Matrix k = k_entry.Forward();
  const Matrix w = w_entry.Forward();
  const Vector beta = head->Scalars("beta");
  const auto solution =
      reference::DeltaSolveForward(w, k, head->Rows("v"), beta, scale, mask);
  const auto attention =
      reference::AttentionForward(q, k, solution.x, scale, mask);
  head->Write("out", attention.out.values());
  head->Write("lse_attention", attention.lse);
  head->Write("x", solution.x.values());
  Vector lse = solution.lse;
  WriteEmptyRowsAsZero(&lse);
  head->Write("lse_kernel", lse);

  const auto d = reference::AttentionBackward(q, k, solution.x, scale, mask,
                                              head->Rows("dout"));
  const auto d_solve =
      reference::DeltaSolveBackward(w, k, beta, scale, mask, solution.x, d.d_v);
  head->Write("dq", q_entry.Backward(d.d_q));
  head->Write("dk", k_entry.Backward(Sum(d.d_k, d_solve.d_k)));
  head->Write("dw", w_entry.Backward(d_solve.d_w));
  head->Write("dv", d_solve.d_v.values());
  head->Write("dbeta", d_solve.d_beta);
}

}  // namespace

void WriteEmptyRowsAsZero(std::vector<double>* lse) {
  std::replace(lse->begin(), lse->end(),
               -std::numeric_limits<double>::infinity(), 0.0);
}

Results RunReference(const Case& c) {
  Results results;
  for (int64_t b = 0; b < c.batch; ++b) {
    reference::Mask mask;
    mask.causal = c.causal;
    if (c.document_mask) {
      const auto begin = c.input("segment_ids").values.begin() + b * c.seq_len;
      mask.segments.assign(begin, begin + c.seq_len);
    }
    for (int64_t h = 0; h < c.num_heads; ++h) {
      Head head(c, b, h, &results);
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
  return results;
}

}  // namespace golden
}  // namespace cubit
