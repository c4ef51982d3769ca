// SPDX-License-Identifier: Apache-2.0

#include "data/reader_child.h"

#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <new>
#include <utility>

#include "data/token_shard.h"
#include "data/tokenizer.h"
#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr int64_t kMaxPathBytes = 1 << 16;
constexpr int64_t kMaxPaths = 1 << 20;

absl::Status GetRequest(MessageEnd* end, ReaderRequest* request) {
  char task = 0;
  CUBIT_RETURN_IF_ERROR(end->GetKind(&task));
  request->task = static_cast<ReaderTask>(task);
  int64_t eot_id = 0;
  int64_t paths = 0;
  for (int64_t* const value :
       {&request->limits.memory_bytes, &request->limits.open_files,
        &request->limits.cpu_seconds, &request->piece.begin_group,
        &request->piece.end_group, &request->vocabulary.size, &eot_id,
        &paths}) {
    CUBIT_RETURN_IF_ERROR(end->GetInteger(value));
  }
  request->vocabulary.eot_id = static_cast<int32_t>(eot_id);
  CUBIT_CHECK(paths >= 0 && paths <= kMaxPaths) << paths;
  request->piece.paths.resize(static_cast<size_t>(paths));
  for (std::string& path : request->piece.paths) {
    CUBIT_RETURN_IF_ERROR(end->GetBytes(kMaxPathBytes, &path));
  }
  return absl::OkStatus();
}

int64_t AddressSpaceBytes() {
  int64_t pages = 0;
  std::FILE* const file = std::fopen("/proc/self/statm", "r");
  CUBIT_CHECK(file != nullptr);
  CUBIT_CHECK_EQ(std::fscanf(file, "%ld", &pages), 1);
  std::fclose(file);
  return pages * sysconf(_SC_PAGESIZE);
}

void Limit(int resource, int64_t value) {
  const auto limit = static_cast<rlim_t>(value);
  const rlimit both = {limit, limit};
  // A limit that was lower already stays.
  if (setrlimit(static_cast<__rlimit_resource>(resource), &both) != 0) {
    rlimit present = {};
    CUBIT_CHECK_EQ(
        getrlimit(static_cast<__rlimit_resource>(resource), &present), 0);
    CUBIT_CHECK(present.rlim_max <= limit) << resource;
  }
}

// From here on the process can read files and answer, and little else.
void ApplyLimits(const ReaderLimits& limits) {
  std::set_new_handler([] { _exit(kReaderOutOfMemory); });
  Limit(RLIMIT_CORE, 0);
  // A message to a log that is a file fails, and does not end the process.
  signal(SIGXFSZ, SIG_IGN);
  Limit(RLIMIT_FSIZE, 0);
  Limit(RLIMIT_NOFILE, limits.open_files);
  Limit(RLIMIT_CPU, limits.cpu_seconds);
  Limit(RLIMIT_AS, AddressSpaceBytes() + limits.memory_bytes);
}

void Say(ReaderAnswer answer, MessageEnd* end) {
  end->PutKind(static_cast<char>(answer));
}

absl::Status Gone() { return absl::UnavailableError("nobody listens"); }

void PutDocument(const InputDocument& document, MessageEnd* end) {
  Say(document.is_tokens ? ReaderAnswer::kTokens : ReaderAnswer::kText, end);
  end->PutInteger(document.path);
  if (document.is_tokens) {
    end->PutBytes({reinterpret_cast<const char*>(document.ids.data()),
                   document.ids.size() * sizeof(int32_t)});
  } else {
    end->PutInteger(document.stated_tokens);
    end->PutBytes(document.text);
  }
}

// Before what may be the end of this process.
bool SayPath(size_t path, MessageEnd* end) {
  Say(ReaderAnswer::kPath, end);
  end->PutInteger(static_cast<int64_t>(path));
  return end->Flush();
}

absl::Status SendPiece(const ReaderRequest& request, MessageEnd* end) {
  const bool several = request.piece.paths.size() > 1;
  for (size_t path = 0; path < request.piece.paths.size(); ++path) {
    InputPiece piece = request.piece;
    piece.paths = {request.piece.paths[path]};
    if (several && !SayPath(path, end)) return Gone();
    CUBIT_ASSIGN_OR_RETURN(const auto stream, InputReader::InThisProcess().Open(
                                                  piece, request.vocabulary));
    InputDocument document;
    while (true) {
      CUBIT_ASSIGN_OR_RETURN(const bool more, stream->Next(&document));
      if (!more) break;
      document.path = static_cast<int64_t>(path);
      PutDocument(document, end);
      if (end->gone()) return Gone();
    }
  }
  return absl::OkStatus();
}

absl::Status SendGroups(const std::string& path, MessageEnd* end) {
  CUBIT_ASSIGN_OR_RETURN(const std::vector<ParquetGroup> groups,
                         ReadParquetGroups(path));
  for (const ParquetGroup& group : groups) {
    Say(ReaderAnswer::kGroup, end);
    end->PutInteger(group.rows);
    end->PutInteger(group.text_bytes);
  }
  return absl::OkStatus();
}

absl::Status CheckShards(const std::vector<std::string>& paths, bool verify,
                         MessageEnd* end) {
  for (size_t i = 0; i < paths.size(); ++i) {
    if (!SayPath(i, end)) return Gone();
    CUBIT_ASSIGN_OR_RETURN(TokenShard shard, TokenShard::Open(paths[i], 0));
    if (verify) CUBIT_RETURN_IF_ERROR(shard.Verify());
  }
  return absl::OkStatus();
}

absl::Status Answer(const ReaderRequest& request, MessageEnd* end) {
  switch (request.task) {
    case ReaderTask::kPiece:
      return SendPiece(request, end);
    case ReaderTask::kParquetGroups:
      return SendGroups(request.piece.paths.at(0), end);
    case ReaderTask::kTokenizer:
      return LoadTokenizer(request.piece.paths.at(0)).status();
    case ReaderTask::kOpenShards:
      return CheckShards(request.piece.paths, /*verify=*/false, end);
    case ReaderTask::kVerifyShards:
      return CheckShards(request.piece.paths, /*verify=*/true, end);
  }
  return absl::InternalError("an unknown task");
}

}  // namespace

void PutRequest(const ReaderRequest& request, MessageEnd* end) {
  end->PutKind(static_cast<char>(request.task));
  for (const int64_t value :
       {request.limits.memory_bytes, request.limits.open_files,
        request.limits.cpu_seconds, request.piece.begin_group,
        request.piece.end_group, request.vocabulary.size,
        int64_t{request.vocabulary.eot_id},
        static_cast<int64_t>(request.piece.paths.size())}) {
    end->PutInteger(value);
  }
  for (const std::string& path : request.piece.paths) end->PutBytes(path);
}

absl::optional<int> RunReaderProcess(int argc, char** argv) {
  if (argc != 2 || std::strcmp(argv[1], kReaderProcessFlag) != 0) {
    return absl::nullopt;
  }
  // What the parent had open without meaning to pass it on.
  close_range(kReaderProcessMemory + 1, ~0u, 0);
  absl::StatusOr<AnswerBlocks> blocks = AnswerBlocks::Map(kReaderProcessMemory);
  close(kReaderProcessMemory);
  if (!blocks.ok()) return 1;
  AnsweringEnd end(OwnedFd(kReaderProcessSocket), *std::move(blocks));
  for (bool first = true;; first = false) {
    ReaderRequest request;
    // Who asks for no more is gone.
    if (!GetRequest(&end, &request).ok()) return first ? 1 : 0;
    if (first) ApplyLimits(request.limits);
    const absl::Status status = Answer(request, &end);
    Say(status.ok() ? ReaderAnswer::kEnd : ReaderAnswer::kError, &end);
    if (!status.ok()) {
      end.PutInteger(static_cast<int64_t>(status.code()));
      end.PutBytes(status.message());
    }
    if (!end.Flush()) return 1;
    if (!status.ok()) return 0;
  }
}

}  // namespace cubit
