// SPDX-License-Identifier: Apache-2.0

#include "data/token_file_writer.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/types/span.h"

#include "data/dataset_index.h"
#include "data/token_file_reader.h"
#include "data/token_shard.h"
#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr int64_t kBlock = 1 << 20;  // elements
// Megatron's own rule for the element type.
constexpr int64_t kMegatronUint16Vocabulary = 65500;

// A file that appears under its name when it is whole.
class FileAside {
 public:
  FileAside(FileSystem& files, std::string path)
      : files_(files), path_(std::move(path)), temporary_(path_ + ".tmp") {}
  ~FileAside() {
    if (file_ != nullptr) files_.Remove(temporary_).IgnoreError();
  }
  FileAside(const FileAside&) = delete;
  FileAside& operator=(const FileAside&) = delete;

  absl::Status Open() {
    CUBIT_ASSIGN_OR_RETURN(file_, files_.Create(temporary_));
    return absl::OkStatus();
  }
  template <typename Element>
  absl::Status Append(const std::vector<Element>& elements) {
    return file_->Append(
        elements.data(),
        static_cast<int64_t>(elements.size() * sizeof(Element)));
  }
  absl::Status Finish() {
    CUBIT_RETURN_IF_ERROR(file_->Sync());
    CUBIT_RETURN_IF_ERROR(file_->Close());
    CUBIT_RETURN_IF_ERROR(files_.Rename(temporary_, path_));
    file_ = nullptr;
    return files_.SyncFolder(FolderOf(path_));
  }
  const std::string& path() const { return path_; }

 private:
  FileSystem& files_;
  const std::string path_;
  const std::string temporary_;
  std::unique_ptr<WritableFile> file_;
};

class TokenExport {
 public:
  TokenExport(const TokenExportOptions& options, FileSystem& files)
      : options_(options), files_(files) {}

  absl::StatusOr<TokenExportReport> Run() {
    CUBIT_RETURN_IF_ERROR(OpenShards());
    CUBIT_RETURN_IF_ERROR(files_.CreateFolders(FolderOf(options_.out)));
    CUBIT_RETURN_IF_ERROR(options_.format == TokenFileFormat::kLlmc
                              ? WriteLlmc()
                              : WriteMegatron());
    return report_;
  }

 private:
  absl::Status OpenShards();
  absl::Status AppendIds(absl::Span<const int32_t> ids, FileAside* file);
  absl::Status AppendTokens(TokenShard& shard, int64_t begin, int64_t end,
                            FileAside* file);
  absl::Status WriteLlmc();
  absl::Status WriteLlmcShard(const std::string& path);
  absl::Status WriteLlmcFile(TokenShard& shard, int64_t begin, int64_t end);
  absl::Status WriteMegatron();
  absl::Status WriteMegatronIndex();
  // Calls `function(begin, end)` with every document's range of the split's
  // whole stream.
  template <typename Function>
  absl::Status ForEachDocument(Function function);
  // Appends to the file what `function` makes of every document, then `last`.
  template <typename Element, typename Function>
  absl::Status AppendTable(Function function, std::vector<Element> last,
                           FileAside* file);
  std::string Prefix() const {
    return absl::StrCat(options_.out, "_", options_.split);
  }

  const TokenExportOptions& options_;
  FileSystem& files_;
  DatasetIndex index_;
  std::vector<std::string> shards_;  // paths, of the split
  int64_t id_bytes_ = 2;
  TokenExportReport report_;
};

absl::Status TokenExport::OpenShards() {
  if (options_.file_tokens < 1 || options_.file_tokens > kLlmcMaxTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("--file_tokens=", options_.file_tokens, ": 1 to ",
                     kLlmcMaxTokens, " wanted"));
  }
  CUBIT_ASSIGN_OR_RETURN(index_, ReadDatasetIndex(files_, options_.data));
  for (const ShardEntry& entry : index_.shards) {
    if (entry.split != options_.split) continue;
    shards_.push_back(JoinPath(options_.data, entry.file));
    report_.tokens += entry.tokens;
    report_.documents += entry.documents;
  }
  if (shards_.empty()) {
    return absl::NotFoundError(absl::StrCat(
        options_.data, ": holds no split \"", options_.split, "\""));
  }
  const bool narrow = options_.format == TokenFileFormat::kLlmc
                          ? index_.vocab_size <= 65536
                          : index_.vocab_size < kMegatronUint16Vocabulary;
  id_bytes_ = narrow ? 2 : 4;
  return absl::OkStatus();
}

absl::Status TokenExport::AppendIds(absl::Span<const int32_t> ids,
                                    FileAside* file) {
  if (id_bytes_ == 4) {
    return file->Append(std::vector<int32_t>(ids.begin(), ids.end()));
  }
  std::vector<uint16_t> narrow(ids.size());
  std::transform(ids.begin(), ids.end(), narrow.begin(),
                 [](int32_t id) { return static_cast<uint16_t>(id); });
  return file->Append(narrow);
}

absl::Status TokenExport::AppendTokens(TokenShard& shard, int64_t begin,
                                       int64_t end, FileAside* file) {
  std::vector<int32_t> ids;
  for (; begin < end; begin += kBlock) {
    const int64_t count = std::min(kBlock, end - begin);
    ids.resize(static_cast<size_t>(count));
    CUBIT_RETURN_IF_ERROR(shard.ReadTokens(begin, count, ids.data()));
    CUBIT_RETURN_IF_ERROR(AppendIds(ids, file));
  }
  return absl::OkStatus();
}

absl::Status TokenExport::WriteLlmcFile(TokenShard& shard, int64_t begin,
                                        int64_t end) {
  if (end - begin > kLlmcMaxTokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        shard.path(), ": a document has ", end - begin,
        " tokens; a file of llm.c holds at most ", kLlmcMaxTokens));
  }
  FileAside file(
      files_, absl::StrFormat("%s_%06d.bin", Prefix(), report_.files.size()));
  CUBIT_RETURN_IF_ERROR(file.Open());
  std::vector<int32_t> header(kLlmcHeaderInts);
  header[0] = id_bytes_ == 2 ? kLlmcMagic16 : kLlmcMagic32;
  header[1] = id_bytes_ == 2 ? kLlmcVersion16 : kLlmcVersion32;
  header[2] = static_cast<int32_t>(end - begin);
  CUBIT_RETURN_IF_ERROR(file.Append(header));
  CUBIT_RETURN_IF_ERROR(AppendTokens(shard, begin, end, &file));
  CUBIT_RETURN_IF_ERROR(file.Finish());
  report_.files.push_back(file.path());
  return absl::OkStatus();
}

// A file never crosses shards: both end at documents.
absl::Status TokenExport::WriteLlmcShard(const std::string& path) {
  CUBIT_ASSIGN_OR_RETURN(TokenShard shard, TokenShard::Open(path, 0));
  int64_t begin = 0;
  int64_t end = 0;
  for (int64_t d = 0; d < shard.info().num_documents; ++d) {
    CUBIT_ASSIGN_OR_RETURN(const TokenShard::Range range,
                           shard.DocumentRange(d));
    if (range.end - begin > options_.file_tokens && end > begin) {
      CUBIT_RETURN_IF_ERROR(WriteLlmcFile(shard, begin, end));
      begin = end;
    }
    end = range.end;
  }
  return WriteLlmcFile(shard, begin, end);
}

absl::Status TokenExport::WriteLlmc() {
  for (const std::string& path : shards_) {
    CUBIT_RETURN_IF_ERROR(WriteLlmcShard(path));
  }
  return absl::OkStatus();
}

template <typename Function>
absl::Status TokenExport::ForEachDocument(Function function) {
  int64_t shard_begin = 0;
  for (const std::string& path : shards_) {
    CUBIT_ASSIGN_OR_RETURN(TokenShard shard, TokenShard::Open(path, 0));
    for (int64_t d = 0; d < shard.info().num_documents; ++d) {
      CUBIT_ASSIGN_OR_RETURN(const TokenShard::Range range,
                             shard.DocumentRange(d));
      CUBIT_RETURN_IF_ERROR(
          function(shard_begin + range.begin, shard_begin + range.end));
    }
    shard_begin += shard.info().num_tokens;
  }
  return absl::OkStatus();
}

template <typename Element, typename Function>
absl::Status TokenExport::AppendTable(Function function,
                                      std::vector<Element> last,
                                      FileAside* file) {
  std::vector<Element> block;
  CUBIT_RETURN_IF_ERROR(ForEachDocument([&](int64_t begin, int64_t end) {
    block.push_back(static_cast<Element>(function(begin, end)));
    if (static_cast<int64_t>(block.size()) < kBlock) return absl::OkStatus();
    absl::Status status = file->Append(block);
    block.clear();
    return status;
  }));
  block.insert(block.end(), last.begin(), last.end());
  return file->Append(block);
}

absl::Status TokenExport::WriteMegatronIndex() {
  CUBIT_RETURN_IF_ERROR(ForEachDocument([this](int64_t begin, int64_t end) {
    if (end - begin <= std::numeric_limits<int32_t>::max()) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(
        absl::StrCat(options_.data, ": a document has ", end - begin,
                     " tokens; Megatron's lengths are int32"));
  }));
  FileAside file(files_, Prefix() + ".idx");
  CUBIT_RETURN_IF_ERROR(file.Open());
  std::vector<char> header(kMegatronMagic,
                           kMegatronMagic + kMegatronMagicBytes);
  const auto put = [&header](uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) {
      header.push_back(static_cast<char>(value >> (8 * i) & 0xff));
    }
  };
  const auto documents = static_cast<uint64_t>(report_.documents);
  put(1, 8);
  put(id_bytes_ == 2 ? kMegatronUint16 : kMegatronInt32, 1);
  put(documents, 8);
  put(documents + 1, 8);
  CUBIT_CHECK_EQ(static_cast<int64_t>(header.size()), kMegatronHeaderBytes);
  CUBIT_RETURN_IF_ERROR(file.Append(header));
  CUBIT_RETURN_IF_ERROR(AppendTable<int32_t>(
      [](int64_t begin, int64_t end) { return end - begin; }, {}, &file));
  CUBIT_RETURN_IF_ERROR(AppendTable<int64_t>(
      [this](int64_t begin, int64_t) { return begin * id_bytes_; }, {}, &file));
  CUBIT_RETURN_IF_ERROR(AppendTable<int64_t>(
      [next = int64_t{0}](int64_t, int64_t) mutable { return next++; },
      {report_.documents}, &file));
  CUBIT_RETURN_IF_ERROR(file.Finish());
  report_.files.push_back(file.path());
  return absl::OkStatus();
}

// The end of text behind each document instead of before it: the shards' stream
// without its first id and with one more at the end.
absl::Status TokenExport::WriteMegatron() {
  FileAside file(files_, Prefix() + ".bin");
  CUBIT_RETURN_IF_ERROR(file.Open());
  for (const std::string& path : shards_) {
    CUBIT_ASSIGN_OR_RETURN(TokenShard shard, TokenShard::Open(path, 0));
    const int64_t begin = path == shards_.front() ? 1 : 0;
    CUBIT_RETURN_IF_ERROR(
        AppendTokens(shard, begin, shard.info().num_tokens, &file));
  }
  const int32_t eot_id = static_cast<int32_t>(index_.eot_id);
  CUBIT_RETURN_IF_ERROR(AppendIds({&eot_id, 1}, &file));
  CUBIT_RETURN_IF_ERROR(file.Finish());
  report_.files.push_back(file.path());
  return WriteMegatronIndex();
}

}  // namespace

absl::StatusOr<TokenExportReport> ExportTokens(
    const TokenExportOptions& options, FileSystem& files) {
  return TokenExport(options, files).Run();
}

}  // namespace cubit
