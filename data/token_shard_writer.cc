// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "data/token_shard.h"
#include "runtime/check.h"
#include "runtime/digest.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

// A sample is read with the whole chunks around it, whose checksums are
// checked: with samples in random order, small ones cost less
// (docs/performance.md).
constexpr int64_t kChunkBytes = 128 << 10;
// Stays in a processor's cache between its digest and its copy.
constexpr int64_t kBlockBytes = 256 << 10;
// More than the part of a file that describes its chunks.
constexpr int64_t kIndexShare = 1024;
// Beyond it memory is moved as the tokens get more: 128 MB or 256 MB.
constexpr int64_t kMaxReservedTokens = int64_t{64} << 20;

// Returns the XXH3-128 of the bytes.
absl::StatusOr<std::string> WriteAside(FileSystem& files,
                                       const std::string& path,
                                       const Hdf5Image& image) {
  CUBIT_ASSIGN_OR_RETURN(auto file, files.Create(path));
  const char* const data = static_cast<const char*>(image.data());
  Xxh3_128Stream digest;
  for (int64_t done = 0; done < image.bytes(); done += kBlockBytes) {
    const int64_t bytes = std::min(kBlockBytes, image.bytes() - done);
    digest.Update(data + done, static_cast<size_t>(bytes));
    CUBIT_RETURN_IF_ERROR(file->Append(data + done, bytes));
  }
  CUBIT_RETURN_IF_ERROR(file->Sync());
  CUBIT_RETURN_IF_ERROR(file->Close());
  return digest.Hex();
}

absl::Status WriteAttributes(const TokenShardInfo& info, Hdf5Writer& writer) {
  CUBIT_RETURN_IF_ERROR(
      writer.SetAttribute("format_version", kTokenShardVersion));
  CUBIT_RETURN_IF_ERROR(writer.SetAttribute("tokenizer", info.tokenizer));
  CUBIT_RETURN_IF_ERROR(
      writer.SetAttribute("tokenizer_sha256", info.tokenizer_sha256));
  CUBIT_RETURN_IF_ERROR(writer.SetAttribute("vocab_size", info.vocab_size));
  CUBIT_RETURN_IF_ERROR(writer.SetAttribute("eot_id", info.eot_id));
  CUBIT_RETURN_IF_ERROR(writer.SetAttribute("split", info.split));
  CUBIT_RETURN_IF_ERROR(writer.SetAttribute("source", info.source));
  CUBIT_RETURN_IF_ERROR(writer.SetAttribute("num_tokens", info.num_tokens));
  CUBIT_RETURN_IF_ERROR(
      writer.SetAttribute("num_documents", info.num_documents));
  CUBIT_RETURN_IF_ERROR(writer.SetAttribute("max_token_id", info.max_token_id));
  CUBIT_RETURN_IF_ERROR(
      writer.SetAttribute("tokens_xxh3_128", info.tokens_xxh3_128));
  CUBIT_RETURN_IF_ERROR(writer.SetAttribute("created", info.created));
  CUBIT_RETURN_IF_ERROR(writer.SetAttribute("writer", info.writer));
  // Last: a file without it is unfinished.
  return writer.SetAttribute("complete", 1);
}

}  // namespace

std::string TokenShardName(int64_t number) {
  return absl::StrFormat("shard_%05d.h5", number);
}

Hdf5Type TokenType(int64_t vocab_size) {
  return vocab_size <= 65536 ? Hdf5Type::kUint16 : Hdf5Type::kUint32;
}

absl::StatusOr<std::string> FileDigest(FileSystem& files,
                                       const std::string& path) {
  CUBIT_ASSIGN_OR_RETURN(const int64_t size, files.FileSize(path));
  std::vector<char> block(static_cast<size_t>(std::min(size, kBlockBytes)));
  Xxh3_128Stream digest;
  for (int64_t done = 0; done < size; done += kBlockBytes) {
    const int64_t bytes = std::min(kBlockBytes, size - done);
    CUBIT_RETURN_IF_ERROR(files.Read(path, done, bytes, block.data()));
    digest.Update(block.data(), static_cast<size_t>(bytes));
  }
  return digest.Hex();
}

TokenShardBuilder::TokenShardBuilder(TokenShardInfo info,
                                     int64_t expected_tokens)
    : info_(std::move(info)) {
  CUBIT_CHECK(info_.vocab_size >= 1 && info_.vocab_size <= int64_t{1} << 31);
  CUBIT_CHECK(info_.eot_id >= 0 && info_.eot_id < info_.vocab_size);
  const auto reserved =
      static_cast<size_t>(std::min(expected_tokens, kMaxReservedTokens));
  if (TokenType(info_.vocab_size) == Hdf5Type::kUint16) {
    tokens16_.reserve(reserved);
  } else {
    tokens32_.reserve(reserved);
  }
}

int64_t TokenShardBuilder::num_tokens() const {
  return static_cast<int64_t>(tokens16_.size() + tokens32_.size());
}

int64_t TokenShardBuilder::num_documents() const {
  return static_cast<int64_t>(document_offsets_.size()) - 1;
}

// Sums and copies without branches: every token of a data set passes here.
void TokenShardBuilder::AddDocument(absl::Span<const int32_t> ids) {
  const auto vocab_size = static_cast<uint32_t>(info_.vocab_size);
  const auto eot_id = static_cast<int32_t>(info_.eot_id);
  uint32_t max_id = 0;
  int wrong = 0;
  for (const int32_t id : ids) {
    wrong |= static_cast<int>(static_cast<uint32_t>(id) >= vocab_size) |
             static_cast<int>(id == eot_id);
    max_id = std::max(max_id, static_cast<uint32_t>(id));
  }
  for (size_t i = 0; wrong != 0 && i < ids.size(); ++i) {
    CUBIT_CHECK(static_cast<uint32_t>(ids[i]) < vocab_size && ids[i] != eot_id)
        << "the tokenizer gave id " << ids[i] << "; its vocabulary has "
        << vocab_size << ", its end of text is " << eot_id;
  }
  max_token_id_ = std::max({max_token_id_, int64_t{max_id}, info_.eot_id});
  if (TokenType(info_.vocab_size) == Hdf5Type::kUint16) {
    tokens16_.push_back(static_cast<uint16_t>(eot_id));
    tokens16_.insert(tokens16_.end(), ids.begin(), ids.end());
  } else {
    tokens32_.push_back(static_cast<uint32_t>(eot_id));
    tokens32_.insert(tokens32_.end(), ids.begin(), ids.end());
  }
  document_offsets_.push_back(static_cast<uint64_t>(num_tokens()));
}

absl::StatusOr<Hdf5Image> TokenShardBuilder::MakeFile(
    const TokenShardInfo& info, Hdf5Image old) const {
  const Hdf5Type type = TokenType(info.vocab_size);
  const int64_t array_bytes =
      info.num_tokens * SizeOf(type) +
      static_cast<int64_t>(document_offsets_.size() * sizeof(uint64_t));
  CUBIT_ASSIGN_OR_RETURN(
      Hdf5Writer writer,
      Hdf5Writer::Create(std::move(old),
                         array_bytes + array_bytes / kIndexShare));
  const void* const tokens = type == Hdf5Type::kUint16
                                 ? static_cast<const void*>(tokens16_.data())
                                 : tokens32_.data();
  CUBIT_RETURN_IF_ERROR(writer.WriteArray(
      "tokens", type, kChunkBytes / SizeOf(type), tokens, info.num_tokens));
  CUBIT_RETURN_IF_ERROR(writer.WriteArray(
      "document_offsets", Hdf5Type::kUint64,
      kChunkBytes / SizeOf(Hdf5Type::kUint64), document_offsets_.data(),
      static_cast<int64_t>(document_offsets_.size())));
  CUBIT_RETURN_IF_ERROR(WriteAttributes(info, writer));
  return writer.Finish();
}

absl::StatusOr<ShardImage> TokenShardBuilder::MakeImage(Hdf5Image old) const {
  CUBIT_CHECK_GE(num_documents(), 1);
  ShardImage image;
  image.info = info_;
  image.info.num_tokens = num_tokens();
  image.info.num_documents = num_documents();
  image.info.max_token_id = max_token_id_;
  image.info.tokens_xxh3_128 =
      tokens32_.empty() ? Xxh3_128Hex(tokens16_.data(), 2 * tokens16_.size())
                        : Xxh3_128Hex(tokens32_.data(), 4 * tokens32_.size());
  CUBIT_ASSIGN_OR_RETURN(image.file, MakeFile(image.info, std::move(old)));
  return image;
}

void TokenShardBuilder::Clear() {
  tokens16_.clear();
  tokens32_.clear();
  document_offsets_ = {0};
  max_token_id_ = 0;
}

absl::StatusOr<WrittenShard> TokenShardBuilder::Write(FileSystem& files,
                                                      const std::string& path) {
  CUBIT_ASSIGN_OR_RETURN(const ShardImage image, MakeImage(Hdf5Image()));
  CUBIT_ASSIGN_OR_RETURN(WrittenShard shard,
                         WriteShardImage(files, image, path));
  Clear();
  return shard;
}

absl::StatusOr<WrittenShard> WriteShardImage(FileSystem& files,
                                             const ShardImage& image,
                                             const std::string& path) {
  WrittenShard shard;
  shard.info = image.info;
  shard.bytes = image.file.bytes();
  const std::string temporary = path + ".tmp";
  // What removing it answers does not matter: the first error is returned.
  auto remove = absl::MakeCleanup(
      [&files, &temporary] { files.Remove(temporary).IgnoreError(); });
  CUBIT_ASSIGN_OR_RETURN(shard.xxh3_128,
                         WriteAside(files, temporary, image.file));
  CUBIT_ASSIGN_OR_RETURN(const std::string found, FileDigest(files, temporary));
  if (found != shard.xxh3_128) {
    return absl::DataLossError(
        absl::StrCat(temporary, ": reads back with digest ", found,
                     ", written with ", shard.xxh3_128, "; check the disk"));
  }
  CUBIT_RETURN_IF_ERROR(files.Rename(temporary, path));
  std::move(remove).Cancel();
  CUBIT_RETURN_IF_ERROR(files.SyncFolder(FolderOf(path)));
  return shard;
}

}  // namespace cubit
