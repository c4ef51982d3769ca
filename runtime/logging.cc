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
#include <cstring>
#include <memory>
#include <mutex>

#include "absl/debugging/failure_signal_handler.h"
#include "absl/debugging/stacktrace.h"
#include "absl/debugging/symbolize.h"
#include "absl/strings/str_cat.h"
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

void Line(absl::string_view prefix, absl::string_view line) {
  const std::string text = absl::StrCat(prefix, line);
  const std::lock_guard<std::mutex> lock(log_mutex);
  std::fprintf(stderr, "%s%s\n", progress_on_screen ? "\r\033[K" : "",
               text.c_str());
  progress_on_screen = false;
  if (log_file != nullptr) log_file->info(text);
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
    return 80;
  }
  return size.ws_col;
}

}  // namespace

void LogInfo(absl::string_view line) { Line("", line); }
void LogWarning(absl::string_view line) { Line("warning: ", line); }
void LogError(absl::string_view line) { Line("error: ", line); }

void LogDebug(absl::string_view line) {
  const std::lock_guard<std::mutex> lock(log_mutex);
  if (log_file != nullptr) log_file->info(absl::StrCat("debug: ", line));
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
  static const bool shown = isatty(STDERR_FILENO) != 0;
  return shown;
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
