// SPDX-License-Identifier: Apache-2.0

#include "tests/golden/golden_file.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "hdf5.h"

#include "runtime/status_macros.h"

namespace cubit {
namespace golden {
namespace {

// Larger arrays than any real case: refuses sizes that a damaged file invents.
constexpr int64_t kMaxElements = int64_t{1} << 26;

// An HDF5 identifier, closed at the end of its scope.
class Id {
 public:
  using Close = herr_t (*)(hid_t);
  Id(hid_t id, Close close) : id_(id), close_(close) {}
  ~Id() {
    if (ok()) close_(id_);
  }
  Id(const Id&) = delete;
  Id& operator=(const Id&) = delete;

  bool ok() const { return id_ >= 0; }
  hid_t get() const { return id_; }

 private:
  hid_t id_;
  Close close_;
};

absl::Status Malformed(const std::string& path, const std::string& what) {
  return absl::InvalidArgumentError(
      absl::StrCat(path, " is not a file of golden values: ", what));
}

class Reader {
 public:
  explicit Reader(const std::string& path)
      : path_(path),
        file_(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose) {}

  bool ok() const { return file_.ok(); }
  absl::StatusOr<int64_t> Integer(const char* name) const;
  absl::StatusOr<bool> Boolean(const char* name) const;
  absl::StatusOr<double> Number(const char* name) const;
  absl::StatusOr<std::string> Text(const char* name) const;
  absl::StatusOr<Arrays> Group(const std::string& name) const;

 private:
  // Reads a scalar attribute of one of two type classes into `value`.
  absl::Status Scalar(const char* name, H5T_class_t wanted, H5T_class_t also,
                      hid_t memory_type, void* value) const;
  absl::StatusOr<Array> Dataset(hid_t group, const std::string& name) const;

  std::string path_;
  Id file_;
};

absl::Status Reader::Scalar(const char* name, H5T_class_t wanted,
                            H5T_class_t also, hid_t memory_type,
                            void* value) const {
  const Id attribute(H5Aopen(file_.get(), name, H5P_DEFAULT), H5Aclose);
  if (!attribute.ok()) {
    return Malformed(path_, absl::StrCat("attribute ", name, " is missing"));
  }
  const Id type(H5Aget_type(attribute.get()), H5Tclose);
  const Id space(H5Aget_space(attribute.get()), H5Sclose);
  const H5T_class_t found = H5Tget_class(type.get());
  // HDF5 does not convert booleans, which are enumerations, to integers: they
  // are read as they are, one byte.
  const bool fits = (found == wanted || found == also) &&
                    (found != H5T_ENUM || H5Tget_size(type.get()) == 1) &&
                    H5Sget_simple_extent_npoints(space.get()) == 1;
  const hid_t read_type = found == H5T_ENUM ? type.get() : memory_type;
  if (!fits || H5Aread(attribute.get(), read_type, value) < 0) {
    return Malformed(path_,
                     absl::StrCat("attribute ", name, " has another type"));
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> Reader::Integer(const char* name) const {
  int64_t value = 0;
  CUBIT_RETURN_IF_ERROR(
      Scalar(name, H5T_INTEGER, H5T_INTEGER, H5T_NATIVE_INT64, &value));
  return value;
}

absl::StatusOr<bool> Reader::Boolean(const char* name) const {
  int8_t value = 0;
  CUBIT_RETURN_IF_ERROR(
      Scalar(name, H5T_ENUM, H5T_INTEGER, H5T_NATIVE_INT8, &value));
  return value != 0;
}

absl::StatusOr<double> Reader::Number(const char* name) const {
  double value = 0;
  CUBIT_RETURN_IF_ERROR(
      Scalar(name, H5T_FLOAT, H5T_INTEGER, H5T_NATIVE_DOUBLE, &value));
  return value;
}

absl::StatusOr<std::string> Reader::Text(const char* name) const {
  const Id attribute(H5Aopen(file_.get(), name, H5P_DEFAULT), H5Aclose);
  if (!attribute.ok()) {
    return Malformed(path_, absl::StrCat("attribute ", name, " is missing"));
  }
  const Id type(H5Aget_type(attribute.get()), H5Tclose);
  char* text = nullptr;
  if (H5Tget_class(type.get()) != H5T_STRING ||
      H5Tis_variable_str(type.get()) <= 0 ||
      H5Aread(attribute.get(), type.get(), &text) < 0 || text == nullptr) {
    return Malformed(path_, absl::StrCat("attribute ", name, " is no string"));
  }
  std::string result = text;
  H5free_memory(text);
  return result;
}

absl::StatusOr<Array> Reader::Dataset(hid_t group,
                                      const std::string& name) const {
  const Id dataset(H5Dopen2(group, name.c_str(), H5P_DEFAULT), H5Dclose);
  if (!dataset.ok()) {
    return Malformed(path_, absl::StrCat(name, " is no dataset"));
  }
  const Id space(H5Dget_space(dataset.get()), H5Sclose);
  const int rank = H5Sget_simple_extent_ndims(space.get());
  const int64_t count = H5Sget_simple_extent_npoints(space.get());
  if (rank < 0 || count < 0 || count > kMaxElements) {
    return Malformed(path_, absl::StrCat(name, " has ", count, " elements"));
  }
  std::vector<hsize_t> extents(static_cast<size_t>(rank));
  H5Sget_simple_extent_dims(space.get(), extents.data(), nullptr);
  Array array;
  array.shape.assign(extents.begin(), extents.end());
  array.values.resize(static_cast<size_t>(count));
  if (H5Dread(dataset.get(), H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT,
              array.values.data()) < 0) {
    return Malformed(path_, absl::StrCat(name, " cannot be read"));
  }
  return array;
}

absl::StatusOr<Arrays> Reader::Group(const std::string& name) const {
  const Id group(H5Gopen2(file_.get(), name.c_str(), H5P_DEFAULT), H5Gclose);
  H5G_info_t info;
  if (!group.ok() || H5Gget_info(group.get(), &info) < 0) {
    return Malformed(path_, absl::StrCat("group ", name, " is missing"));
  }
  Arrays arrays;
  for (hsize_t i = 0; i < info.nlinks; ++i) {
    char member[256];
    const ssize_t length =
        H5Lget_name_by_idx(group.get(), ".", H5_INDEX_NAME, H5_ITER_INC, i,
                           member, sizeof(member), H5P_DEFAULT);
    if (length < 0 || length >= static_cast<ssize_t>(sizeof(member))) {
      return Malformed(path_,
                       absl::StrCat("a name in ", name, " is unreadable"));
    }
    CUBIT_ASSIGN_OR_RETURN(arrays[member], Dataset(group.get(), member));
  }
  return arrays;
}

// Names of the inputs that have a gradient, with their shapes.
using Shapes = std::map<std::string, std::vector<int64_t>>;

Shapes DifferentiatedInputs(const Case& c) {
  const std::vector<int64_t> rows = {c.batch, c.num_heads, c.seq_len,
                                     c.head_dim};
  const std::vector<int64_t> scalars = {c.batch, c.num_heads, c.seq_len};
  const std::vector<int64_t> heads = {c.num_heads};
  Shapes shapes = {{"q", rows}, {"k", rows}, {"v", rows}};
  if (c.mixer == Mixer::kCubit) {
    shapes["r"] = rows;
    shapes["lrr_logits"] = scalars;
    for (const char* name : {"scale", "lower", "upper_scale", "log_lambda"}) {
      shapes[name] = heads;
    }
  } else if (c.mixer == Mixer::kDeltaFormer) {
    shapes["w"] = rows;
    shapes["beta"] = scalars;
  }
  return shapes;
}

Shapes ExpectedInputs(const Case& c) {
  Shapes shapes = DifferentiatedInputs(c);
  shapes["dout"] = shapes["q"];
  shapes["segment_ids"] = {c.batch, c.seq_len};
  return shapes;
}

Shapes ExpectedOutputs(const Case& c) {
  Shapes shapes;
  for (const auto& [name, shape] : DifferentiatedInputs(c)) {
    shapes["d" + name] = shape;
  }
  shapes["out"] = shapes["dq"];
  shapes["lse_attention"] = {c.batch, c.num_heads, c.seq_len};
  if (c.mixer != Mixer::kSoftmax) {
    shapes["x"] = shapes["dq"];
    shapes["lse_kernel"] = shapes["lse_attention"];
  }
  return shapes;
}

absl::Status CheckArrays(const std::string& path, const std::string& group,
                         const Shapes& wanted, const Arrays& arrays) {
  for (const auto& [name, shape] : wanted) {
    const auto found = arrays.find(name);
    if (found == arrays.end()) {
      return Malformed(path, absl::StrCat(group, "/", name, " is missing"));
    }
    if (found->second.shape != shape) {
      return Malformed(
          path, absl::StrCat(group, "/", name, " has shape [",
                             absl::StrJoin(found->second.shape, ", "),
                             "], not [", absl::StrJoin(shape, ", "), "]"));
    }
  }
  for (const auto& [name, array] : arrays) {
    if (wanted.count(name) == 0) {
      return Malformed(
          path, absl::StrCat(group, "/", name, " is no tensor of this mixer"));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadAttributes(const std::string& path, const Reader& reader,
                            Case* c) {
  CUBIT_ASSIGN_OR_RETURN(const std::string mixer, reader.Text("mixer"));
  if (mixer == "softmax") {
    c->mixer = Mixer::kSoftmax;
  } else if (mixer == "cubit") {
    c->mixer = Mixer::kCubit;
  } else if (mixer == "deltaformer") {
    c->mixer = Mixer::kDeltaFormer;
  } else {
    return Malformed(path,
                     absl::StrCat("mixer \"", mixer,
                                  "\" is none of softmax, cubit, deltaformer"));
  }
  CUBIT_ASSIGN_OR_RETURN(c->batch, reader.Integer("B"));
  CUBIT_ASSIGN_OR_RETURN(c->num_heads, reader.Integer("H"));
  CUBIT_ASSIGN_OR_RETURN(c->seq_len, reader.Integer("T"));
  CUBIT_ASSIGN_OR_RETURN(c->head_dim, reader.Integer("d"));
  CUBIT_ASSIGN_OR_RETURN(c->causal, reader.Boolean("causal"));
  CUBIT_ASSIGN_OR_RETURN(c->document_mask, reader.Boolean("document_mask"));
  CUBIT_ASSIGN_OR_RETURN(c->lrr, reader.Boolean("lrr"));
  CUBIT_ASSIGN_OR_RETURN(c->qk_norm, reader.Boolean("qk_norm"));
  CUBIT_ASSIGN_OR_RETURN(c->rope, reader.Boolean("rope"));
  CUBIT_ASSIGN_OR_RETURN(c->rope_base, reader.Number("rope_base"));
  if (std::min({c->batch, c->num_heads, c->seq_len, c->head_dim}) < 1 ||
      (c->rope && (c->head_dim % 2 != 0 || !(c->rope_base > 0)))) {
    return Malformed(path, "B, H, T, d or rope_base is out of range");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Case> ReadCase(const std::string& path) {
  // The library would print its stack of errors; ours say what was wanted.
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  const Reader reader(path);
  if (!reader.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " cannot be opened as HDF5"));
  }
  Case c;
  CUBIT_RETURN_IF_ERROR(ReadAttributes(path, reader, &c));
  CUBIT_ASSIGN_OR_RETURN(c.in, reader.Group("in"));
  CUBIT_ASSIGN_OR_RETURN(c.out, reader.Group("out"));
  CUBIT_RETURN_IF_ERROR(CheckArrays(path, "in", ExpectedInputs(c), c.in));
  CUBIT_RETURN_IF_ERROR(CheckArrays(path, "out", ExpectedOutputs(c), c.out));
  const std::vector<double>& segments = c.input("segment_ids").values;
  for (size_t i = 1; i < segments.size(); ++i) {
    if (static_cast<int64_t>(i) % c.seq_len != 0 &&
        segments[i] < segments[i - 1]) {
      return Malformed(path, "in/segment_ids decreases along T");
    }
  }
  return c;
}

}  // namespace golden
}  // namespace cubit
