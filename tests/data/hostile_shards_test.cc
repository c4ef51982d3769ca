// SPDX-License-Identifier: Apache-2.0
//
// Shards that this project never writes, made by HDF5 directly: each must be
// refused with words that say why.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include <hdf5.h>

#include "data/token_shard.h"
#include "runtime/digest.h"
#include "tests/data/shard_files.h"

namespace cubit {
namespace {

// How the file differs from a good one.
struct Recipe {
  H5F_libver_t version = H5F_LIBVER_V110;
  hid_t token_type = H5T_STD_U16LE;
  std::vector<hsize_t> extent = {6};
  std::vector<hsize_t> chunk = {6};  // empty: contiguous
  std::function<void(hid_t creation)> storage = [](hid_t creation) {
    H5Pset_fletcher32(creation);
  };
  // Instead of creating /tokens.
  std::function<void(hid_t file)> tokens;
  std::vector<uint64_t> offsets = {0, 3, 6};
  std::vector<uint16_t> ids = {256, 1, 2, 256, 4, 5};
  // Called last; replaces attributes.
  std::function<void(hid_t file)> attributes = [](hid_t) {};
};

void SetInteger(hid_t file, const char* name, int64_t value) {
  if (H5Aexists(file, name) > 0) H5Adelete(file, name);
  const hid_t space = H5Screate(H5S_SCALAR);
  const hid_t attribute =
      H5Acreate2(file, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT);
  ASSERT_GE(H5Awrite(attribute, H5T_NATIVE_INT64, &value), 0);
  H5Aclose(attribute);
  H5Sclose(space);
}

void SetString(hid_t file, const char* name, std::string value, size_t length) {
  if (H5Aexists(file, name) > 0) H5Adelete(file, name);
  const hid_t space = H5Screate(H5S_SCALAR);
  const hid_t type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, length);
  value.resize(length == H5T_VARIABLE ? value.size() : length);
  const hid_t attribute =
      H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
  const char* const pointer = value.c_str();
  ASSERT_GE(H5Awrite(attribute, type,
                     length == H5T_VARIABLE ? static_cast<const void*>(&pointer)
                                            : pointer),
            0);
  H5Aclose(attribute);
  H5Tclose(type);
  H5Sclose(space);
}

void WriteArray(hid_t file, const char* name, hid_t type,
                const std::vector<hsize_t>& extent,
                const std::vector<hsize_t>& chunk, hid_t memory_type,
                const std::function<void(hid_t)>& storage, const void* data) {
  const hid_t space =
      H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr);
  const hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
  if (!chunk.empty()) {
    H5Pset_chunk(creation, static_cast<int>(chunk.size()), chunk.data());
  }
  storage(creation);
  const hid_t array =
      H5Dcreate2(file, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
  ASSERT_GE(array, 0) << name;
  if (data != nullptr) {
    ASSERT_GE(H5Dwrite(array, memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data),
              0);
  }
  H5Dclose(array);
  H5Pclose(creation);
  H5Sclose(space);
}

std::string MakeShard(const Recipe& recipe) {
  const std::string path = ScratchFolder("") + "/shard_00000.h5";
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  H5Pset_libver_bounds(access, recipe.version, H5F_LIBVER_LATEST);
  const hid_t file =
      H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access);
  EXPECT_GE(file, 0);
  if (recipe.tokens) {
    recipe.tokens(file);
  } else {
    hsize_t size = 1;
    for (const hsize_t n : recipe.extent) size *= n;
    WriteArray(file, "tokens", recipe.token_type, recipe.extent, recipe.chunk,
               H5T_NATIVE_UINT16, recipe.storage,
               size == recipe.ids.size() ? recipe.ids.data() : nullptr);
  }
  WriteArray(
      file, "document_offsets", H5T_STD_U64LE, {recipe.offsets.size()},
      {recipe.offsets.size()}, H5T_NATIVE_UINT64,
      [](hid_t creation) { H5Pset_fletcher32(creation); },
      recipe.offsets.data());
  for (const char* name : {"tokenizer", "source", "created", "writer"}) {
    SetString(file, name, "x", 1);
  }
  SetString(file, "tokenizer_sha256", std::string(64, 'a'), 64);
  SetString(file, "split", "train", 5);
  SetString(file, "tokens_xxh3_128",
            Xxh3_128Hex(recipe.ids.data(), 2 * recipe.ids.size()), 32);
  SetInteger(file, "format_version", 1);
  SetInteger(file, "vocab_size", 257);
  SetInteger(file, "eot_id", 256);
  SetInteger(file, "num_tokens", static_cast<int64_t>(recipe.ids.size()));
  SetInteger(file, "num_documents",
             static_cast<int64_t>(recipe.offsets.size()) - 1);
  SetInteger(file, "max_token_id", 256);
  SetInteger(file, "complete", 1);
  recipe.attributes(file);
  H5Fclose(file);
  H5Pclose(access);
  return path;
}

// Opens and verifies; the error if any.
absl::Status Check(const std::string& path) {
  auto shard = TokenShard::Open(path, 0);
  return shard.ok() ? shard->Verify() : shard.status();
}

void ExpectRefused(const Recipe& recipe, const std::string& words) {
  const std::string path = MakeShard(recipe);
  const absl::Status status = Check(path);
  EXPECT_FALSE(status.ok()) << words;
  EXPECT_TRUE(absl::StrContains(status.message(), path)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), words)) << status;
}

TEST(HostileShards, TheUnchangedRecipeIsGood) {
  EXPECT_TRUE(Check(MakeShard(Recipe())).ok()) << Check(MakeShard(Recipe()));
}

TEST(HostileShards, DeflateIsRead) {
  Recipe recipe;
  recipe.storage = [](hid_t creation) {
    H5Pset_deflate(creation, 6);
    H5Pset_fletcher32(creation);
  };
  EXPECT_TRUE(Check(MakeShard(recipe)).ok()) << Check(MakeShard(recipe));
}

TEST(HostileShards, RefusesFilesThatAreNotOfTheFormat) {
  const std::string path = ScratchFolder("") + "/a.h5";
  SetFileContents(path, std::string(100, 'x'));
  EXPECT_TRUE(absl::StrContains(Check(path).message(), "no signature"));
  SetFileContents(path, "");
  EXPECT_TRUE(absl::StrContains(Check(path).message(), "truncated"));
  EXPECT_EQ(Check(path + "x").code(), absl::StatusCode::kNotFound);
  Recipe old;
  old.version = H5F_LIBVER_EARLIEST;
  ExpectRefused(old, "at offset 8: superblock version 0");
}

TEST(HostileShards, RefusesOtherVersionsAndUnfinishedShards) {
  Recipe recipe;
  recipe.attributes = [](hid_t file) { SetInteger(file, "format_version", 2); };
  ExpectRefused(recipe, "format_version is 2, this program reads 1");
  recipe.attributes = [](hid_t file) { SetInteger(file, "complete", 0); };
  ExpectRefused(recipe, "unfinished");
  recipe.attributes = [](hid_t file) { H5Adelete(file, "complete"); };
  ExpectRefused(recipe, "has no attribute complete");
  recipe.attributes = [](hid_t file) { H5Adelete(file, "tokenizer"); };
  ExpectRefused(recipe, "has no attribute tokenizer");
}

TEST(HostileShards, RefusesAttributesOfOtherTypes) {
  Recipe recipe;
  recipe.attributes = [](hid_t file) { SetString(file, "vocab_size", "9", 1); };
  ExpectRefused(recipe, "attribute vocab_size is not an integer");
  recipe.attributes = [](hid_t file) { SetInteger(file, "split", 1); };
  ExpectRefused(recipe, "attribute split is not a string of fixed length");
  recipe.attributes = [](hid_t file) {
    SetString(file, "source", "heap", H5T_VARIABLE);
  };
  ExpectRefused(recipe, "attribute source is not a string of fixed length");
  recipe.attributes = [](hid_t file) { SetString(file, "source", "x", 5000); };
  ExpectRefused(recipe, "up to 4096 bytes");
  recipe.attributes = [](hid_t file) {
    H5Adelete(file, "eot_id");
    const hsize_t two = 2;
    const hid_t space = H5Screate_simple(1, &two, nullptr);
    H5Aclose(H5Acreate2(file, "eot_id", H5T_STD_I64LE, space, H5P_DEFAULT,
                        H5P_DEFAULT));
    H5Sclose(space);
  };
  ExpectRefused(recipe, "attribute eot_id is not a scalar");
}

TEST(HostileShards, RefusesNumbersOutOfRange) {
  const auto expect = [](const char* name, int64_t value,
                         const std::string& words) {
    Recipe recipe;
    recipe.attributes = [name, value](hid_t file) {
      SetInteger(file, name, value);
    };
    ExpectRefused(recipe, words);
  };
  expect("vocab_size", 0, "vocab_size is 0");
  expect("vocab_size", int64_t{1} << 40, "vocab_size is 1099511627776");
  expect("vocab_size", 70000, "/tokens is uint16 [6], the attributes ask for");
  expect("eot_id", -1, "eot_id is -1");
  expect("eot_id", 257, "eot_id is 257");
  expect("max_token_id", 257, "max_token_id is 257");
  expect("max_token_id", 255, "/tokens has ids up to 256");
  expect("num_documents", 0, "num_documents is 0");
  expect("num_documents", 3, "/document_offsets is uint64 [3]");
  expect("num_tokens", 7, "/tokens is uint16 [6], the attributes ask for");
  expect("num_tokens", int64_t{1} << 62, "/tokens is uint16 [6]");
  expect("num_tokens", -6, "num_documents is 2, wanted 1 to num_tokens");
}

TEST(HostileShards, RefusesOtherTypesRanksAndSizes) {
  Recipe recipe;
  recipe.token_type = H5T_STD_I16LE;
  ExpectRefused(recipe, "/tokens: has elements of class");
  recipe.token_type = H5T_STD_U16BE;
  ExpectRefused(recipe, "little-endian uint16");
  recipe.token_type = H5T_IEEE_F32LE;
  ExpectRefused(recipe, "/tokens: has elements of class 1 and 4 bytes");
  recipe = Recipe();
  recipe.extent = {2, 3};
  recipe.chunk = {2, 3};
  ExpectRefused(recipe, "/tokens: has rank 2");
  recipe.extent = {uint64_t{1} << 50};
  recipe.chunk = {6};
  ExpectRefused(recipe, "has 1125899906842624 elements");
  recipe.extent = {uint64_t{1} << 30};
  recipe.chunk = {uint64_t{1} << 30};
  ExpectRefused(recipe, "has chunks of 1073741824 elements");
}

TEST(HostileShards, RefusesOtherStorage) {
  Recipe recipe;
  recipe.chunk = {};
  recipe.storage = [](hid_t) {};
  ExpectRefused(recipe, "/tokens: is not stored in chunks");
  recipe.storage = [](hid_t creation) {
    H5Pset_external(creation, "/dev/zero", 0, 12);
  };
  recipe.ids = {256, 1, 2, 256, 4};  // not written
  ExpectRefused(recipe, "/tokens: is not stored in chunks");
  recipe = Recipe();
  recipe.storage = [](hid_t) {};
  ExpectRefused(recipe, "/tokens: has no fletcher32 checksums");
  recipe.storage = [](hid_t creation) {
    H5Pset_shuffle(creation);
    H5Pset_fletcher32(creation);
  };
  ExpectRefused(recipe, "/tokens: uses HDF5 filter 2");
  recipe = Recipe();
  recipe.tokens = [](hid_t file) {
    const hsize_t size = 6;
    const hid_t space = H5Screate_simple(1, &size, nullptr);
    const hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_virtual(creation, space, "/nowhere.h5", "tokens", space);
    H5Dclose(H5Dcreate2(file, "tokens", H5T_STD_U16LE, space, H5P_DEFAULT,
                        creation, H5P_DEFAULT));
    H5Pclose(creation);
    H5Sclose(space);
  };
  ExpectRefused(recipe, "/tokens: is not stored in chunks");
}

TEST(HostileShards, RefusesLinksAndOtherObjects) {
  Recipe recipe;
  recipe.tokens = [](hid_t file) {
    H5Lcreate_external("/etc/passwd", "tokens", file, "tokens", H5P_DEFAULT,
                       H5P_DEFAULT);
  };
  ExpectRefused(recipe, "/tokens: is a soft, external or user-defined link");
  recipe.tokens = [](hid_t file) {
    H5Lcreate_soft("/document_offsets", file, "tokens", H5P_DEFAULT,
                   H5P_DEFAULT);
  };
  ExpectRefused(recipe, "/tokens: is a soft, external or user-defined link");
  recipe.tokens = [](hid_t file) {
    H5Gclose(H5Gcreate2(file, "tokens", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
  };
  ExpectRefused(recipe, "/tokens: is not an array");
  recipe.tokens = [](hid_t) {};
  ExpectRefused(recipe, "/tokens: is missing");
}

TEST(HostileShards, VerifyFindsWrongContents) {
  Recipe recipe;
  recipe.ids[2] = 300;
  ExpectRefused(recipe,
                "/tokens at offset 2: id 300 is beyond the vocabulary of 257");
  recipe = Recipe();
  recipe.offsets = {0, 2, 6};
  ExpectRefused(recipe, "/document_offsets at offset 1: is 2, /tokens has");
  recipe.offsets = {0, 3, 5};
  ExpectRefused(recipe, "/document_offsets at offset 2: is 5");
  recipe.offsets = {0, 3, 4, 6};
  ExpectRefused(recipe, "/document_offsets at offset 2");
  recipe.offsets = {0, 6};
  ExpectRefused(recipe, "/document_offsets at offset 1");
  recipe = Recipe();
  recipe.attributes = [](hid_t file) {
    SetString(file, "tokens_xxh3_128", std::string(32, '0'), 32);
  };
  ExpectRefused(recipe, "attribute tokens_xxh3_128 is 000");
}

}  // namespace
}  // namespace cubit
