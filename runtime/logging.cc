// SPDX-License-Identifier: Apache-2.0

#include "runtime/logging.h"

#include <execinfo.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>

#include "absl/debugging/failure_signal_handler.h"
#include "absl/debugging/stacktrace.h"
#include "absl/debugging/symbolize.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "spdlog/sinks/basic_file_sink.h"
#include "spdlog/spdlog.h"

namespace cubit {
namespace {

// The terminal and the log file belong to the process; so does their state.
std::mutex log_mutex;
// Guarded by log_mutex. A plain pointer, so that lines may still be written
// while static objects go.
spdlog::logger* log_file = nullptr;
bool progress_on_screen = false;  // guarded by log_mutex
int own_rank = 0;                 // guarded by log_mutex
bool several_ranks = false;       // guarded by log_mutex

enum class Audience { kFile, kAll };

// The text with "[rank 3] " before each of its lines.
std::string WithRank(absl::string_view text) {
  const std::string prefix = absl::StrCat("[rank ", own_rank, "] ");
  return absl::StrCat(prefix,
                      absl::StrReplaceAll(text, {{"\n", "\n" + prefix}}));
}

void Line(absl::string_view prefix, absl::string_view line, Audience audience) {
  const std::string plain = absl::StrCat(prefix, line);
  const std::lock_guard<std::mutex> lock(log_mutex);
  const std::string ranked = several_ranks ? WithRank(plain) : plain;
  if (audience == Audience::kAll) {
    // One write, so that lines of several processes do not mix.
    std::fprintf(stderr, "%s%s\n", progress_on_screen ? "\r\033[K" : "",
                 (own_rank == 0 ? plain : ranked).c_str());
    progress_on_screen = false;
  }
  if (log_file != nullptr) log_file->info(ranked);
}

bool SpeaksToTheTerminal() {
  const std::lock_guard<std::mutex> lock(log_mutex);
  return own_rank == 0;
}

int WidthFromLauncher() {
  const char* text = std::getenv(kTerminalWidthVariable);
  int width = 0;
  return text != nullptr && absl::SimpleAtoi(text, &width) ? width : 0;
}

// Walks the stack by the unwind tables. Abseil would follow frame pointers,
// which the system's libraries do not keep: a trace would end in abort().
int UnwindStack(void** frames, int* sizes, int max_depth, int skip_count,
                const void* /*context*/, int* min_dropped_frames) {
  std::array<void*, 128> all;
  const int depth = backtrace(all.data(), static_cast<int>(all.size()));
  const int begin = std::min(depth, skip_count + 1);
  const int count = std::min(max_depth, depth - begin);
  std::copy_n(all.data() + begin, count, frames);
  if (sizes != nullptr) std::fill_n(sizes, count, 0);
  if (min_dropped_frames != nullptr) {
    *min_dropped_frames = depth - begin - count;
  }
  return count;
}

int TerminalWidth() {
  winsize size = {};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) {
    const int width = WidthFromLauncher();
    return width > 0 ? width : 80;
  }
  return size.ws_col;
}

}  // namespace

void LogInfo(absl::string_view line) {
  Line("", line, SpeaksToTheTerminal() ? Audience::kAll : Audience::kFile);
}
void LogWarning(absl::string_view line) {
  Line("warning: ", line, Audience::kAll);
}
void LogError(absl::string_view line) { Line("error: ", line, Audience::kAll); }
void LogDebug(absl::string_view line) {
  Line("debug: ", line, Audience::kFile);
}

void LogAsRank(int rank, int num_ranks) {
  const std::lock_guard<std::mutex> lock(log_mutex);
  own_rank = rank;
  several_ranks = num_ranks > 1;
}

absl::Status LogToFile(const std::string& path) {
  // spdlog reports a file it cannot open by an exception; open it ourselves
  // first, so that none is thrown.
  std::FILE* probe = std::fopen(path.c_str(), "a");
  if (probe == nullptr) {
    return absl::PermissionDeniedError(
        absl::StrCat(path, ": cannot be written: ", std::strerror(errno),
                     "; choose another --output_dir"));
  }
  std::fclose(probe);
  auto logger = std::make_unique<spdlog::logger>(
      "file", std::make_shared<spdlog::sinks::basic_file_sink_mt>(path));
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %v");
  logger->flush_on(spdlog::level::info);
  const std::lock_guard<std::mutex> lock(log_mutex);
  delete log_file;
  log_file = logger.release();
  return absl::OkStatus();
}

void ShowProgress(absl::string_view line) {
  if (!ProgressIsShown()) return;
  const size_t width = static_cast<size_t>(TerminalWidth() - 1);
  const std::string text(line.substr(0, width));
  const std::lock_guard<std::mutex> lock(log_mutex);
  std::fprintf(stderr, "\r\033[K%s", text.c_str());
  std::fflush(stderr);
  progress_on_screen = true;
}

bool ProgressIsShown() {
  const bool on_screen = isatty(STDERR_FILENO) != 0 || WidthFromLauncher() > 0;
  return on_screen && SpeaksToTheTerminal();
}

void InstallCrashHandler(const char* program) {
  // absl takes SIGTERM for a crash too; here it is a request to stop.
  struct sigaction terminate = {};
  sigaction(SIGTERM, nullptr, &terminate);
  absl::InitializeSymbolizer(program);
  // The first call of backtrace() loads libgcc, which a crash must not do.
  void* frame = nullptr;
  backtrace(&frame, 1);
  absl::SetStackUnwinder(UnwindStack);
  absl::FailureSignalHandlerOptions options;
  options.call_previous_handler = true;
  absl::InstallFailureSignalHandler(options);
  sigaction(SIGTERM, &terminate, nullptr);
}

}  // namespace cubit
