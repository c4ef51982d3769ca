// SPDX-License-Identifier: Apache-2.0
//
// A star: every rank has a connection to rank 0. Whoever closes a connection
// first says why (Farewell, Verdict) and then waits, a second at most, until
// the other side has closed it: a connection closed with words unread would
// take those on their way with it.

#include "runtime/watchdog.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

#include "runtime/check.h"
#include "runtime/frame_socket.h"
#include "runtime/host_name.h"
#include "runtime/logging.h"
#include "runtime/status_macros.h"
#include "runtime/watchdog.pb.h"
#include "runtime/watchdog_connect.h"
#include "runtime/watchdog_report.h"

namespace cubit {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kPartingTime{1000};
constexpr milliseconds kReportTime{2000};
// A connection that takes nothing gets no more heartbeats.
constexpr size_t kMaxUnsent = size_t{1} << 20;

double SecondsSince(Clock::time_point then) {
  return std::chrono::duration<double>(Clock::now() - then).count();
}

WatchdogMessage::Group DescribeGroup(const FlightRecorder& recorder) {
  WatchdogMessage::Group group;
  group.set_name(recorder.group());
  group.set_rank(recorder.rank());
  group.set_size(recorder.size());
  for (const OperationRecord& record : recorder.Records()) {
    if (record.peer < 0) group.set_num_collectives(record.sequence + 1);
    if (record.state != OperationRecord::State::kPending) continue;
    WatchdogMessage::Operation* const operation = group.add_pending();
    operation->set_text(record.ToString());
    operation->set_sequence(record.sequence);
    operation->set_peer(record.peer);
    operation->set_seconds(SecondsSince(record.start));
  }
  group.set_last(recorder.Last());
  return group;
}

}  // namespace

class Watchdog::Impl {
 public:
  Impl(int rank, const WatchdogOptions& options,
       std::vector<WatchdogPeer> peers);
  ~Impl();

  void StartThread();

  void Watch(std::shared_ptr<const FlightRecorder> recorder);
  void SetActivity(absl::string_view activity);
  void SetStep(int64_t step);
  void ReportFailure(absl::string_view error);

 private:
  static void OnFatalError(const char* message);

  void Run();
  // The rest of a round, after reading; true: the thread's work is over.
  bool FinishRound();
  void Wake();
  void WaitForNews(Clock::time_point until);
  void ReadAll();
  void Handle(WatchdogPeer& peer, const std::string& frame);
  void SendBeats();
  bool Conclude();
  void Log(const std::vector<WatchdogFindings::Warning>& warnings);
  void SendToAll(const WatchdogMessage& message);
  // Sends what is queued and waits until all peers have closed.
  void Part();
  void SayFarewell(const std::string& error);
  void End(const WatchdogMessage::Verdict& verdict);
  WatchedRank Myself();

  const int rank_;
  const WatchdogOptions options_;
  const milliseconds interval_;
  Descriptor wake_;

  // Of the thread, once it runs.
  std::vector<WatchdogPeer> peers_;
  std::optional<WatchdogMessage::Verdict> received_;
  Clock::time_point next_beat_;
  std::set<std::string> warned_;

  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::vector<std::shared_ptr<const FlightRecorder>> recorders_;
  std::string activity_;
  int64_t step_ = 0;
  std::string failure_;
  bool stopping_ = false;
  bool finished_ = false;  // the thread does no more

  std::thread thread_;
  static std::atomic<Impl*> hooked;
  FatalHook previous_hook_ = nullptr;
};

std::atomic<Watchdog::Impl*> Watchdog::Impl::hooked{nullptr};

Watchdog::Impl::Impl(int rank, const WatchdogOptions& options,
                     std::vector<WatchdogPeer> peers)
    : rank_(rank),
      options_(options),
      interval_(std::max<int64_t>(
          10,
          absl::ToInt64Milliseconds(std::min(
              absl::Seconds(1),
              std::min(options.silence_limit, options.operation_limit) / 10)))),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      peers_(std::move(peers)) {
  CUBIT_CHECK(wake_.get() >= 0) << std::strerror(errno);
}

Watchdog::Impl::~Impl() {
  if (!thread_.joinable()) return;
  if (options_.hook_fatal_errors) {
    SetFatalHook(previous_hook_);
    hooked = nullptr;
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  Wake();
  thread_.join();
}

void Watchdog::Impl::StartThread() {
  for (WatchdogPeer& peer : peers_) peer.heard = Clock::now();
  if (options_.hook_fatal_errors) {
    CUBIT_CHECK(hooked.exchange(this) == nullptr)
        << "two watchdogs of a process hook its errors";
    previous_hook_ = SetFatalHook(OnFatalError);
  }
  thread_ = std::thread([this] { Run(); });
}

void Watchdog::Impl::OnFatalError(const char* message) {
  Impl* const impl = hooked;
  if (impl != nullptr) impl->ReportFailure(message);
}

void Watchdog::Impl::Watch(std::shared_ptr<const FlightRecorder> recorder) {
  const std::lock_guard<std::mutex> lock(mutex_);
  recorders_.push_back(std::move(recorder));
}

void Watchdog::Impl::SetActivity(absl::string_view activity) {
  const std::lock_guard<std::mutex> lock(mutex_);
  activity_.assign(activity.data(), activity.size());
}

void Watchdog::Impl::SetStep(int64_t step) {
  const std::lock_guard<std::mutex> lock(mutex_);
  step_ = step;
}

void Watchdog::Impl::ReportFailure(absl::string_view error) {
  if (std::this_thread::get_id() == thread_.get_id()) return;
  std::unique_lock<std::mutex> lock(mutex_);
  failure_ = error.empty() ? "unknown" : std::string(error);
  Wake();
  changed_.wait_for(lock, kReportTime, [this] { return finished_; });
}

void Watchdog::Impl::Wake() {
  const uint64_t one = 1;
  // A full counter wakes as well.
  const ssize_t written = write(wake_.get(), &one, sizeof(one));
  static_cast<void>(written);
}

void Watchdog::Impl::Run() {
  next_beat_ = Clock::now();
  Clock::time_point round = Clock::now();
  const auto silence = absl::ToChronoNanoseconds(options_.silence_limit);
  do {
    WaitForNews(next_beat_);
    if (Clock::now() - round > silence / 2) {
      // This process was stopped; it could not hear the others.
      for (WatchdogPeer& peer : peers_) peer.heard = Clock::now();
    }
    round = Clock::now();
    ReadAll();
  } while (!FinishRound());
  const std::lock_guard<std::mutex> lock(mutex_);
  finished_ = true;
  changed_.notify_all();
}

bool Watchdog::Impl::FinishRound() {
  std::string failure;
  bool stopping = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    failure = failure_;
    stopping = stopping_;
  }
  if (stopping || !failure.empty()) {
    SayFarewell(failure);
    return true;
  }
  if (Clock::now() >= next_beat_) {
    SendBeats();
    next_beat_ = Clock::now() + interval_;
  }
  return Conclude();
}

void Watchdog::Impl::WaitForNews(Clock::time_point until) {
  std::vector<pollfd> entries = {{wake_.get(), POLLIN, 0}};
  for (const WatchdogPeer& peer : peers_) {
    if (!peer.socket.open()) continue;
    const bool sending = peer.socket.unsent() > 0;
    entries.push_back({peer.socket.fd(),
                       static_cast<int16_t>(POLLIN | (sending ? POLLOUT : 0)),
                       0});
  }
  const auto left = std::chrono::ceil<milliseconds>(until - Clock::now());
  poll(entries.data(), entries.size(),
       static_cast<int>(std::max<int64_t>(0, left.count())));
  uint64_t count = 0;
  const ssize_t got = read(wake_.get(), &count, sizeof(count));
  static_cast<void>(got);  // nothing to read: woken by something else
}

void Watchdog::Impl::ReadAll() {
  for (WatchdogPeer& peer : peers_) {
    if (!peer.socket.open()) continue;
    for (const std::string& frame : peer.socket.Move()) Handle(peer, frame);
    if (!peer.socket.open() && peer.rank.state == WatchedRank::State::kHere) {
      peer.rank.state = WatchedRank::State::kLost;
    }
  }
}

void Watchdog::Impl::Handle(WatchdogPeer& peer, const std::string& frame) {
  WatchdogMessage message;
  if (!message.ParseFromString(frame)) return;
  peer.heard = Clock::now();
  if (message.has_heartbeat()) {
    peer.rank.heartbeat = std::move(*message.mutable_heartbeat());
  }
  if (message.has_verdict()) received_ = message.verdict();
  if (message.has_farewell()) {
    peer.rank.state = WatchedRank::State::kLeft;
    peer.rank.error = message.farewell().error();
    peer.socket = FrameSocket();
  }
}

WatchedRank Watchdog::Impl::Myself() {
  WatchedRank myself;
  myself.rank = rank_;
  myself.host = HostName();
  std::vector<std::shared_ptr<const FlightRecorder>> recorders;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    myself.heartbeat.set_step(step_);
    myself.heartbeat.set_activity(activity_);
    recorders = recorders_;
  }
  for (const auto& recorder : recorders) {
    *myself.heartbeat.add_groups() = DescribeGroup(*recorder);
  }
  return myself;
}

void Watchdog::Impl::SendToAll(const WatchdogMessage& message) {
  const std::string frame = message.SerializeAsString();
  for (WatchdogPeer& peer : peers_) {
    if (!peer.socket.open() || peer.socket.unsent() > kMaxUnsent) continue;
    peer.socket.Queue(frame);
  }
}

void Watchdog::Impl::SendBeats() {
  WatchdogMessage message;
  *message.mutable_heartbeat() = Myself().heartbeat;
  SendToAll(message);
  ReadAll();  // which sends
}

bool Watchdog::Impl::Conclude() {
  if (received_.has_value()) {
    LogDebug(received_->report());
    const std::vector<std::string> lines =
        absl::StrSplit(received_->report(), '\n');
    received_->set_report(absl::StrCat(lines[0], " (the report is rank 0's)"));
    End(*received_);
    return true;
  }
  std::vector<WatchedRank> ranks = {Myself()};
  for (WatchdogPeer& peer : peers_) {
    peer.rank.silent_seconds = SecondsSince(peer.heard);
    ranks.push_back(peer.rank);
  }
  WatchdogLimits limits;
  limits.silence_seconds = absl::ToDoubleSeconds(options_.silence_limit);
  limits.operation_seconds = absl::ToDoubleSeconds(
      rank_ == 0 ? options_.operation_limit : absl::InfiniteDuration());
  const WatchdogFindings findings = JudgeRanks(ranks, limits);
  Log(findings.warnings);
  if (!findings.verdict.has_value()) return false;
  if (rank_ == 0) {
    WatchdogMessage message;
    *message.mutable_verdict() = *findings.verdict;
    SendToAll(message);
    Part();
  }
  End(*findings.verdict);
  return true;
}

void Watchdog::Impl::Log(
    const std::vector<WatchdogFindings::Warning>& warnings) {
  std::set<std::string> current;
  for (const WatchdogFindings::Warning& warning : warnings) {
    current.insert(warning.key);
    if (warned_.count(warning.key) == 0) LogWarning(warning.text);
  }
  warned_ = std::move(current);
}

void Watchdog::Impl::Part() {
  const Clock::time_point deadline = Clock::now() + kPartingTime;
  while (Clock::now() < deadline) {
    ReadAll();
    const bool waiting = std::any_of(
        peers_.begin(), peers_.end(),
        [](const WatchdogPeer& peer) { return peer.socket.open(); });
    if (!waiting) return;
    WaitForNews(std::min(deadline, Clock::now() + milliseconds(50)));
  }
}

// An error of rank 0 is a verdict at once.
void Watchdog::Impl::SayFarewell(const std::string& error) {
  WatchdogMessage message;
  if (rank_ == 0 && !error.empty()) {
    WatchedRank myself = Myself();
    myself.error = error;
    *message.mutable_verdict() = *JudgeRanks({myself}, {}).verdict;
  } else {
    message.mutable_farewell()->set_error(error);
  }
  SendToAll(message);
  Part();
}

void Watchdog::Impl::End(const WatchdogMessage::Verdict& verdict) {
  // The peers see that their words have been heard.
  peers_.clear();
  if (options_.end_process != nullptr) {
    options_.end_process(verdict.exit_status(), verdict.report());
    return;
  }
  LogError(verdict.report());
  std::_Exit(verdict.exit_status());
}

absl::StatusOr<std::unique_ptr<Watchdog>> Watchdog::Start(
    Communicator& control, const WatchdogOptions& options) {
  CUBIT_CHECK(options.operation_limit > absl::ZeroDuration());
  CUBIT_CHECK(options.silence_limit > absl::ZeroDuration());
  CUBIT_ASSIGN_OR_RETURN(std::vector<WatchdogPeer> peers,
                         ConnectWatchdogs(control, options.start_limit));
  auto impl = std::make_unique<Impl>(control.rank(), options, std::move(peers));
  impl->StartThread();
  return std::unique_ptr<Watchdog>(new Watchdog(std::move(impl)));
}

Watchdog::Watchdog(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Watchdog::~Watchdog() = default;

void Watchdog::Watch(std::shared_ptr<const FlightRecorder> recorder) {
  impl_->Watch(std::move(recorder));
}
void Watchdog::SetActivity(absl::string_view activity) {
  impl_->SetActivity(activity);
}
void Watchdog::SetStep(int64_t step) { impl_->SetStep(step); }
void Watchdog::ReportFailure(absl::string_view error) {
  impl_->ReportFailure(error);
}

}  // namespace cubit
