// SPDX-License-Identifier: Apache-2.0
//
// Files of others are parsed by this program started again: a process with
// limits on memory, open files and time, which cannot write files and whose end
// is an error message here, never a crash. It talks over a socket; what it says
// is checked like a file. (docs/decisions/0015-reader-processes.md)

#ifndef CUBIT_DATA_READER_PROCESS_H_
#define CUBIT_DATA_READER_PROCESS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/optional.h"

#include "data/input_reader.h"

namespace cubit {

struct ReaderLimits {
  // Address space beyond what the program has when it starts. A document, its
  // line and the decoders need at most about half.
  int64_t memory_bytes = int64_t{2} << 30;
  int64_t open_files = 32;
  // Without a word while it is asked; then it is ended.
  double silent_seconds = 120;
  // Of processor, for one process; also ends what is never silent.
  int64_t cpu_seconds = 24 * 3600;
};

// First line of main of every program that uses a ProcessReader: if this
// process was started to read files, does so and returns its exit status.
absl::optional<int> RunReaderProcess(int argc, char** argv);

// Opens each piece in a process of its own, or in one that has read another
// piece of the same file to its end: no file meets what another may have made
// of a process. CHECK-fails in a program whose main does not call
// RunReaderProcess.
class ProcessReader : public InputReader {
 public:
  explicit ProcessReader(const ReaderLimits& limits);
  // Ends the processes that wait for more. Streams must be gone.
  ~ProcessReader() override;

  absl::StatusOr<std::vector<ParquetGroup>> ParquetGroups(
      const std::string& path) override;
  absl::StatusOr<std::unique_ptr<InputStream>> Open(
      const InputPiece& piece, const TokenVocabulary& vocabulary) override;

 private:
  class Stream;
  class Waiting;
  const ReaderLimits limits_;
  const std::unique_ptr<Waiting> waiting_;
};

// LoadTokenizer(spec) in a process of its own, for its errors alone: what
// passes is then safe to load here.
absl::Status TryTokenizer(const std::string& spec, const ReaderLimits& limits);

// Opens every shard (and reads all of it, if `verify`) in a process of its own.
absl::Status TryShards(const std::vector<std::string>& paths, bool verify,
                       const ReaderLimits& limits);

}  // namespace cubit

#endif  // CUBIT_DATA_READER_PROCESS_H_
