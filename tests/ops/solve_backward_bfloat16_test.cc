// SPDX-License-Identifier: Apache-2.0
//
// The backward of the solves of bf16 tensors on a GPU, in the device's own
// memory, against the references in double on the same bf16 inputs. The measure
// is the same computation done plainly: weights, Y, dS and results rounded to
// bf16, sums in fp32.

#include <cmath>
#include <cstdint>
#include <map>
#include <ostream>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "ops/delta_solve.h"
#include "ops/delta_solve_reference.h"
#include "ops/krr.h"
#include "ops/krr_reference.h"
#include "ops/rotary.h"
#include "ops/rotary_reference.h"
#include "runtime/bfloat16.h"
#include "runtime/device.h"
#include "tests/ops/device_array.h"
#include "tests/testing/numerics.h"

namespace cubit {
namespace {

using ::cubit::testing::DeviceArray;
using ::cubit::testing::IsClose;
using ::cubit::testing::RandomBFloat16;
using ::cubit::testing::RelativeError;
using ::cubit::testing::Rounded;
using ::cubit::testing::ToDouble;
using reference::Matrix;
using reference::Vector;

constexpr int64_t kHeads = 2;
constexpr float kLogLambda = -23;
constexpr double kRotaryBase = 10000.0;

struct Case {
  const char* name;
  int64_t seq_len;
  int64_t head_dim;
  double norm;  // of a row of r, or of w and k
  std::vector<int32_t> documents = {};
  int64_t lead = 0;  // elements before every tensor: 1 unaligns all rows
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

template <typename T>
using Results = std::map<std::string, std::vector<T>>;

template <typename T>
void Append(const std::vector<T>& values, std::vector<T>* target) {
  target->insert(target->end(), values.begin(), values.end());
}

Matrix<float> RoundedMatrix(Matrix<float> m) {
  m.values() = Rounded(std::move(m.values()));
  return m;
}

Matrix<double> Widened(const Matrix<float>& m) {
  return Matrix<double>(m.rows(), m.columns(), ToDouble(m.values()));
}

// Y of L^T Y = d_x, each row rounded before it is used.
Matrix<float> PlainAdjoint(const Matrix<float>& l, Matrix<float> d_x) {
  for (int64_t i = l.rows() - 1; i >= 0; --i) {
    for (int64_t c = 0; c < d_x.columns(); ++c) {
      d_x(i, c) = ToFloat(ToBFloat16(d_x(i, c) / l(i, i)));
      for (int64_t j = 0; j < i; ++j) d_x(j, c) -= l(i, j) * d_x(i, c);
    }
  }
  return d_x;
}

class BFloat16Backward : public ::testing::TestWithParam<Case> {
 protected:
  BFloat16Backward() : segments_(static_cast<size_t>(c_.seq_len)) {
    for (const int64_t start : c_.documents) {
      for (int64_t t = start; t < c_.seq_len; ++t) {
        ++segments_[static_cast<size_t>(t)];
      }
    }
    for (int64_t h = 0; h < kHeads; ++h) {
      const Matrix<float> r = Head(q_, h);
      for (int64_t t = 0; t < c_.seq_len; ++t) {
        column_scale_.push_back(
            1 / std::sqrt(reference::RowDot(r, t, r, t) + 1e-12f));
        value_scale_.push_back(0.75f + 0.5f * static_cast<float>(t % 2));
      }
    }
  }

  reference::Mask ReferenceMask() const {
    reference::Mask mask;
    if (!c_.documents.empty()) mask.segments = segments_;
    return mask;
  }
  AttentionMask OpMask(const DeviceArray& segments) const {
    AttentionMask mask;
    if (!c_.documents.empty()) {
      mask.segment_ids = segments.view().Reshape({1, c_.seq_len});
    }
    return mask;
  }

  // Head h of [T, H, K] as [T, K].
  Matrix<float> Head(const std::vector<float>& x, int64_t h) const {
    Matrix<float> matrix(c_.seq_len, c_.head_dim);
    for (int64_t t = 0; t < c_.seq_len; ++t) {
      for (int64_t i = 0; i < c_.head_dim; ++i) {
        matrix(t, i) =
            x[static_cast<size_t>((t * kHeads + h) * c_.head_dim + i)];
      }
    }
    return matrix;
  }
  // Head h of per-token scalars: [H, T], and beta's [T, H].
  Vector<float> Scalars(const std::vector<float>& x, int64_t h) const {
    return Vector<float>(x.begin() + h * c_.seq_len,
                         x.begin() + (h + 1) * c_.seq_len);
  }
  Vector<float> Beta(int64_t h) const {
    Vector<float> beta;
    for (int64_t t = 0; t < c_.seq_len; ++t) {
      beta.push_back(beta_[static_cast<size_t>(t * kHeads + h)]);
    }
    return beta;
  }
  // [T, H, K] as [H, T, K].
  std::vector<float> ByHead(const std::vector<float>& x, int64_t dim) const {
    std::vector<float> result;
    for (int64_t h = 0; h < kHeads; ++h) {
      for (int64_t t = 0; t < c_.seq_len; ++t) {
        const auto row = x.begin() + (t * kHeads + h) * dim;
        result.insert(result.end(), row, row + dim);
      }
    }
    return result;
  }
  // The way back.
  std::vector<float> ByToken(const std::vector<double>& x) const {
    std::vector<float> result;
    for (int64_t t = 0; t < c_.seq_len; ++t) {
      for (int64_t h = 0; h < kHeads; ++h) {
        const auto row = x.begin() + (h * c_.seq_len + t) * c_.head_dim;
        result.insert(result.end(), row, row + c_.head_dim);
      }
    }
    return result;
  }

  DeviceArray Rows(const std::vector<float>& values, int64_t dim) const {
    return DeviceArray(DType::kBFloat16, {1, c_.seq_len, kHeads * dim}, values,
                       c_.lead);
  }
  DeviceArray Unwritten(int64_t dim) const {
    return DeviceArray(DType::kBFloat16, {1, c_.seq_len, kHeads * dim},
                       c_.lead);
  }
  DeviceArray PerToken() const {
    return DeviceArray(DType::kFloat32, {1, kHeads, c_.seq_len});
  }
  DeviceArray PerToken(const std::vector<float>& values) const {
    return DeviceArray(DType::kFloat32, {1, kHeads, c_.seq_len}, values);
  }
  static HeadTensor Heads(const DeviceArray& x) {
    return HeadsOf(x.view(), 0, kHeads, x.view().dim(2) / kHeads);
  }

  static void ExpectWithinTwicePlain(const Results<float>& got,
                                     const Results<float>& plain,
                                     const Results<double>& exact) {
    for (const auto& [name, want] : exact) {
      const double error = RelativeError(ToDouble(plain.at(name)), want);
      // One number a head, a sum that cancels: what the plain one happens to
      // miss by says little.
      const double floor = name == "d_log_lambda" ? 1.0 / 64 : 1e-6;
      EXPECT_TRUE(IsClose(ToDouble(got.at(name)), want, 2 * error + floor))
          << name << ", plain error " << error;
    }
  }

  const Case& c_ = GetParam();
  const int64_t count_ = c_.seq_len * kHeads * c_.head_dim;
  const double stddev_ = c_.norm / std::sqrt(static_cast<double>(c_.head_dim));
  const std::vector<float> q_ = RandomBFloat16("q", count_, stddev_);
  const std::vector<float> k_ = RandomBFloat16("k", count_, stddev_);
  const std::vector<float> v_ = RandomBFloat16("v", count_);
  const std::vector<float> d_x_ = RandomBFloat16("d_x", count_);
  const std::vector<float> beta_ =
      RandomBFloat16("beta", c_.seq_len* kHeads, 0.5);
  std::vector<int32_t> segments_;
  std::vector<float> column_scale_, value_scale_;
};

class KrrBFloat16Backward : public BFloat16Backward {
 protected:
  reference::KrrFactors<double> Factors(int64_t h) const {
    return {ToDouble(Scalars(column_scale_, h)),
            ToDouble(Scalars(value_scale_, h))};
  }

  // The way back through the norm and the rotation that made r, for scale 1:
  // `d_columns` become the shares of d_scale.
  template <typename T>
  static void GoThroughBefore(const Matrix<T>& r, Matrix<T>* d_r,
                              Vector<T>* d_columns) {
    const auto d = reference::KrrFactorsBackward(
        r, {}, reference::KrrParameters<T>(), *d_columns, {});
    for (size_t i = 0; i < d_r->values().size(); ++i) {
      d_r->values()[i] += d.d_r.values()[i];
    }
    *d_r = reference::Rotary(*d_r, kRotaryBase, 0, -1);
    for (int64_t t = 0; t < r.rows(); ++t) {
      (*d_columns)[static_cast<size_t>(t)] /=
          std::sqrt(reference::RowDot(r, t, r, t) + T(1e-12));
    }
  }

  // `before`: through norm and rotation.
  Results<double> Exact(bool before) const {
    Results<double> exact;
    for (int64_t h = 0; h < kHeads; ++h) {
      const Matrix<double> r = Widened(Head(q_, h));
      const Matrix<double> v = Widened(Head(v_, h));
      const auto forward = reference::KrrSolveForward<double>(
          r, v, Factors(h), kLogLambda, ReferenceMask());
      Append(forward.x.values(), &exact["x"]);
      Append(forward.lse, &exact["lse"]);
      auto d = reference::KrrSolveBackward<double>(r, v, Factors(h), kLogLambda,
                                                   ReferenceMask(), forward.x,
                                                   Widened(Head(d_x_, h)));
      if (before) GoThroughBefore(r, &d.d_r, &d.d_column_scale);
      Append(d.d_r.values(), &exact["d_r"]);
      Append(d.d_v.values(), &exact["d_v"]);
      Append(d.d_column_scale, &exact["d_column_scale"]);
      Append(d.d_value_scale, &exact["d_value_scale"]);
      exact["d_log_lambda"].push_back(d.d_log_lambda);
    }
    return exact;
  }

  void PlainHead(int64_t h, const Matrix<float>& x, bool before,
                 Results<float>* plain) const {
    const Matrix<float> r = Head(q_, h);
    const Vector<float> columns = Scalars(column_scale_, h);
    const Vector<float> values = Scalars(value_scale_, h);
    Matrix<float> keys = r;
    for (int64_t j = 0; j < c_.seq_len; ++j) {
      for (int64_t c = 0; c < c_.head_dim; ++c) {
        keys(j, c) *= columns[static_cast<size_t>(j)];
      }
    }
    keys = RoundedMatrix(keys);
    const Matrix<float> p = RoundedMatrix(
        reference::SoftmaxOfScores(reference::ScaledProduct(1.0, r, keys),
                                   ReferenceMask())
            .p);
    const float lambda = std::exp(kLogLambda);
    const Matrix<float> y =
        PlainAdjoint(reference::AddToDiagonal(p, lambda), Head(d_x_, h));
    const Matrix<float> d_scores = RoundedMatrix(
        reference::SoftmaxBackward(p, reference::ScaledProduct(-1.0, y, x)));
    Matrix<float> d_r = reference::Multiply(d_scores, keys);
    const Matrix<float> d_keys =
        reference::Multiply(reference::Transpose(d_scores), r);
    Matrix<float> d_v = y;
    const Matrix<float> v = Head(v_, h);
    Vector<float> d_columns;
    float y_dot_x = 0;
    for (int64_t t = 0; t < c_.seq_len; ++t) {
      const size_t i = static_cast<size_t>(t);
      for (int64_t c = 0; c < c_.head_dim; ++c) {
        d_r(t, c) += columns[i] * d_keys(t, c);
        d_v(t, c) *= values[i];
      }
      d_columns.push_back(reference::RowDot(r, t, d_keys, t));
      (*plain)["d_value_scale"].push_back(reference::RowDot(y, t, v, t));
      y_dot_x += reference::RowDot(y, t, x, t);
    }
    if (before) GoThroughBefore(r, &d_r, &d_columns);
    Append(d_columns, &(*plain)["d_column_scale"]);
    Append(RoundedMatrix(d_r).values(), &(*plain)["d_r"]);
    Append(RoundedMatrix(d_v).values(), &(*plain)["d_v"]);
    (*plain)["d_log_lambda"].push_back(-lambda * y_dot_x);
  }

  // `sums` [H K] are those of what was stored, rows [T, H K], and one.
  void ExpectSumsOf(const std::vector<float>& rows,
                    const std::vector<float>& sums) const {
    std::vector<double> want(sums.size(), 1.0);
    for (size_t i = 0; i < rows.size(); ++i) {
      want[i % sums.size()] += static_cast<double>(rows[i]);
    }
    EXPECT_TRUE(IsClose(ToDouble(sums), want, 2e-6));
  }

  // From x [T, H, K]. Y takes the memory of d_x, as in training.
  Results<float> Run(const std::vector<float>& x,
                     const std::vector<double>& lse, bool before) const {
    const std::vector<float> ones(static_cast<size_t>(kHeads * c_.head_dim),
                                  1.0f);
    const DeviceArray d_r_sums(DType::kFloat32, {kHeads * c_.head_dim}, ones);
    const DeviceArray d_v_sums(DType::kFloat32, {kHeads * c_.head_dim}, ones);
    const DeviceArray r = Rows(q_, c_.head_dim), v = Rows(v_, c_.head_dim),
                      x_device = Rows(x, c_.head_dim),
                      d_x = Rows(d_x_, c_.head_dim),
                      d_r = Unwritten(c_.head_dim),
                      d_v = Unwritten(c_.head_dim),
                      columns = PerToken(column_scale_),
                      values = PerToken(value_scale_),
                      lse_device =
                          PerToken(std::vector<float>(lse.begin(), lse.end())),
                      d_columns = PerToken(), d_values = PerToken(),
                      segments(segments_);
    const std::vector<float> lambdas(kHeads, kLogLambda);
    const DeviceArray log_lambda(DType::kFloat32, {kHeads}, lambdas);
    const DeviceArray d_log_lambda(DType::kFloat32, {kHeads},
                                   std::vector<float>(kHeads, 0.0f));
    const DeviceArray table(DType::kFloat32, {c_.seq_len, c_.head_dim});
    Stream stream;
    RotaryTable(kRotaryBase, table.view(), stream);
    KrrBefore passes;
    passes.normalised = before;
    if (before) passes.rotary_table = table.view();
    KrrSolveBackward(
        Heads(r), Heads(v), columns.view(), values.view(), log_lambda.view(),
        OpMask(segments), SolvePrecision::kBFloat16x3, passes, Heads(x_device),
        lse_device.view(), Heads(d_x), Heads(d_x), Heads(d_r), Heads(d_v),
        d_columns.view(), d_values.view(), d_log_lambda.view(),
        /*health=*/Tensor(), d_r_sums.view(), d_v_sums.view(), stream);
    stream.Synchronize();
    ExpectSumsOf(d_r.values(), d_r_sums.values());
    ExpectSumsOf(d_v.values(), d_v_sums.values());
    return {{"d_r", ByHead(d_r.values(), c_.head_dim)},
            {"d_v", ByHead(d_v.values(), c_.head_dim)},
            {"d_column_scale", d_columns.values()},
            {"d_value_scale", d_values.values()},
            {"d_log_lambda", d_log_lambda.values()}};
  }
};

TEST_P(KrrBFloat16Backward, ErrorIsAtMostTwiceThePlainOneAndRunsAreEqual) {
  for (const bool before : {false, true}) {
    SCOPED_TRACE(before ? "through norm and rotation" : "the solve alone");
    Results<double> exact = Exact(before);
    const std::vector<float> x = Rounded(ByToken(exact.at("x")));
    const Results<float> got = Run(x, exact.at("lse"), before);
    EXPECT_EQ(got, Run(x, exact.at("lse"), before));
    exact.erase("x");
    exact.erase("lse");
    Results<float> plain;
    for (int64_t h = 0; h < kHeads; ++h) {
      PlainHead(h, Head(x, h), before, &plain);
    }
    ExpectWithinTwicePlain(got, plain, exact);
  }
}

class KrrBFloat16Health : public KrrBFloat16Backward {
 protected:
  enum class Spoilt { kNothing, kX, kLse };

  // Of the backward of a solve, and of the pass for it alone, [3] each; after a
  // NaN has come into the last row.
  struct Healths {
    std::vector<float> got, want;
  };
  Healths HealthAfter(Spoilt spoilt) const {
    const DeviceArray r = Rows(q_, c_.head_dim), v = Rows(v_, c_.head_dim),
                      d_x = Rows(d_x_, c_.head_dim),
                      d_r = Unwritten(c_.head_dim),
                      d_v = Unwritten(c_.head_dim),
                      columns = PerToken(column_scale_),
                      values = PerToken(value_scale_), d_columns = PerToken(),
                      d_values = PerToken(), segments(segments_);
    const DeviceArray log_lambda(DType::kFloat32, {kHeads},
                                 {kLogLambda, kLogLambda + 1});
    const DeviceArray d_log_lambda(DType::kFloat32, {kHeads}, {0, 0});
    const DeviceArray got(DType::kFloat32, {3}), want(DType::kFloat32, {3});
    DeviceArray x = Unwritten(c_.head_dim), lse = PerToken();
    Stream stream;
    KrrSolveForward(Heads(r), Heads(v), columns.view(), values.view(),
                    log_lambda.view(), OpMask(segments),
                    SolvePrecision::kBFloat16x3, /*first_row=*/0, Heads(x),
                    lse.view(), stream);
    stream.Synchronize();
    if (spoilt == Spoilt::kX) SpoilLast(&x);
    if (spoilt == Spoilt::kLse) SpoilLast(&lse);
    KrrHealth(Heads(r), Heads(v), columns.view(), values.view(),
              log_lambda.view(), Heads(x), lse.view(), want.view(), stream);
    KrrSolveBackward(
        Heads(r), Heads(v), columns.view(), values.view(), log_lambda.view(),
        OpMask(segments), SolvePrecision::kBFloat16x3, {}, Heads(x), lse.view(),
        Heads(d_x), Heads(d_x), Heads(d_r), Heads(d_v), d_columns.view(),
        d_values.view(), d_log_lambda.view(), got.view(),
        /*d_r_sums=*/Tensor(), /*d_v_sums=*/Tensor(), stream);
    stream.Synchronize();
    return {got.values(), want.values()};
  }

  static void SpoilLast(DeviceArray* x) {
    std::vector<float> values = x->values();
    values.back() = std::nanf("");
    x->Fill(values);
  }
};

// The same inputs, whose products have no rounding: sums of another order and
// another exponential.
TEST_P(KrrBFloat16Health, IsThatOfThePassForIt) {
  const Healths health = HealthAfter(Spoilt::kNothing);
  const double roundings = 4 + c_.norm * static_cast<double>(c_.head_dim) +
                           2 * std::log(static_cast<double>(c_.seq_len));
  EXPECT_NEAR(health.got[0], health.want[0],
              roundings * 0x1p-23 * health.want[0]);
  EXPECT_EQ(health.got[1], health.want[1]);
  EXPECT_EQ(health.got[2], health.want[2]);
}

TEST_P(KrrBFloat16Health, NanIsNotHidden) {
  const Healths of_x = HealthAfter(Spoilt::kX);
  EXPECT_FALSE(std::isnan(of_x.got[0]));
  EXPECT_TRUE(std::isnan(of_x.got[1]));
  const Healths of_lse = HealthAfter(Spoilt::kLse);
  EXPECT_TRUE(std::isnan(of_lse.got[0]));
  EXPECT_EQ(of_lse.got[1], of_lse.want[1]);
}

class DeltaBFloat16Backward : public BFloat16Backward {
 protected:
  float Scale() const { return 1 / std::sqrt(static_cast<float>(c_.head_dim)); }

  Results<double> Exact() const {
    Results<double> exact;
    const double scale = static_cast<double>(Scale());
    for (int64_t h = 0; h < kHeads; ++h) {
      const Matrix<double> w = Widened(Head(q_, h));
      const Matrix<double> k = Widened(Head(k_, h));
      const Vector<double> beta = ToDouble(Beta(h));
      const auto forward = reference::DeltaSolveForward(
          w, k, Widened(Head(v_, h)), beta, scale, ReferenceMask());
      Append(forward.x.values(), &exact["x"]);
      Append(forward.lse, &exact["lse"]);
      const auto d =
          reference::DeltaSolveBackward(w, k, beta, scale, ReferenceMask(),
                                        forward.x, Widened(Head(d_x_, h)));
      Append(d.d_w.values(), &exact["d_w"]);
      Append(d.d_k.values(), &exact["d_k"]);
      Append(d.d_v.values(), &exact["d_v"]);
      Append(d.d_beta, &exact["d_beta"]);
    }
    return exact;
  }

  void PlainHead(int64_t h, const Matrix<float>& x,
                 Results<float>* plain) const {
    const Matrix<float> w = Head(q_, h);
    const Matrix<float> k = Head(k_, h);
    const Vector<float> beta = Beta(h);
    reference::Mask mask = ReferenceMask();
    mask.strict = true;
    const double scale = static_cast<double>(Scale());
    const Matrix<float> p = RoundedMatrix(
        reference::SoftmaxOfScores(reference::ScaledProduct(scale, w, k), mask)
            .p);
    const Matrix<float> y = PlainAdjoint(
        RoundedMatrix(reference::DeltaSystem(p, beta)), Head(d_x_, h));
    Matrix<float> d_p = reference::ScaledProduct(-1.0, y, x);
    std::vector<float> d_beta;
    for (int64_t i = 0; i < c_.seq_len; ++i) {
      d_beta.push_back(reference::RowDot(p, i, d_p, i));
      for (int64_t j = 0; j < c_.seq_len; ++j) {
        d_p(i, j) *= beta[static_cast<size_t>(i)];
      }
    }
    const Matrix<float> d_scores =
        RoundedMatrix(reference::SoftmaxBackward(p, d_p));
    const Matrix<float> d_w =
        reference::Scaled(scale, reference::Multiply(d_scores, k));
    const Matrix<float> d_k = reference::Scaled(
        scale, reference::Multiply(reference::Transpose(d_scores), w));
    Append(RoundedMatrix(d_w).values(), &(*plain)["d_w"]);
    Append(RoundedMatrix(d_k).values(), &(*plain)["d_k"]);
    Append(y.values(), &(*plain)["d_v"]);
    Append(Rounded(d_beta), &(*plain)["d_beta"]);
  }

  Results<float> Run(const std::vector<float>& x,
                     const std::vector<double>& lse) const {
    const DeviceArray w = Rows(q_, c_.head_dim), k = Rows(k_, c_.head_dim),
                      v = Rows(v_, c_.head_dim), beta = Rows(beta_, 1),
                      x_device = Rows(x, c_.head_dim),
                      d_x = Rows(d_x_, c_.head_dim),
                      d_w = Unwritten(c_.head_dim),
                      d_k = Unwritten(c_.head_dim),
                      d_v = Unwritten(c_.head_dim), d_beta = Unwritten(1),
                      lse_device =
                          PerToken(std::vector<float>(lse.begin(), lse.end())),
                      segments(segments_);
    Stream stream;
    DeltaSolveBackward(Heads(w), Heads(k), Heads(v), Heads(beta), Scale(),
                       OpMask(segments), SolvePrecision::kBFloat16x3,
                       Heads(x_device), lse_device.view(), Heads(d_x),
                       Heads(d_x), Heads(d_w), Heads(d_k), Heads(d_v),
                       Heads(d_beta), stream);
    stream.Synchronize();
    return {{"d_w", ByHead(d_w.values(), c_.head_dim)},
            {"d_k", ByHead(d_k.values(), c_.head_dim)},
            {"d_v", ByHead(d_v.values(), c_.head_dim)},
            {"d_beta", ByHead(d_beta.values(), 1)}};
  }
};

TEST_P(DeltaBFloat16Backward, ErrorIsAtMostTwiceThePlainOneAndRunsAreEqual) {
  Results<double> exact = Exact();
  const std::vector<float> x = Rounded(ByToken(exact.at("x")));
  const Results<float> got = Run(x, exact.at("lse"));
  EXPECT_EQ(got, Run(x, exact.at("lse")));
  exact.erase("x");
  exact.erase("lse");
  Results<float> plain;
  for (int64_t h = 0; h < kHeads; ++h) PlainHead(h, Head(x, h), &plain);
  ExpectWithinTwicePlain(got, plain, exact);
}

const Case kCases[] = {{"BelowBlock", 63, 64, 4},
                       {"BlockAndOne", 129, 128, 4},
                       {"Narrow", 150, 24, 2},
                       {"Eighty", 200, 80, 4},
                       {"Long", 330, 64, 4},
                       {"Documents", 300, 64, 4, {1, 60, 64, 130, 250}},
                       {"Unaligned", 200, 64, 4, {}, 1}};

INSTANTIATE_TEST_SUITE_P(Cases, KrrBFloat16Backward,
                         ::testing::ValuesIn(kCases));
INSTANTIATE_TEST_SUITE_P(Flat, KrrBFloat16Backward,
                         ::testing::Values(Case{"Flat", 330, 64, 0.5},
                                           Case{"FlatWide", 300, 128, 0.5}));
INSTANTIATE_TEST_SUITE_P(Cases, KrrBFloat16Health, ::testing::ValuesIn(kCases));
// More blocks of rows than a GPU works on at a time.
INSTANTIATE_TEST_SUITE_P(Long, KrrBFloat16Health,
                         ::testing::Values(Case{"Long", 14000, 64, 4},
                                           Case{"LongWide", 14000, 128, 4}));
INSTANTIATE_TEST_SUITE_P(Cases, DeltaBFloat16Backward,
                         ::testing::ValuesIn(kCases));

}  // namespace
}  // namespace cubit
