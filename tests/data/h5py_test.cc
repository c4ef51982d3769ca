// SPDX-License-Identifier: Apache-2.0
//
// Another program reads our shards: h5py.

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"

#include "tests/data/shard_files.h"

namespace cubit {
namespace {

constexpr char kPython[] = "/usr/bin/python3";

bool HasH5py() {
  return std::system(
             absl::StrCat(kPython, " -c 'import h5py' 2>/dev/null").c_str()) ==
         0;
}

std::string Output(const std::string& command) {
  std::FILE* const pipe = popen(command.c_str(), "r");
  EXPECT_NE(pipe, nullptr);
  std::string output;
  char block[4096];
  while (const size_t bytes = fread(block, 1, sizeof(block), pipe)) {
    output.append(block, bytes);
  }
  EXPECT_EQ(pclose(pipe), 0) << command;
  return output;
}

TEST(H5py, ReadsAShard) {
  if (!HasH5py()) GTEST_SKIP() << "skipped: needs python3-h5py";
  for (const int64_t vocab_size : {257, 100000}) {
    const std::string path = ScratchFolder("") + "/shard_00000.h5";
    const auto documents = RandomDocuments(4, 20, 50, vocab_size);
    const WrittenShard written =
        WriteShard(path, ShardInfo("train", vocab_size), documents);
    const std::vector<int32_t> stream =
        TokenStream(documents, static_cast<int32_t>(vocab_size - 1));
    std::string offsets = "0";
    size_t end = 0;
    for (const auto& document : documents) {
      end += 1 + document.size();
      absl::StrAppend(&offsets, " ", end);
    }
    const std::string wanted = absl::StrCat(
        "tokens ", vocab_size == 257 ? "uint16 " : "uint32 ",
        absl::StrJoin(stream, " "), "\ndocument_offsets uint64 ", offsets,
        "\ncomplete 1\ncreated 2025-01-31T12:00:00Z\neot_id ", vocab_size - 1,
        "\nformat_version 1\nmax_token_id ", vocab_size - 1,
        "\nnum_documents 20\nnum_tokens ", stream.size(),
        "\nsource a test\nsplit train\ntokenizer made up\ntokenizer_sha256 ",
        std::string(64, 'a'), "\ntokens_xxh3_128 ",
        written.info.tokens_xxh3_128, "\nvocab_size ", vocab_size,
        "\nwriter cubit test\nfilters True None True\nchunks ", stream.size(),
        "\n");
    EXPECT_EQ(
        Output(absl::StrCat(kPython, " tests/data/read_shard.py '", path, "'")),
        wanted);
  }
}

TEST(H5py, SeesChunksOf128Kibibytes) {
  if (!HasH5py()) GTEST_SKIP() << "skipped: needs python3-h5py";
  const std::string path = ScratchFolder("") + "/shard_00000.h5";
  WriteShard(path, ShardInfo("train", 257), {std::vector<int32_t>(600000, 5)});
  const std::string output = Output(
      absl::StrCat(kPython, " -c 'import h5py; t = h5py.File(\"", path,
                   "\")[\"tokens\"]; print(t.chunks, t.shape, t[599999])'"));
  EXPECT_EQ(output, "(65536,) (600001,) 5\n");
}

}  // namespace
}  // namespace cubit
