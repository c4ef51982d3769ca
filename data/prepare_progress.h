// SPDX-License-Identifier: Apache-2.0
//
// What a preparation says while it runs.

#ifndef CUBIT_DATA_PREPARE_PROGRESS_H_
#define CUBIT_DATA_PREPARE_PROGRESS_H_

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "data/prepare_request.h"

namespace cubit {

// A line that is rewritten a few times a second on a terminal, elsewhere a
// plain line every ten seconds: text done, rate, time left. The time left is an
// estimate: how much text a file holds is known when it was read; until then
// the files before it are the measure, and for the first a usual compression.
class PrepareProgress {
 public:
  PrepareProgress(const std::vector<PrepareInput>& inputs, bool shown);

  // `text_bytes` more were prepared, the last of them of file number `file`.
  void Update(int64_t file, int64_t text_bytes, int64_t documents);

  // Share of the input that is done, 0 to 1.
  double Share() const;

 private:
  using Clock = std::chrono::steady_clock;
  std::string Line(double seconds, int64_t documents) const;

  const std::vector<PrepareInput>& inputs_;
  const bool shown_;
  const Clock::time_point start_;
  Clock::time_point next_line_;
  int64_t total_bytes_ = 0;          // of the files
  int64_t text_bytes_ = 0;           // done
  int64_t file_ = 0;                 // being read
  int64_t finished_file_bytes_ = 0;  // of the files before it
  int64_t finished_text_bytes_ = 0;  // in them
};

}  // namespace cubit

#endif  // CUBIT_DATA_PREPARE_PROGRESS_H_
