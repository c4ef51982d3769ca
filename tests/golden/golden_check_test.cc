// SPDX-License-Identifier: Apache-2.0

#include "tests/golden/golden_check.h"

#include <cmath>
#include <cstdlib>
#include <functional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hdf5.h"

#include "runtime/file_system.h"
#include "runtime/philox.h"
#include "tests/golden/golden_file.h"
#include "tests/golden/mixer_core.h"

namespace cubit {
namespace golden {
namespace {

using ::testing::HasSubstr;

TEST(GoldenCheck, EveryTensorOfTheSharedFilesIsWithinTolerance) {
  const char* shared = std::getenv("CUBIT_SHARED");
  if (shared == nullptr) {
    GTEST_SKIP() << "skipped: needs CUBIT_SHARED (folder with golden/)";
  }
  std::ostringstream out;
  const absl::Status status = CheckFolder(JoinPath(shared, "golden"), out);
  EXPECT_TRUE(status.ok()) << status << "\n" << out.str();
}

// ---- Small files written here, in the layout that h5py writes. ----

Array RandomArray(const std::string& name, std::vector<int64_t> shape) {
  Array array;
  int64_t count = 1;
  for (int64_t extent : shape) count *= extent;
  const Philox random(1, name);
  for (int64_t i = 0; i < count; ++i) {
    // Rounded to float, as the inputs of a golden file are.
    array.values.push_back(static_cast<double>(
        static_cast<float>(random.Normal(static_cast<uint64_t>(i)))));
  }
  array.shape = std::move(shape);
  return array;
}

Case CubitCase() {
  Case c;
  c.mixer = Mixer::kCubit;
  c.batch = 1;
  c.num_heads = 2;
  c.seq_len = 6;
  c.head_dim = 4;
  c.rope_base = 10000;
  for (const char* name : {"q", "k", "v", "r", "dout"}) {
    c.in[name] = RandomArray(name, {1, 2, 6, 4});
  }
  for (const char* name : {"scale", "lower", "upper_scale", "log_lambda"}) {
    c.in[name] = RandomArray(name, {2});
  }
  c.in["scale"].values = {1, 0.5};
  c.in["lrr_logits"] = RandomArray("lrr", {1, 2, 6});
  c.in["segment_ids"] = {{1, 6}, std::vector<double>(6)};
  for (const auto& [name, values] : RunReference(c)) {
    std::vector<int64_t> shape = {1, 2, 6, 4};
    if (values.size() == 12) shape = {1, 2, 6};
    if (values.size() == 2) shape = {2};
    c.out[name] = {shape, values};
  }
  return c;
}

void WriteAttribute(hid_t file, const char* name, hid_t type,
                    const void* value) {
  const hid_t space = H5Screate(H5S_SCALAR);
  const hid_t attribute =
      H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
  ASSERT_GE(H5Awrite(attribute, type, value), 0);
  H5Aclose(attribute);
  H5Sclose(space);
}

void WriteAttributes(hid_t file, const Case& c) {
  const hid_t boolean = H5Tenum_create(H5T_NATIVE_INT8);
  const int8_t no = 0;
  const int8_t yes = 1;
  H5Tenum_insert(boolean, "FALSE", &no);
  H5Tenum_insert(boolean, "TRUE", &yes);
  for (const auto& [name, value] :
       std::vector<std::pair<const char*, bool>>{{"causal", c.causal},
                                                 {"document_mask", false},
                                                 {"lrr", c.lrr},
                                                 {"qk_norm", c.qk_norm},
                                                 {"rope", c.rope}}) {
    WriteAttribute(file, name, boolean, value ? &yes : &no);
  }
  H5Tclose(boolean);
  for (const auto& [name, value] :
       std::vector<std::pair<const char*, int64_t>>{{"B", c.batch},
                                                    {"H", c.num_heads},
                                                    {"T", c.seq_len},
                                                    {"d", c.head_dim}}) {
    WriteAttribute(file, name, H5T_NATIVE_INT64, &value);
  }
  WriteAttribute(file, "rope_base", H5T_NATIVE_DOUBLE, &c.rope_base);
  const hid_t text = H5Tcopy(H5T_C_S1);
  H5Tset_size(text, H5T_VARIABLE);
  const char* mixer = "cubit";
  WriteAttribute(file, "mixer", text, &mixer);
  H5Tclose(text);
}

void WriteGroup(hid_t file, const char* name, const Arrays& arrays) {
  const hid_t group =
      H5Gcreate2(file, name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  for (const auto& [member, array] : arrays) {
    const std::vector<hsize_t> extents(array.shape.begin(), array.shape.end());
    const hid_t space = H5Screate_simple(static_cast<int>(extents.size()),
                                         extents.data(), nullptr);
    const hid_t dataset =
        H5Dcreate2(group, member.c_str(), H5T_NATIVE_DOUBLE, space, H5P_DEFAULT,
                   H5P_DEFAULT, H5P_DEFAULT);
    ASSERT_GE(H5Dwrite(dataset, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL,
                       H5P_DEFAULT, array.values.data()),
              0);
    H5Dclose(dataset);
    H5Sclose(space);
  }
  H5Gclose(group);
}

void WriteCase(const std::string& path, const Case& c) {
  const hid_t file =
      H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  ASSERT_GE(file, 0);
  WriteAttributes(file, c);
  WriteGroup(file, "in", c.in);
  WriteGroup(file, "out", c.out);
  H5Fclose(file);
}

// An empty folder of this test.
std::string NewFolder() {
  const ::testing::TestInfo* test =
      ::testing::UnitTest::GetInstance()->current_test_info();
  std::string folder =
      absl::StrCat(::testing::TempDir(), "golden_", test->name());
  FileSystem& files = FileSystem::Posix();
  if (files.Exists(folder)) {
    EXPECT_TRUE(files.Remove(folder).ok());
  }
  EXPECT_TRUE(files.CreateFolders(folder).ok());
  return folder;
}

struct Outcome {
  absl::Status status;
  std::string text;
};

Outcome Check(const std::string& folder) {
  std::ostringstream out;
  Outcome outcome;
  outcome.status = CheckFolder(folder, out);
  outcome.text = out.str();
  return outcome;
}

// The outcome for one file whose case `change` has altered.
Outcome CheckChanged(const std::function<void(Case*)>& change) {
  const std::string folder = NewFolder();
  Case c = CubitCase();
  change(&c);
  WriteCase(JoinPath(folder, "case.h5"), c);
  return Check(folder);
}

// The yardstick of bf16: worse than fp32 by far, and still near.
TEST(GoldenCheck, PlainBFloat16LosesAboutThreeDigits) {
  const Case c = CubitCase();
  const Results exact = RunReference(c);
  const std::vector<Results> runs = RunPlainBFloat16(c);
  ASSERT_GT(runs.size(), 1u);
  EXPECT_NE(runs[0].at("out"), runs[1].at("out"));
  for (const Results& plain : runs) {
    ASSERT_EQ(plain.size(), exact.size());
    for (const auto& [name, values] : plain) {
      const double error = RelativeError(values, exact.at(name));
      EXPECT_GT(error, 1e-5) << name;
      EXPECT_LT(error, 0.2) << name;
    }
  }
}

TEST(GoldenCheck, AcceptsWhatTheReferenceComputes) {
  const Outcome outcome = CheckChanged([](Case*) {});
  EXPECT_TRUE(outcome.status.ok()) << outcome.status << outcome.text;
  EXPECT_THAT(outcome.text, HasSubstr("reference: 13 tensors, 0 past"));
  EXPECT_THAT(outcome.text, HasSubstr("cpu fp32: 13 tensors, 0 past"));
  EXPECT_THAT(outcome.text, HasSubstr("1 files: ok"));
}

TEST(GoldenCheck, FindsOneWrongTensor) {
  for (const double wrong : {1.0001, std::nan("")}) {
    const Outcome outcome =
        CheckChanged([wrong](Case* c) { c->out["dr"].values[3] *= wrong; });
    EXPECT_EQ(outcome.status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(outcome.status.message(), HasSubstr("2 tensors are past"));
    EXPECT_THAT(outcome.text, HasSubstr("1 files: FAIL"));
  }
}

TEST(GoldenCheck, ReferenceIsHeldToItsOwnTolerance) {
  const Outcome outcome = CheckChanged([](Case* c) {
    for (double& value : c->out["x"].values) value *= 1 + 1e-7;
  });
  EXPECT_THAT(outcome.status.message(), HasSubstr("1 tensors are past"));
  EXPECT_THAT(outcome.text, HasSubstr("reference: 13 tensors, 1 past"));
}

TEST(GoldenCheck, NamesWhatIsMissingOrMisshapen) {
  EXPECT_THAT(CheckChanged([](Case* c) { c->in.erase("r"); }).status.message(),
              HasSubstr("in/r is missing"));
  EXPECT_THAT(
      CheckChanged([](Case* c) { c->out.erase("dlower"); }).status.message(),
      HasSubstr("out/dlower is missing"));
  EXPECT_THAT(CheckChanged([](Case* c) {
                c->out["dz"] = c->out["dq"];
              }).status.message(),
              HasSubstr("out/dz is no tensor of this mixer"));
  EXPECT_THAT(CheckChanged([](Case* c) {
                c->in["q"] = RandomArray("q", {1, 2, 6, 3});
              }).status.message(),
              HasSubstr("in/q has shape [1, 2, 6, 3], not [1, 2, 6, 4]"));
  EXPECT_THAT(CheckChanged([](Case* c) {
                c->in["segment_ids"].values[1] = 5;
              }).status.message(),
              HasSubstr("in/segment_ids decreases"));
  EXPECT_THAT(CheckChanged([](Case* c) { c->seq_len = -6; }).status.message(),
              HasSubstr("out of range"));
}

TEST(GoldenCheck, MissingAndEmptyFoldersAreErrors) {
  const std::string folder = NewFolder();
  EXPECT_THAT(Check(folder).status.message(), HasSubstr("holds no .h5 file"));
  const absl::Status missing = Check(JoinPath(folder, "nowhere")).status;
  EXPECT_FALSE(missing.ok());
  EXPECT_THAT(missing.message(), HasSubstr("nowhere"));
}

TEST(GoldenCheck, DamagedFilesAreNamedAndTheOthersStillChecked) {
  const std::string folder = NewFolder();
  FileSystem& files = FileSystem::Posix();
  const std::string whole = JoinPath(folder, "c_whole.h5");
  WriteCase(whole, CubitCase());
  const auto bytes = ReadFile(files, whole, 1 << 20);
  ASSERT_TRUE(bytes.ok());
  const std::string half = JoinPath(folder, "b_half.h5");
  ASSERT_TRUE(
      WriteFileAtomically(files, half, bytes->substr(0, bytes->size() / 2))
          .ok());
  ASSERT_TRUE(
      WriteFileAtomically(files, JoinPath(folder, "a_text.h5"), "hello").ok());
  const Outcome outcome = Check(folder);
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(outcome.status.message(), HasSubstr("2 of 3 files"));
  EXPECT_THAT(outcome.status.message(),
              HasSubstr("a_text.h5 cannot be opened"));
  EXPECT_THAT(outcome.text, HasSubstr("b_half.h5 cannot be opened"));
  EXPECT_THAT(outcome.text, HasSubstr("cpu fp32: 13 tensors, 0 past"));
}

}  // namespace
}  // namespace golden
}  // namespace cubit
