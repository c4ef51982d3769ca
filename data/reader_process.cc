// SPDX-License-Identifier: Apache-2.0

#include "data/reader_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

#include "data/document_reader.h"
#include "data/reader_child.h"
#include "data/reader_messages.h"
#include "runtime/check.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr int64_t kMaxMessageBytes = 1 << 20;  // of an error
constexpr int64_t kMaxGroups = 1 << 20;

// Environment of the process: one thread for libraries that would start some.
std::vector<std::string> ChildEnvironment() {
  std::vector<std::string> variables = {"OPENBLAS_NUM_THREADS=1",
                                        "OMP_NUM_THREADS=1"};
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (absl::StartsWith(*variable, "OPENBLAS_NUM_THREADS=") ||
        absl::StartsWith(*variable, "OMP_NUM_THREADS=")) {
      continue;
    }
    variables.emplace_back(*variable);
  }
  return variables;
}

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> pointers(strings.size() + 1);
  std::transform(strings.begin(), strings.end(), pointers.begin(),
                 [](std::string& string) { return string.data(); });
  return pointers;
}

// `memory` is above the numbers that the process finds them by.
absl::StatusOr<pid_t> StartProcess(const OwnedFd& socket,
                                   const OwnedFd& memory) {
  std::vector<std::string> arguments = {"cubit reader", kReaderProcessFlag};
  std::vector<std::string> environment = ChildEnvironment();
  posix_spawn_file_actions_t actions;
  CUBIT_CHECK_EQ(posix_spawn_file_actions_init(&actions), 0);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null",
                                   O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null",
                                   O_WRONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, socket.get(),
                                   kReaderProcessSocket);
  posix_spawn_file_actions_adddup2(&actions, memory.get(),
                                   kReaderProcessMemory);
  pid_t pid = -1;
  const int error =
      posix_spawn(&pid, "/proc/self/exe", &actions, nullptr,
                  Pointers(arguments).data(), Pointers(environment).data());
  posix_spawn_file_actions_destroy(&actions);
  if (error == 0) return pid;
  return absl::UnavailableError(absl::StrCat(
      "cannot start a process that reads files: ", std::strerror(error)));
}

// A process that reads, from its first request to its end.
class ReaderChild {
 public:
  explicit ReaderChild(std::vector<std::string> paths)
      : paths_(std::move(paths)) {}
  ~ReaderChild() { End(); }
  ReaderChild(const ReaderChild&) = delete;
  ReaderChild& operator=(const ReaderChild&) = delete;

  absl::Status Start(const ReaderRequest& request) {
    limits_ = request.limits;
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) {
      return absl::UnavailableError(
          absl::StrCat("cannot make a socket: ", std::strerror(errno)));
    }
    OwnedFd ours(fds[0]);
    const OwnedFd theirs(fds[1]);
    OwnedFd memory;
    CUBIT_ASSIGN_OR_RETURN(
        AnswerBlocks blocks,
        AnswerBlocks::Make(kReaderProcessMemory + 1, &memory));
    end_ = std::make_unique<AskingEnd>(std::move(ours), std::move(blocks));
    const absl::StatusOr<pid_t> pid = StartProcess(theirs, memory);
    if (!pid.ok()) return pid.status();
    pid_ = *pid;
    end_->SetTimeout(limits_.silent_seconds);
    Ask(request);
    return absl::OkStatus();
  }

  // The first request, or one after kEnd, of the same paths.
  void Ask(const ReaderRequest& request) {
    path_ = 0;
    PutRequest(request, end_.get());
    // If it is gone already, the first answer says why.
    end_->Flush();
  }

  AskingEnd& end() { return *end_; }

  // The next kind of answer; kError becomes its status, kPath is noted.
  absl::StatusOr<ReaderAnswer> Next() {
    while (true) {
      char kind = 0;
      CUBIT_RETURN_IF_ERROR(Check(end_->GetKind(&kind)));
      const auto answer = static_cast<ReaderAnswer>(kind);
      if (answer == ReaderAnswer::kError) return ReceiveError();
      if (answer != ReaderAnswer::kPath) return answer;
      int64_t path = 0;
      CUBIT_RETURN_IF_ERROR(Check(end_->GetInteger(&path)));
      if (path < 0 || path >= static_cast<int64_t>(paths_.size())) {
        return Nonsense("an unknown file");
      }
      path_ = static_cast<size_t>(path);
    }
  }

  // Makes an error of the socket one of the process.
  absl::Status Check(const absl::Status& status) {
    if (status.ok()) return status;
    if (absl::IsDeadlineExceeded(status)) {
      End();
      return Error(absl::StrCat("reading it took over ", limits_.silent_seconds,
                                " s without a result, and was ended"));
    }
    if (absl::IsDataLoss(status)) return Nonsense(status.message());
    return Death();
  }

  absl::Status Nonsense(absl::string_view what) {
    End();
    return Error(absl::StrCat("the process that reads it sent ", what));
  }

  const std::string& path() const { return paths_[path_]; }
  const std::vector<std::string>& paths() const { return paths_; }

 private:
  absl::Status Error(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(
        path(), ": ", what, ": a damaged or hostile file, or too large a one"));
  }

  absl::Status ReceiveError() {
    int64_t code = 0;
    std::string message;
    CUBIT_RETURN_IF_ERROR(Check(end_->GetInteger(&code)));
    CUBIT_RETURN_IF_ERROR(Check(end_->GetBytes(kMaxMessageBytes, &message)));
    if (code <= 0 ||
        code > static_cast<int64_t>(absl::StatusCode::kUnauthenticated)) {
      return Nonsense("an unknown error");
    }
    return absl::Status(static_cast<absl::StatusCode>(code), message);
  }

  // Why the process ended without saying so.
  absl::Status Death() {
    const int status = Wait();
    if (WIFEXITED(status) && WEXITSTATUS(status) == kReaderOutOfMemory) {
      return Error(absl::StrCat("reading it needs more than ",
                                limits_.memory_bytes >> 20, " MiB of memory"));
    }
    if (WIFEXITED(status)) {
      return Error(absl::StrCat("the process that reads it ended with status ",
                                WEXITSTATUS(status)));
    }
    if (WTERMSIG(status) == SIGXCPU) {
      return Error(absl::StrCat("reading it took over ", limits_.cpu_seconds,
                                " s of processor time"));
    }
    return Error(absl::StrCat("the process that reads it was ended by signal ",
                              WTERMSIG(status), " (",
                              strsignal(WTERMSIG(status)), ")"));
  }

  int Wait() {
    int status = 0;
    while (pid_ >= 0 && waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    return status;
  }

  void End() {
    if (pid_ < 0) return;
    kill(pid_, SIGKILL);
    Wait();
  }

  const std::vector<std::string> paths_;
  size_t path_ = 0;  // that the process reads
  ReaderLimits limits_;
  std::unique_ptr<AskingEnd> end_;
  pid_t pid_ = -1;
};

// A request that is answered with an error or nothing.
absl::Status Try(ReaderTask task, const std::vector<std::string>& paths,
                 const ReaderLimits& limits) {
  if (paths.empty()) return absl::OkStatus();
  ReaderRequest request;
  request.task = task;
  request.limits = limits;
  request.piece.paths = paths;
  ReaderChild child(paths);
  CUBIT_RETURN_IF_ERROR(child.Start(request));
  CUBIT_ASSIGN_OR_RETURN(const ReaderAnswer answer, child.Next());
  return answer == ReaderAnswer::kEnd ? absl::OkStatus()
                                      : child.Nonsense("an answer");
}

}  // namespace

// Processes that have read a piece of a file and may be asked for another.
class ProcessReader::Waiting {
 public:
  void Put(std::unique_ptr<ReaderChild> child) {
    if (child->paths().size() != 1) return;  // the only piece of its files
    const std::lock_guard<std::mutex> lock(mutex_);
    children_.push_back(std::move(child));
  }

  // One that has read `paths`, or null. Pieces are asked for in the order of
  // files, so those of other files are wanted no more, and end.
  std::unique_ptr<ReaderChild> Take(const std::vector<std::string>& paths) {
    const std::lock_guard<std::mutex> lock(mutex_);
    children_.erase(std::remove_if(children_.begin(), children_.end(),
                                   [&paths](const auto& child) {
                                     return child->paths() != paths;
                                   }),
                    children_.end());
    if (children_.empty()) return nullptr;
    std::unique_ptr<ReaderChild> child = std::move(children_.back());
    children_.pop_back();
    return child;
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<ReaderChild>> children_;
};

class ProcessReader::Stream : public InputStream {
 public:
  Stream(std::unique_ptr<ReaderChild> child, Waiting* waiting,
         const TokenVocabulary& vocabulary)
      : child_(std::move(child)), waiting_(waiting), vocabulary_(vocabulary) {}

  absl::StatusOr<bool> Next(InputDocument* document) override {
    if (child_ == nullptr) return false;
    CUBIT_ASSIGN_OR_RETURN(const ReaderAnswer answer, child_->Next());
    if (answer == ReaderAnswer::kEnd) {
      waiting_->Put(std::move(child_));
      return false;
    }
    AskingEnd& end = child_->end();
    CUBIT_RETURN_IF_ERROR(child_->Check(end.GetInteger(&document->path)));
    document->is_tokens = answer == ReaderAnswer::kTokens;
    document->stated_tokens = -1;
    document->text.clear();
    document->ids.clear();
    if (document->is_tokens) {
      CUBIT_RETURN_IF_ERROR(
          child_->Check(end.GetIds(kMaxDocumentTokens, &document->ids)));
      for (const int32_t id : document->ids) {
        if (id < 0 || id >= vocabulary_.size || id == vocabulary_.eot_id) {
          return child_->Nonsense("an id beyond the vocabulary");
        }
      }
      return true;
    }
    if (answer != ReaderAnswer::kText) return child_->Nonsense("an answer");
    CUBIT_RETURN_IF_ERROR(
        child_->Check(end.GetInteger(&document->stated_tokens)));
    CUBIT_RETURN_IF_ERROR(
        child_->Check(end.GetBytes(kMaxDocumentBytes, &document->text)));
    if (document->text.empty()) return child_->Nonsense("an empty text");
    return true;
  }

 private:
  std::unique_ptr<ReaderChild> child_;  // null after the end
  Waiting* const waiting_;
  const TokenVocabulary vocabulary_;
};

ProcessReader::ProcessReader(const ReaderLimits& limits)
    : limits_(limits), waiting_(std::make_unique<Waiting>()) {}
ProcessReader::~ProcessReader() = default;

absl::StatusOr<std::vector<ParquetGroup>> ProcessReader::ParquetGroups(
    const std::string& path) {
  ReaderRequest request;
  request.task = ReaderTask::kParquetGroups;
  request.limits = limits_;
  request.piece.paths = {path};
  ReaderChild child({path});
  CUBIT_RETURN_IF_ERROR(child.Start(request));
  std::vector<ParquetGroup> groups;
  while (true) {
    CUBIT_ASSIGN_OR_RETURN(const ReaderAnswer answer, child.Next());
    if (answer == ReaderAnswer::kEnd) return groups;
    ParquetGroup group;
    CUBIT_RETURN_IF_ERROR(child.Check(child.end().GetInteger(&group.rows)));
    CUBIT_RETURN_IF_ERROR(
        child.Check(child.end().GetInteger(&group.text_bytes)));
    if (answer != ReaderAnswer::kGroup || group.rows < 0 ||
        group.text_bytes < 0 ||
        static_cast<int64_t>(groups.size()) == kMaxGroups) {
      return child.Nonsense("no row groups");
    }
    groups.push_back(group);
  }
}

absl::StatusOr<std::unique_ptr<InputStream>> ProcessReader::Open(
    const InputPiece& piece, const TokenVocabulary& vocabulary) {
  ReaderRequest request;
  request.task = ReaderTask::kPiece;
  request.limits = limits_;
  request.piece = piece;
  request.vocabulary = vocabulary;
  std::unique_ptr<ReaderChild> child = waiting_->Take(piece.paths);
  if (child != nullptr) {
    child->Ask(request);
  } else {
    child = std::make_unique<ReaderChild>(piece.paths);
    CUBIT_RETURN_IF_ERROR(child->Start(request));
  }
  return std::make_unique<Stream>(std::move(child), waiting_.get(), vocabulary);
}

absl::Status TryTokenizer(const std::string& spec, const ReaderLimits& limits) {
  return Try(ReaderTask::kTokenizer, {spec}, limits);
}

absl::Status TryShards(const std::vector<std::string>& paths, bool verify,
                       const ReaderLimits& limits) {
  return Try(verify ? ReaderTask::kVerifyShards : ReaderTask::kOpenShards,
             paths, limits);
}

}  // namespace cubit
