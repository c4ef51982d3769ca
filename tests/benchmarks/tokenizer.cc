// SPDX-License-Identifier: Apache-2.0
//
// Speed of a tokenizer on text files: encoding on one thread (also by the time
// of the processor, which says more on a busy machine) and on more, and
// decoding.

#include "data/tokenizer.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <ctime>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "data/text_source.h"
#include "runtime/command_line.h"
#include "runtime/file_system.h"
#include "runtime/status_macros.h"

ABSL_FLAG(std::string, tokenizer, "byte",
          "\"byte\" or the path of a tokenizer, as for //data:prepare");
ABSL_FLAG(double, seconds, 1.0, "time to spend on each figure");
ABSL_FLAG(int, threads, 2, "threads of the figure with more than one");
ABSL_FLAG(std::string, json, "", "file that gets the figures as JSON");

namespace cubit {
namespace {

constexpr char kUsage[] =
    "Measures how fast a tokenizer encodes and decodes text files.\n\n"
    "  bazel run //tests/benchmarks:tokenizer -- "
    "--tokenizer=PATH TEXT_FILE...\n";

struct Figure {
  std::string name;
  double megabytes_per_second = 0;  // of text, all threads together
};

absl::StatusOr<std::vector<std::string>> ReadDocuments(
    const std::vector<std::string>& inputs) {
  std::vector<std::string> documents;
  CUBIT_ASSIGN_OR_RETURN(const auto paths, ListTextFiles(inputs));
  for (const std::string& path : paths) {
    CUBIT_ASSIGN_OR_RETURN(auto source, OpenTextFile(path));
    std::string text;
    while (true) {
      CUBIT_ASSIGN_OR_RETURN(const bool more, source->Next(&text));
      if (!more) break;
      documents.push_back(text);
    }
  }
  if (documents.empty()) {
    return absl::InvalidArgumentError("the files hold no text");
  }
  return documents;
}

double Seconds() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Of the processor, in all threads.
double ProcessorSeconds() {
  return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}

double Median(std::vector<double> values) {
  const auto median =
      values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), median, values.end());
  return *median;
}

struct Rates {  // MB a second
  double wall = 0;
  double processor = 0;
};

// The median rates of `megabytes` by rounds of `work` over --seconds, at least
// three, after one that is not counted.
Rates MedianRates(double megabytes, const std::function<void()>& work) {
  work();
  std::vector<double> wall;
  std::vector<double> processor;
  const double end = Seconds() + absl::GetFlag(FLAGS_seconds);
  while (wall.size() < 3 || Seconds() < end) {
    const double begin = Seconds();
    const double processor_begin = ProcessorSeconds();
    work();
    wall.push_back(megabytes / (Seconds() - begin));
    processor.push_back(megabytes / (ProcessorSeconds() - processor_begin));
  }
  return {Median(std::move(wall)), Median(std::move(processor))};
}

std::vector<Figure> Measure(const Tokenizer& tokenizer,
                            const std::vector<std::string>& documents,
                            int num_threads) {
  double megabytes = 0;
  std::vector<int32_t> all_ids;
  for (const std::string& document : documents) {
    megabytes += static_cast<double>(document.size()) / 1e6;
    tokenizer.Encode(document, &all_ids);
  }
  const auto encode = [&] {
    std::vector<int32_t> ids;
    for (const std::string& document : documents) {
      ids.clear();
      tokenizer.Encode(document, &ids);
    }
  };
  const auto encode_in_threads = [&] {
    std::vector<std::thread> threads;
    for (int i = 0; i < num_threads; ++i) threads.emplace_back(encode);
    for (std::thread& thread : threads) thread.join();
  };
  const auto decode = [&] {
    std::string text;
    tokenizer.Decode(all_ids, &text);
  };
  std::printf("%.3f MB of text in %zu documents, %zu tokens, %.2f bytes each\n",
              megabytes, documents.size(), all_ids.size(),
              megabytes * 1e6 / static_cast<double>(all_ids.size()));
  const Rates alone = MedianRates(megabytes, encode);
  return {{"encode_1_thread", alone.wall},
          {"encode_processor", alone.processor},
          {absl::StrCat("encode_", num_threads, "_threads"),
           MedianRates(megabytes * num_threads, encode_in_threads).wall},
          {"decode_1_thread", MedianRates(megabytes, decode).wall}};
}

std::string AsJson(const Tokenizer& tokenizer,
                   const std::vector<Figure>& figures) {
  std::string json = absl::StrFormat(
      "{\"benchmark\": \"tokenizer\", \"tokenizer\": \"%s\"", tokenizer.name());
  for (const Figure& figure : figures) {
    absl::StrAppendFormat(&json, ", \"%s_mb_per_second\": %.2f", figure.name,
                          figure.megabytes_per_second);
  }
  return absl::StrCat(json, "}\n");
}

absl::Status Run(const std::vector<std::string>& inputs) {
  CUBIT_ASSIGN_OR_RETURN(const auto tokenizer,
                         LoadTokenizer(absl::GetFlag(FLAGS_tokenizer)));
  CUBIT_ASSIGN_OR_RETURN(const auto documents, ReadDocuments(inputs));
  const int num_threads = absl::GetFlag(FLAGS_threads);
  if (num_threads < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("--threads is ", num_threads, ", at least 2 is wanted"));
  }
  const std::vector<Figure> figures =
      Measure(*tokenizer, documents, num_threads);
  for (const Figure& figure : figures) {
    std::printf("%-20s %8.1f MB/s\n", figure.name.c_str(),
                figure.megabytes_per_second);
  }
  const std::string json = absl::GetFlag(FLAGS_json);
  if (json.empty()) return absl::OkStatus();
  return WriteFileAtomically(FileSystem::Posix(), json,
                             AsJson(*tokenizer, figures));
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  const std::vector<std::string> inputs =
      cubit::ParseCommandLine(argc, argv, cubit::kUsage);
  return cubit::ExitStatus(cubit::Run(inputs));
}
