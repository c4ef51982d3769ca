// SPDX-License-Identifier: Apache-2.0

#include "data/prepare.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

#include "data/dataset_index.h"
#include "data/folder_lock.h"
#include "data/input_reader.h"
#include "data/prepare_progress.h"
#include "data/prepare_request.h"
#include "data/reader_process.h"
#include "data/split_rule.h"
#include "data/token_shard.h"
#include "data/tokenize_pipeline.h"
#include "runtime/check.h"
#include "runtime/logging.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr char kWriter[] = "cubit 1";
constexpr int64_t kMaxRequestBytes = int64_t{256} << 20;
// The tokenizer whose tokens FineWeb's token_count counts.
constexpr char kCountedTokenizer[] = "gpt2";

// One preparation, from the inputs to index.json.
class Preparation {
 public:
  Preparation(const PrepareOptions& options, const Tokenizer& tokenizer,
              FileSystem& files, std::vector<std::string> paths,
              PrepareRequest request)
      : options_(options),
        tokenizer_(tokenizer),
        files_(files),
        paths_(std::move(paths)),
        request_(std::move(request)),
        rule_(options.validation_fraction),
        train_(Info("train"), options.shard_tokens),
        validation_(Info("validation"), options.shard_tokens) {}

  absl::StatusOr<PrepareReport> Run();

 private:
  // What is done and being collected for one split.
  struct Split {
    Split(const TokenShardInfo& info, int64_t shard_tokens)
        : builder(info, shard_tokens) {}
    TokenShardBuilder builder;
    int64_t finished_documents = 0;  // in shards of an earlier call
    int64_t seen_documents = 0;
  };

  TokenShardInfo Info(const std::string& split) const;
  std::string Path(absl::string_view name) const {
    return JoinPath(options_.out, name);
  }

  absl::Status Begin();
  absl::Status FinishBegin();
  absl::Status CheckComplete(const PrepareRequest& found);
  absl::StatusOr<PrepareRequest> ReadRequest();
  absl::Status StartAgain(const std::vector<std::string>& names);
  absl::Status AdoptShards();
  absl::Status AdoptShard(const std::string& name);
  absl::Status WriteShards();
  absl::Status WriteDocuments(InputReader* reader);
  absl::Status AddBatch(const TokenizedBatch& batch);
  absl::Status AddDocument(Split& split, absl::Span<const int32_t> ids);
  absl::Status AddSingleDocument();
  absl::Status Flush(Split& split);
  absl::Status FinishFlush();
  absl::Status Finish();
  void CleanUp();
  void RemoveNewFolder();

  const PrepareOptions& options_;
  const Tokenizer& tokenizer_;
  FileSystem& files_;
  const std::vector<std::string> paths_;
  PrepareRequest request_;
  const SplitRule rule_;
  Split train_;
  Split validation_;
  // Document 0, until it is known not to be the only one.
  std::vector<int32_t> first_document_;
  int64_t documents_ = 0;
  std::vector<ShardEntry> shards_;
  // Completes request_, or invalid. Nothing else uses files_ and the digests
  // then.
  std::future<absl::Status> digesting_;
  // Writes image_ as the shard after them, or invalid. Nothing else uses files_
  // then.
  ShardImage image_;
  std::future<absl::StatusOr<WrittenShard>> flushing_;
  FolderLock lock_;
  bool folder_was_there_ = false;
  bool owns_contents_ = false;  // whatever lies in the folder is this call's
  bool bad_input_ = false;
  PrepareReport report_;
};

TokenShardInfo Preparation::Info(const std::string& split) const {
  TokenShardInfo info;
  info.tokenizer = tokenizer_.name();
  info.tokenizer_sha256 = tokenizer_.sha256();
  info.vocab_size = tokenizer_.vocab_size();
  info.eot_id = tokenizer_.eot_id();
  info.split = split;
  info.source = request_.source;
  info.created = options_.created.empty()
                     ? absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(),
                                        absl::UTCTimeZone())
                     : options_.created;
  info.writer = kWriter;
  return info;
}

absl::StatusOr<PrepareRequest> Preparation::ReadRequest() {
  const std::string path = Path(kPrepareRequestName);
  CUBIT_ASSIGN_OR_RETURN(const std::string json,
                         ReadFile(files_, path, kMaxRequestBytes));
  return ParsePrepareRequest(json, path);
}

absl::Status Preparation::CheckComplete(const PrepareRequest& found) {
  CUBIT_ASSIGN_OR_RETURN(const std::string difference,
                         DifferenceOf(files_, found, &request_));
  if (!difference.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat(options_.out, ": holds another data set: ", difference,
                     ". Choose another --out, or remove the folder"));
  }
  CUBIT_ASSIGN_OR_RETURN(const DatasetIndex index,
                         ReadDatasetIndex(files_, options_.out));
  shards_ = index.shards;
  report_.was_complete = true;
  return absl::OkStatus();
}

absl::Status Preparation::StartAgain(const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    if (IsShardName(name)) CUBIT_RETURN_IF_ERROR(files_.Remove(Path(name)));
  }
  CUBIT_RETURN_IF_ERROR(files_.Remove(Path(kTokenizerFolder)));
  // Durable before the new request is: old shards never stand beside it.
  return files_.SyncFolder(options_.out);
}

// Decides between a new, an unfinished, a complete and a foreign folder.
absl::Status Preparation::Begin() {
  folder_was_there_ = files_.Exists(options_.out);
  CUBIT_RETURN_IF_ERROR(files_.CreateFolders(options_.out));
  CUBIT_RETURN_IF_ERROR(lock_.Lock(options_.out, options_.wait_for_others));
  CUBIT_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                         files_.List(options_.out));
  const auto has = [&names](absl::string_view name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  const bool has_shards = std::any_of(names.begin(), names.end(), IsShardName);
  if (!has(kPrepareRequestName)) {
    if (has(kIndexName) || has(kTokenizerFolder) || has_shards) {
      return absl::FailedPreconditionError(absl::StrCat(
          options_.out, ": holds shards or a tokenizer, but no ",
          kPrepareRequestName,
          " that says of what; choose another --out, or remove the folder"));
    }
    owns_contents_ = true;
  } else {
    const absl::StatusOr<PrepareRequest> found = ReadRequest();
    if (has(kIndexName)) {
      CUBIT_RETURN_IF_ERROR(found.status());
      return CheckComplete(*found);
    }
    std::string difference = absl::StrCat(found.status().message());
    if (found.ok()) {
      CUBIT_ASSIGN_OR_RETURN(difference,
                             DifferenceOf(files_, *found, &request_));
    }
    owns_contents_ = true;
    if (difference.empty()) {
      CUBIT_RETURN_IF_ERROR(AdoptShards());
      CUBIT_RETURN_IF_ERROR(DigestInputs(files_, &*found, &request_));
    } else {
      LogInfo(absl::StrCat(
          options_.out,
          ": starting an unfinished preparation again: ", difference));
      CUBIT_RETURN_IF_ERROR(StartAgain(names));
    }
  }
  // Beside the reading of the same files.
  digesting_ = std::async(std::launch::async, [this] {
    return DigestInputs(files_, nullptr, &request_);
  });
  return absl::OkStatus();
}

// No shard stands there before the request that it answers.
absl::Status Preparation::FinishBegin() {
  if (!digesting_.valid()) return absl::OkStatus();
  CUBIT_RETURN_IF_ERROR(digesting_.get());
  CUBIT_RETURN_IF_ERROR(WriteFileAtomically(files_, Path(kPrepareRequestName),
                                            PrepareRequestToJson(request_)));
  return SaveTokenizer(tokenizer_, files_, Path(kTokenizerFolder));
}

// The shards of an interrupted call, up to the first that is missing or
// damaged; the others are removed.
absl::Status Preparation::AdoptShards() {
  bool intact = true;
  for (int64_t number = 0; intact; ++number) {
    const std::string name = TokenShardName(number);
    if (!files_.Exists(Path(name))) break;
    const absl::Status status = AdoptShard(name);
    intact = status.ok();
    if (!intact) LogWarning(absl::StrCat(status.message(), "; made again"));
  }
  report_.reused_shards = static_cast<int64_t>(shards_.size());
  CUBIT_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                         files_.List(options_.out));
  for (const std::string& name : names) {
    const bool adopted =
        std::any_of(shards_.begin(), shards_.end(),
                    [&name](const ShardEntry& e) { return e.file == name; });
    if (IsShardName(name) && !adopted) {
      CUBIT_RETURN_IF_ERROR(files_.Remove(Path(name)));
    }
  }
  return absl::OkStatus();
}

absl::Status Preparation::AdoptShard(const std::string& name) {
  CUBIT_ASSIGN_OR_RETURN(TokenShard shard, TokenShard::Open(Path(name), 0));
  const TokenShardInfo& info = shard.info();
  if (info.tokenizer_sha256 != tokenizer_.sha256() ||
      info.source != request_.source ||
      (info.split != "train" && info.split != "validation")) {
    return absl::FailedPreconditionError(
        absl::StrCat(Path(name), ": is of another preparation"));
  }
  CUBIT_RETURN_IF_ERROR(shard.Verify());
  WrittenShard written;
  written.info = info;
  CUBIT_ASSIGN_OR_RETURN(written.bytes, files_.FileSize(Path(name)));
  CUBIT_ASSIGN_OR_RETURN(written.xxh3_128, FileDigest(files_, Path(name)));
  Split& split = info.split == "train" ? train_ : validation_;
  split.finished_documents += info.num_documents;
  shards_.push_back(
      MakeShardEntry(static_cast<int64_t>(shards_.size()), written));
  return absl::OkStatus();
}

// Made here and written in a thread, one at a time: documents are collected
// meanwhile.
absl::Status Preparation::Flush(Split& split) {
  CUBIT_RETURN_IF_ERROR(FinishBegin());
  CUBIT_RETURN_IF_ERROR(FinishFlush());
  CUBIT_ASSIGN_OR_RETURN(image_,
                         split.builder.MakeImage(std::move(image_.file)));
  split.builder.Clear();
  flushing_ = std::async(
      std::launch::async,
      [this,
       path = Path(TokenShardName(static_cast<int64_t>(shards_.size())))] {
        return WriteShardImage(files_, image_, path);
      });
  return absl::OkStatus();
}

absl::Status Preparation::FinishFlush() {
  if (!flushing_.valid()) return absl::OkStatus();
  CUBIT_ASSIGN_OR_RETURN(const WrittenShard written, flushing_.get());
  shards_.push_back(
      MakeShardEntry(static_cast<int64_t>(shards_.size()), written));
  return absl::OkStatus();
}

absl::Status Preparation::AddDocument(Split& split,
                                      absl::Span<const int32_t> ids) {
  if (split.seen_documents++ < split.finished_documents) {
    return absl::OkStatus();
  }
  const int64_t tokens = 1 + static_cast<int64_t>(ids.size());
  if (split.builder.num_documents() > 0 &&
      split.builder.num_tokens() + tokens > options_.shard_tokens) {
    CUBIT_RETURN_IF_ERROR(Flush(split));
  }
  split.builder.AddDocument(ids);
  return absl::OkStatus();
}

absl::Status Preparation::AddBatch(const TokenizedBatch& batch) {
  const bool counts = tokenizer_.name() == kCountedTokenizer;
  for (int64_t d = 0; d < batch.documents(); ++d) {
    const absl::Span<const int32_t> ids = batch.Ids(d);
    const int64_t document = documents_++;
    if (counts) {
      report_.token_counts.Add(document,
                               batch.stated_tokens[static_cast<size_t>(d)],
                               static_cast<int64_t>(ids.size()));
    }
    if (document == 0) {
      first_document_.assign(ids.begin(), ids.end());
      continue;
    }
    if (document == 1) {
      CUBIT_RETURN_IF_ERROR(AddDocument(train_, first_document_));
      first_document_ = std::vector<int32_t>();
    }
    CUBIT_RETURN_IF_ERROR(
        AddDocument(rule_.IsValidation(document) ? validation_ : train_, ids));
  }
  report_.text_bytes += batch.text_bytes;
  return absl::OkStatus();
}

absl::Status Preparation::AddSingleDocument() {
  const absl::Span<const int32_t> ids(first_document_);
  const size_t head = static_cast<size_t>(
      rule_.TrainTokensOfSingle(static_cast<int64_t>(ids.size())));
  CUBIT_RETURN_IF_ERROR(AddDocument(train_, ids.first(head)));
  if (head == ids.size()) return absl::OkStatus();
  return AddDocument(validation_, ids.subspan(head));
}

absl::Status Preparation::WriteDocuments(InputReader* reader) {
  // Called for every document in order, by one thread.
  const auto wanted = [this, train = int64_t{0},
                       validation = int64_t{0}](int64_t document) mutable {
    if (rule_.IsValidation(document)) {
      return validation++ >= validation_.finished_documents;
    }
    // Document 0 is needed if it turns out to be the only one.
    return train++ >= train_.finished_documents || document == 0;
  };
  PrepareProgress progress(request_.inputs, options_.show_progress);
  absl::StatusOr<std::vector<InputPiece>> pieces =
      CutIntoPieces(paths_, *reader);
  if (!pieces.ok()) {
    bad_input_ = absl::IsInvalidArgument(pieces.status());
    return pieces.status();
  }
  TokenizePipeline pipeline(*std::move(pieces), reader, tokenizer_,
                            options_.threads, wanted);
  TokenizedBatch batch;
  for (;;) {
    const absl::StatusOr<bool> more = pipeline.Next(&batch);
    if (!more.ok()) {
      bad_input_ = absl::IsInvalidArgument(more.status());
      return more.status();
    }
    if (!*more) return absl::OkStatus();
    CUBIT_RETURN_IF_ERROR(AddBatch(batch));
    progress.Update(batch.file, batch.text_bytes, documents_);
  }
}

absl::Status Preparation::WriteShards() {
  ProcessReader isolated{ReaderLimits()};
  CUBIT_RETURN_IF_ERROR(WriteDocuments(
      options_.isolate ? &isolated : &InputReader::InThisProcess()));
  if (documents_ == 0) {
    bad_input_ = true;
    return absl::InvalidArgumentError(absl::StrCat(
        paths_.front(), paths_.size() > 1 ? " and others" : "", ": no text in ",
        paths_.size(), " input files: all are empty. Check --input"));
  }
  if (documents_ == 1) CUBIT_RETURN_IF_ERROR(AddSingleDocument());
  for (Split* split : {&train_, &validation_}) {
    if (split->builder.num_documents() == 0) continue;
    CUBIT_RETURN_IF_ERROR(Flush(*split));
  }
  // Where every shard is of an earlier call.
  return FinishBegin();
}

absl::Status Preparation::Finish() {
  CUBIT_ASSIGN_OR_RETURN(const PrepareRequest now,
                         MakePrepareRequest(options_, tokenizer_, paths_));
  for (size_t i = 0; i < now.inputs.size(); ++i) {
    if (now.inputs[i].bytes == request_.inputs[i].bytes &&
        now.inputs[i].modified_ns == request_.inputs[i].modified_ns) {
      continue;
    }
    return absl::AbortedError(absl::StrCat(
        paths_[i], ": changed while it was read; run the same command again"));
  }
  DatasetIndex index;
  index.tokenizer = tokenizer_.name();
  index.tokenizer_sha256 = tokenizer_.sha256();
  index.vocab_size = tokenizer_.vocab_size();
  index.eot_id = tokenizer_.eot_id();
  index.source = request_.source;
  index.shards = shards_;
  return WriteFileAtomically(files_, Path(kIndexName),
                             DatasetIndexToJson(index));
}

// After an error. Its own errors do not matter: the first one is reported, and
// whatever is left behind is no data set without index.json.
void Preparation::CleanUp() {
  if (!owns_contents_) return RemoveNewFolder();
  for (const char* name : {kIndexName, kPrepareRequestName}) {
    files_.Remove(Path(absl::StrCat(name, ".tmp"))).IgnoreError();
  }
  if (files_.Exists(Path(kIndexName))) return;
  // What lies there counts, not what was noted: a shard may have been renamed
  // into place before its error.
  std::vector<std::string> shards =
      files_.List(options_.out).value_or(std::vector<std::string>());
  shards.erase(
      std::remove_if(shards.begin(), shards.end(), std::not_fn(IsShardName)),
      shards.end());
  if (!shards.empty() && !bad_input_) return;
  for (const std::string& shard : shards) {
    files_.Remove(Path(shard)).IgnoreError();
  }
  files_.Remove(Path(kTokenizerFolder)).IgnoreError();
  files_.Remove(Path(kPrepareRequestName)).IgnoreError();
  RemoveNewFolder();
}

// Remove takes contents along, so the folder must be seen to be empty.
void Preparation::RemoveNewFolder() {
  if (folder_was_there_) return;
  const auto names = files_.List(options_.out);
  if (names.ok() && names->empty()) files_.Remove(options_.out).IgnoreError();
}

absl::StatusOr<PrepareReport> Preparation::Run() {
  const auto start = std::chrono::steady_clock::now();
  absl::Status status = Begin();
  if (status.ok() && !report_.was_complete) {
    status = WriteShards();
    status.Update(FinishFlush());
    if (status.ok()) status = Finish();
  }
  if (!status.ok()) {
    if (digesting_.valid()) digesting_.wait();
    CleanUp();
    return status;
  }
  report_.shards = static_cast<int64_t>(shards_.size());
  for (const ShardEntry& shard : shards_) {
    const bool train = shard.split == "train";
    (train ? report_.train_documents : report_.validation_documents) +=
        shard.documents;
    (train ? report_.train_tokens : report_.validation_tokens) += shard.tokens;
  }
  report_.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
          .count();
  return report_;
}

}  // namespace

absl::StatusOr<PrepareReport> Prepare(const PrepareOptions& options,
                                      const Tokenizer& tokenizer,
                                      FileSystem& files) {
  CUBIT_RETURN_IF_ERROR(CheckPrepareOptions(options));
  CUBIT_ASSIGN_OR_RETURN(std::vector<std::string> paths,
                         ListPrepareInputs(options));
  CUBIT_ASSIGN_OR_RETURN(PrepareRequest request,
                         MakePrepareRequest(options, tokenizer, paths));
  return Preparation(options, tokenizer, files, std::move(paths),
                     std::move(request))
      .Run();
}

absl::StatusOr<PrepareReport> Prepare(const PrepareOptions& options,
                                      const std::string& tokenizer_spec) {
  CUBIT_RETURN_IF_ERROR(CheckPrepareOptions(options));
  if (options.isolate && tokenizer_spec != "byte") {
    CUBIT_RETURN_IF_ERROR(TryTokenizer(tokenizer_spec, ReaderLimits()));
  }
  CUBIT_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                         LoadTokenizer(tokenizer_spec));
  return Prepare(options, *tokenizer, FileSystem::Posix());
}

}  // namespace cubit
