// SPDX-License-Identifier: Apache-2.0
//
// Where the time of a step goes. A ProfileRange around a phase is an NVTX range
// for profilers, and, while the stream has a StepProfile, a share of its time:
// ranges nest, time counts for the innermost one, and what lies in none is
// "other", so the shares add up to the whole.

#ifndef CUBIT_RUNTIME_PROFILE_RANGE_H_
#define CUBIT_RUNTIME_PROFILE_RANGE_H_

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "runtime/device.h"

namespace cubit {

// Times the ranges of one stream with events. Usage: Begin, work with ranges,
// End; again for the next step. Attach it with Stream::set_profile.
class StepProfile {
 public:
  explicit StepProfile(Stream* stream) : stream_(stream) {}
  StepProfile(const StepProfile&) = delete;
  StepProfile& operator=(const StepProfile&) = delete;

  void Begin();
  // Waits for the stream and adds what passed since Begin.
  void End();

  int64_t num_steps() const { return num_steps_; }
  // Device seconds by category, over all steps; they add up to total_seconds().
  const std::map<std::string, double>& seconds() const { return seconds_; }
  double total_seconds() const { return total_seconds_; }

  // A table for people: per step, largest first.
  std::string ToString() const;

 private:
  friend class ProfileRange;

  // From here on time counts for `category`.
  void Mark(const char* category);
  void Enter(const char* category);
  void Leave();

  struct Point {
    const char* category;  // of what follows
    size_t event;
  };

  Stream* stream_;
  std::deque<Event> events_;  // kept from step to step
  std::vector<Point> points_;
  std::vector<const char*> open_;  // categories of the ranges around
  std::map<std::string, double> seconds_;
  double total_seconds_ = 0;
  int64_t num_steps_ = 0;
};

// From construction to destruction. `category` is a literal such as
// "attention"; the same in forward and backward.
class ProfileRange {
 public:
  ProfileRange(const char* category, Stream& stream);
  ~ProfileRange();
  ProfileRange(const ProfileRange&) = delete;
  ProfileRange& operator=(const ProfileRange&) = delete;

 private:
  StepProfile* profile_;
};

// A name for profilers alone ("layer 3 backward"), no category of time.
class ProfileLabel {
 public:
  ProfileLabel(const char* phase, int64_t index);
  ~ProfileLabel();
  ProfileLabel(const ProfileLabel&) = delete;
  ProfileLabel& operator=(const ProfileLabel&) = delete;
};

// The back end's part: names a profiler attached to the process sees.
void PushProfilerRange(const char* name);
void PopProfilerRange();
// Whether anything listens; where nothing does, names need not be made.
bool ProfilerListens();

}  // namespace cubit

#endif  // CUBIT_RUNTIME_PROFILE_RANGE_H_
