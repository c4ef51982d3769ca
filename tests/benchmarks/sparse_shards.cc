// SPDX-License-Identifier: Apache-2.0

#include "tests/benchmarks/sparse_shards.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include <hdf5.h>

#include "data/dataset_index.h"
#include "data/token_shard.h"
#include "runtime/check.h"
#include "runtime/file_system.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr int64_t kVocabSize = 50257;
constexpr int64_t kChunk = 64 << 10;
// What is not zero in a file: whole blocks of this size.
constexpr int64_t kBlock = 4096;

void SetAttribute(hid_t file, const char* name, hid_t type, const void* value) {
  const hid_t space = H5Screate(H5S_SCALAR);
  const hid_t attribute =
      H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
  CUBIT_CHECK_GE(H5Awrite(attribute, type, value), 0);
  H5Aclose(attribute);
  H5Sclose(space);
}

void SetText(hid_t file, const char* name, const std::string& value) {
  const hid_t type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, value.size());
  SetAttribute(file, name, type, value.data());
  H5Tclose(type);
}

void SetInteger(hid_t file, const char* name, int64_t value) {
  SetAttribute(file, name, H5T_NATIVE_INT64, &value);
}

hid_t CreateArray(hid_t file, const char* name, hid_t type, int64_t size,
                  int64_t chunk) {
  const auto extent = static_cast<hsize_t>(size);
  const auto chunk_extent = static_cast<hsize_t>(chunk);
  const hid_t space = H5Screate_simple(1, &extent, nullptr);
  const hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_chunk(creation, 1, &chunk_extent);
  H5Pset_fletcher32(creation);
  const hid_t array =
      H5Dcreate2(file, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
  CUBIT_CHECK_GE(array, 0) << name;
  H5Pclose(creation);
  H5Sclose(space);
  return array;
}

void WriteAttributes(hid_t file, int64_t tokens) {
  for (const char* name : {"tokenizer", "source", "created", "writer"}) {
    SetText(file, name, "zeros");
  }
  SetText(file, "tokenizer_sha256", std::string(64, 'a'));
  SetText(file, "split", "train");
  SetText(file, "tokens_xxh3_128", std::string(32, '0'));
  SetInteger(file, "format_version", kTokenShardVersion);
  SetInteger(file, "vocab_size", kVocabSize);
  SetInteger(file, "eot_id", kVocabSize - 1);
  SetInteger(file, "num_tokens", tokens);
  SetInteger(file, "num_documents", 1);
  SetInteger(file, "max_token_id", 0);
  SetInteger(file, "complete", 1);
}

// A shard with every chunk in its place; Fletcher-32 of zeros is zero.
void WriteWholeShard(const std::string& path, int64_t tokens) {
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);
  const hid_t file =
      H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access);
  CUBIT_CHECK_GE(file, 0) << path;
  const hid_t array =
      CreateArray(file, "tokens", H5T_STD_U16LE, tokens, kChunk);
  const std::vector<char> zeros(2 * kChunk + 4);
  for (int64_t begin = 0; begin < tokens; begin += kChunk) {
    const auto offset = static_cast<hsize_t>(begin);
    CUBIT_CHECK_GE(H5Dwrite_chunk(array, H5P_DEFAULT, 0, &offset, zeros.size(),
                                  zeros.data()),
                   0);
  }
  H5Dclose(array);
  const uint64_t offsets[2] = {0, static_cast<uint64_t>(tokens)};
  const hid_t documents =
      CreateArray(file, "document_offsets", H5T_STD_U64LE, 2, 2);
  CUBIT_CHECK_GE(H5Dwrite(documents, H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL,
                          H5P_DEFAULT, offsets),
                 0);
  H5Dclose(documents);
  WriteAttributes(file, tokens);
  H5Fclose(file);
  H5Pclose(access);
}

struct Block {
  int64_t offset;
  std::string bytes;
};

absl::StatusOr<std::vector<Block>> NonZeroBlocks(const std::string& path,
                                                 int64_t size) {
  std::vector<Block> blocks;
  std::string bytes;
  for (int64_t offset = 0; offset < size; offset += kBlock) {
    bytes.resize(static_cast<size_t>(std::min(kBlock, size - offset)));
    CUBIT_RETURN_IF_ERROR(FileSystem::Posix().Read(
        path, offset, static_cast<int64_t>(bytes.size()), bytes.data()));
    if (bytes.find_first_not_of('\0') != std::string::npos) {
      blocks.push_back({offset, bytes});
    }
  }
  return blocks;
}

absl::Status WriteSparseFile(const std::string& path, int64_t size,
                             const std::vector<Block>& blocks) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  bool good = fd >= 0 && ftruncate(fd, size) == 0;
  for (const Block& block : blocks) {
    good = good &&
           pwrite(fd, block.bytes.data(), block.bytes.size(), block.offset) ==
               static_cast<ssize_t>(block.bytes.size());
  }
  good = good && close(fd) == 0;
  return good ? absl::OkStatus()
              : absl::UnavailableError(absl::StrCat(path, ": cannot write"));
}

}  // namespace

absl::Status WriteSparseDataset(const std::string& folder, int64_t shards,
                                int64_t tokens) {
  const int64_t shard_tokens = tokens / shards;
  const std::string whole = JoinPath(folder, "whole.tmp");
  WriteWholeShard(whole, shard_tokens);
  FileSystem& files = FileSystem::Posix();
  CUBIT_ASSIGN_OR_RETURN(const int64_t size, files.FileSize(whole));
  CUBIT_ASSIGN_OR_RETURN(const std::vector<Block> blocks,
                         NonZeroBlocks(whole, size));
  CUBIT_RETURN_IF_ERROR(files.Remove(whole));
  DatasetIndex index;
  index.tokenizer = "zeros";
  index.tokenizer_sha256 = std::string(64, 'a');
  index.vocab_size = kVocabSize;
  index.eot_id = kVocabSize - 1;
  for (int64_t i = 0; i < shards; ++i) {
    ShardEntry entry;
    entry.file = TokenShardName(i);
    entry.split = "train";
    entry.tokens = shard_tokens;
    entry.documents = 1;
    entry.bytes = size;
    entry.xxh3_128 = entry.tokens_xxh3_128 = std::string(32, '0');
    CUBIT_RETURN_IF_ERROR(
        WriteSparseFile(JoinPath(folder, entry.file), size, blocks));
    index.shards.push_back(std::move(entry));
  }
  return WriteFileAtomically(files, JoinPath(folder, kIndexName),
                             DatasetIndexToJson(index));
}

}  // namespace cubit
