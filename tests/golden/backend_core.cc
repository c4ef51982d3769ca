// SPDX-License-Identifier: Apache-2.0

#include <cmath>
#include <utility>

#include "ops/attention.h"
#include "ops/delta_solve.h"
#include "ops/elementwise.h"
#include "ops/head_norm.h"
#include "ops/krr.h"
#include "ops/rotary.h"
#include "runtime/device.h"
#include "runtime/memory.h"
#include "runtime/status_macros.h"
#include "tests/golden/mixer_core.h"

namespace cubit {
namespace golden {
namespace {

// A projection inside the core, [B, T, H, K].
struct Projection {
  HeadTensor rows;    // as the products see them
  HeadTensor normed;  // before the rotation, if normalised
  Tensor inv_norm;    // [B, H, T], if normalised
  HeadTensor d_rows;
};

// The arrays of a case in device memory, in the layout of the file
// ([B, H, T, K], which a head view strides over).
class Core {
 public:
  Core(const Case& c, const Precision& precision, Arena arena, Stream* stream);

  void RunSoftmax();
  void RunCubit();
  void RunDeltaFormer();
  Results TakeResults() { return std::move(results_); }

  // Upper bound of what a core allocates.
  static int64_t ArenaBytes(const Case& c);

 private:
  Tensor New(Shape shape, DType dtype = DType::kFloat32) {
    return arena_.Allocate(dtype, shape);
  }
  // [B, H, T]: statistics, in fp32; and per-token activations.
  Tensor NewScalars(DType dtype = DType::kFloat32) {
    return New({c_.batch, c_.num_heads, c_.seq_len}, dtype);
  }
  HeadTensor NewRows() {
    return Heads(New({c_.batch, c_.num_heads, c_.seq_len, c_.head_dim},
                     precision_.dtype));
  }
  // Head view of [B, H, T, K], or of [B, H, T] with K = 1.
  HeadTensor Heads(const Tensor& array) const;
  // An input as fp32 (exact: that is how the file stores it), and activations
  // in their dtype.
  Tensor Load(const std::string& name);
  HeadTensor LoadHeads(const std::string& name);
  template <typename T>
  Tensor Copy(const Array& array);
  void Write(const std::string& name, const void* data, DType dtype,
             int64_t count);
  void Write(const std::string& name, const Tensor& x) {
    Write(name, x.raw(), x.dtype(), x.num_elements());
  }
  void Write(const std::string& name, const HeadTensor& x) {
    Write(name, x.data, x.dtype,
          x.batch * x.num_heads * x.seq_len * x.head_dim);
  }

  // (Norm and) rotation of an input, and the way back of its gradient, which
  // is then written.
  Projection Enter(const std::string& name, bool normalised);
  void Leave(const std::string& d_name, const Projection& p);
  // out = A values; results out, lse_attention, d_q, d_k. Returns d_values.
  HeadTensor Attend(const Projection& q, const Projection& k,
                    const HeadTensor& values);

  const Case& c_;
  const Precision precision_;
  Arena arena_;
  Stream& stream_;
  AttentionMask mask_;
  float scale_;    // of the logits
  Tensor rotary_;  // [T, K]
  Results results_;
};

Core::Core(const Case& c, const Precision& precision, Arena arena,
           Stream* stream)
    : c_(c),
      precision_(precision),
      arena_(std::move(arena)),
      stream_(*stream),
      scale_(static_cast<float>(1.0 /
                                std::sqrt(static_cast<double>(c.head_dim)))) {
  mask_.causal = c.causal;
  if (c.document_mask)
    mask_.segment_ids = Copy<int32_t>(c.input("segment_ids"));
  if (!c.rope) return;
  rotary_ = New({c.seq_len, c.head_dim});
  RotaryTable(c.rope_base, rotary_, stream_);
}

int64_t Core::ArenaBytes(const Case& c) {
  constexpr int64_t kTensors = 64;  // of each kind
  constexpr int64_t kAlignment = 256;
  const int64_t rows = c.batch * c.num_heads * c.seq_len;
  return kTensors *
         (SizeOf(DType::kFloat32) * (rows * c.head_dim + rows + c.num_heads) +
          3 * kAlignment);
}

HeadTensor Core::Heads(const Tensor& array) const {
  HeadTensor view;
  view.data = array.raw();
  view.dtype = array.dtype();
  view.batch = c_.batch;
  view.seq_len = c_.seq_len;
  view.num_heads = c_.num_heads;
  view.head_dim = array.shape().rank() == 4 ? c_.head_dim : 1;
  view.seq_stride = view.head_dim;
  view.head_stride = c_.seq_len * view.head_dim;
  view.batch_stride = c_.num_heads * view.head_stride;
  return view;
}

template <typename T>
Tensor Core::Copy(const Array& array) {
  const std::vector<T> host(array.values.begin(), array.values.end());
  Shape shape;
  for (int64_t extent : array.shape) shape.Append(extent);
  const Tensor device = New(shape, DTypeOf<T>::kValue);
  CopyToDevice(device.raw(), host.data(), device.size_bytes(), stream_);
  stream_.Synchronize();
  return device;
}

Tensor Core::Load(const std::string& name) {
  return Copy<float>(c_.input(name));
}

HeadTensor Core::LoadHeads(const std::string& name) {
  const Tensor fp32 = Load(name);
  if (precision_.dtype == DType::kFloat32) return Heads(fp32);
  const Tensor rounded = New(fp32.shape(), precision_.dtype);
  Convert(fp32, rounded, stream_);
  return Heads(rounded);
}

void Core::Write(const std::string& name, const void* data, DType dtype,
                 int64_t count) {
  ConstTensor values(data, dtype, {count});
  if (dtype != DType::kFloat32) {
    const Tensor fp32 = New({count});
    Convert(values, fp32, stream_);
    values = fp32;
  }
  std::vector<float> host(static_cast<size_t>(count));
  CopyToHost(host.data(), values.raw(), values.size_bytes(), stream_);
  stream_.Synchronize();
  results_[name].assign(host.begin(), host.end());
}

Projection Core::Enter(const std::string& name, bool normalised) {
  Projection p;
  p.rows = LoadHeads(name);
  p.d_rows = NewRows();
  if (normalised) {
    p.inv_norm = NewScalars();
    HeadNormForward({}, p.rows, p.inv_norm, stream_);
    p.normed = NewRows();
    const int64_t bytes = c_.batch * p.rows.batch_stride * SizeOf(p.rows.dtype);
    CopyOnDevice(p.normed.data, p.rows.data, bytes, stream_);
  }
  if (c_.rope) RotaryForward(rotary_, 0, p.rows, stream_);
  return p;
}

void Core::Leave(const std::string& d_name, const Projection& p) {
  if (c_.rope) RotaryBackward(rotary_, 0, p.d_rows, stream_);
  if (!p.normed.empty()) {
    HeadNormBackward(p.normed, {}, p.inv_norm, p.d_rows, {}, stream_);
  }
  Write(d_name, p.d_rows);
}

HeadTensor Core::Attend(const Projection& q, const Projection& k,
                        const HeadTensor& values) {
  const HeadTensor out = NewRows();
  const Tensor lse = NewScalars();
  AttentionForward(q.rows, k.rows, values, scale_, mask_, out, lse, stream_);
  Write("out", out);
  Write("lse_attention", lse);
  const HeadTensor d_out = LoadHeads("dout");
  const HeadTensor d_values = NewRows();
  AttentionBackward(q.rows, k.rows, values, out, lse, d_out, scale_, mask_, {},
                    q.d_rows, k.d_rows, d_values, NewScalars(), stream_);
  return d_values;
}

// out = A V.
void Core::RunSoftmax() {
  const Projection q = Enter("q", c_.qk_norm);
  const Projection k = Enter("k", c_.qk_norm);
  const HeadTensor d_v = Attend(q, k, LoadHeads("v"));
  Leave("dq", q);
  Leave("dk", k);
  Write("dv", d_v);
}

// out = A X, (P + lambda I) X = diag(s) V.
void Core::RunCubit() {
  const Projection q = Enter("q", c_.qk_norm);
  const Projection k = Enter("k", c_.qk_norm);
  Projection r;
  r.rows = LoadHeads("r");
  r.d_rows = NewRows();
  const HeadTensor v = LoadHeads("v");
  const Tensor scale = Load("scale");
  const Tensor log_lambda = Load("log_lambda");
  const HeadTensor lrr = c_.lrr ? LoadHeads("lrr_logits") : HeadTensor();
  const Tensor lower = c_.lrr ? Load("lower") : Tensor();
  const Tensor upper_scale = c_.lrr ? Load("upper_scale") : Tensor();
  const Tensor column_scale = NewScalars();
  const Tensor value_scale = NewScalars();
  const HeadTensor x = NewRows();
  const Tensor lse = NewScalars();
  KrrRotaryFactorsForward(rotary_, 0, r.rows, lrr, scale, lower, upper_scale,
                          column_scale, value_scale, stream_);
  KrrSolveForward(r.rows, v, column_scale, value_scale, log_lambda, mask_,
                  precision_.solve,
                  /*first_row=*/0, x, lse, stream_);
  const HeadTensor d_x = Attend(q, k, x);
  Write("x", x);
  Write("lse_kernel", lse);

  const HeadTensor d_v = NewRows();
  const Tensor d_scale_shares = NewScalars();
  const Tensor d_value_scale = NewScalars();
  const Tensor d_log_lambda = New({c_.num_heads});  // arenas start zero
  KrrSolveBackward(r.rows, v, column_scale, value_scale, log_lambda, mask_,
                   precision_.solve, {/*normalised=*/true, rotary_}, x, lse,
                   d_x, /*y=*/d_x, r.d_rows, d_v, d_scale_shares, d_value_scale,
                   d_log_lambda, /*health=*/Tensor(), /*d_r_sums=*/Tensor(),
                   /*d_v_sums=*/Tensor(), stream_);
  const Tensor d_lrr = NewScalars(precision_.dtype);
  const Tensor d_scale = New({c_.num_heads});
  const Tensor d_lower = New({c_.num_heads});
  const Tensor d_upper_scale = New({c_.num_heads});
  KrrScalarsBackward(lrr, upper_scale, d_scale_shares, d_value_scale,
                     c_.lrr ? Heads(d_lrr) : HeadTensor(), d_scale,
                     c_.lrr ? d_lower : Tensor(),
                     c_.lrr ? d_upper_scale : Tensor(), stream_);
  Leave("dq", q);
  Leave("dk", k);
  Write("dr", r.d_rows);
  Write("dv", d_v);
  Write("dlrr_logits", d_lrr);
  Write("dscale", d_scale);
  Write("dlower", d_lower);
  Write("dupper_scale", d_upper_scale);
  Write("dlog_lambda", d_log_lambda);
}

// out = A X, (I + diag(beta) W) X = V.
void Core::RunDeltaFormer() {
  const Projection q = Enter("q", c_.qk_norm);
  const Projection k = Enter("k", c_.qk_norm);
  const Projection w = Enter("w", false);
  const HeadTensor v = LoadHeads("v");
  const HeadTensor beta = LoadHeads("beta");
  const HeadTensor x = NewRows();
  const Tensor lse = NewScalars();
  DeltaSolveForward(w.rows, k.rows, v, beta, scale_, mask_, precision_.solve,
                    /*first_row=*/0, x, lse, stream_);
  const HeadTensor d_x = Attend(q, k, x);
  Write("x", x);
  Write("lse_kernel", lse);
  WriteEmptyRowsAsZero(&results_["lse_kernel"]);

  const HeadTensor d_solve_k = NewRows();
  const HeadTensor d_v = NewRows();
  const Tensor d_beta = NewScalars(precision_.dtype);
  DeltaSolveBackward(
      w.rows, k.rows, v, beta, scale_, mask_, precision_.solve, x, lse, d_x,
      /*y=*/d_x, w.d_rows, d_solve_k, d_v, Heads(d_beta), stream_);
  // The keys serve twice, and both ways back are linear.
  const Shape flat = {c_.batch * c_.num_heads * c_.seq_len * c_.head_dim};
  AddInPlace(ConstTensor(d_solve_k.data, precision_.dtype, flat),
             Tensor(k.d_rows.data, precision_.dtype, flat), stream_);
  Leave("dq", q);
  Leave("dk", k);
  Leave("dw", w);
  Write("dv", d_v);
  Write("dbeta", d_beta);
}

}  // namespace

absl::StatusOr<Results> RunBackend(const Case& c, const Precision& precision) {
  Stream stream;
  CUBIT_ASSIGN_OR_RETURN(
      Arena arena,
      Arena::Create(Core::ArenaBytes(c), MemoryCategory::kWorkspace));
  Core core(c, precision, std::move(arena), &stream);
  switch (c.mixer) {
    case Mixer::kSoftmax:
      core.RunSoftmax();
      break;
    case Mixer::kCubit:
      core.RunCubit();
      break;
    case Mixer::kDeltaFormer:
      core.RunDeltaFormer();
      break;
  }
  return core.TakeResults();
}

}  // namespace golden
}  // namespace cubit
