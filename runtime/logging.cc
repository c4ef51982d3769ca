// SPDX-License-Identifier: Apache-2.0

#include "runtime/logging.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>
#include <memory>

#include "absl/base/const_init.h"
#include "absl/base/thread_annotations.h"
#include "absl/debugging/failure_signal_handler.h"
#include "absl/debugging/symbolize.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "spdlog/sinks/basic_file_sink.h"
#include "spdlog/spdlog.h"

namespace cubit {
namespace {

absl::Mutex log_mutex(absl::kConstInit);
std::shared_ptr<spdlog::logger>* log_file ABSL_GUARDED_BY(log_mutex) = nullptr;
bool progress_on_screen ABSL_GUARDED_BY(log_mutex) = false;

void Line(absl::string_view prefix, absl::string_view line) {
  const std::string text = absl::StrCat(prefix, line);
  absl::MutexLock lock(&log_mutex);
  std::fprintf(stderr, "%s%s\n", progress_on_screen ? "\r\033[K" : "",
               text.c_str());
  progress_on_screen = false;
  if (log_file != nullptr) (*log_file)->info(text);
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

absl::Status LogToFile(const std::string& path) {
  // spdlog reports a file it cannot open by an exception; open it ourselves
  // first, so that none is thrown.
  std::FILE* probe = std::fopen(path.c_str(), "a");
  if (probe == nullptr) {
    return absl::PermissionDeniedError(
        absl::StrCat(path, ": cannot be written; choose another --output_dir"));
  }
  std::fclose(probe);
  auto logger = std::make_shared<spdlog::logger>(
      "file", std::make_shared<spdlog::sinks::basic_file_sink_mt>(path));
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %v");
  logger->flush_on(spdlog::level::info);
  absl::MutexLock lock(&log_mutex);
  delete log_file;
  log_file = new std::shared_ptr<spdlog::logger>(std::move(logger));
  return absl::OkStatus();
}

void ShowProgress(absl::string_view line) {
  if (!ProgressIsShown()) return;
  const size_t width = static_cast<size_t>(TerminalWidth() - 1);
  const std::string text(line.substr(0, width));
  absl::MutexLock lock(&log_mutex);
  std::fprintf(stderr, "\r\033[K%s", text.c_str());
  std::fflush(stderr);
  progress_on_screen = true;
}

bool ProgressIsShown() {
  static const bool shown = isatty(STDERR_FILENO) != 0;
  return shown;
}

void InstallCrashHandler(const char* program) {
  absl::InitializeSymbolizer(program);
  absl::FailureSignalHandlerOptions options;
  options.call_previous_handler = true;
  absl::InstallFailureSignalHandler(options);
}

}  // namespace cubit
