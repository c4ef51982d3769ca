// SPDX-License-Identifier: Apache-2.0
//
// What a checkpoint's model says of a text, as a safetensors file, for
// compare_transformers.py: every position's logits from the parallel form and
// from the cached one, and greedy continuations from both.

#include <algorithm>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"

#include "launch/checkpoint_model.h"
#include "models/decoder.h"
#include "parallel/safetensors.h"
#include "runtime/command_line.h"
#include "runtime/status_macros.h"

ABSL_FLAG(std::string, checkpoint, "", "run folder, or one step of it");
ABSL_FLAG(std::string, text, "", "the end of text goes before it");
ABSL_FLAG(int64_t, tokens, 100, "to continue the text with");
ABSL_FLAG(std::string, out, "", "file to write");

namespace cubit {
namespace {

constexpr char kUsage[] = "Writes logits and greedy continuations of a text.\n";

int32_t Best(const std::vector<float>& logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) -
                              logits.begin());
}

struct Dump {
  std::vector<int32_t> ids;            // [T]
  std::vector<float> parallel;         // [T, V]
  std::vector<float> cached;           // [T, V]
  std::vector<int32_t> greedy;         // the parallel form, again and again
  std::vector<int32_t> greedy_cached;  // the cached form
};

// The parallel form gives the last row of every prefix.
absl::Status FillLogits(Decoder* decoder, Dump* dump) {
  for (size_t count = 1; count <= dump->ids.size(); ++count) {
    CUBIT_ASSIGN_OR_RETURN(
        const std::vector<float> row,
        decoder->Start(0, absl::MakeConstSpan(dump->ids).first(count)));
    dump->parallel.insert(dump->parallel.end(), row.begin(), row.end());
  }
  CUBIT_ASSIGN_OR_RETURN(
      std::vector<float> row,
      decoder->Start(0, absl::MakeConstSpan(dump->ids).first(1)));
  for (size_t i = 1; i < dump->ids.size(); ++i) {
    dump->cached.insert(dump->cached.end(), row.begin(), row.end());
    row = decoder->Append({{0, dump->ids[i]}})[0];
  }
  dump->cached.insert(dump->cached.end(), row.begin(), row.end());
  return absl::OkStatus();
}

absl::Status FillGreedy(Decoder* decoder, int64_t tokens, Dump* dump) {
  std::vector<int32_t> text = dump->ids;
  for (int64_t i = 0; i < tokens; ++i) {
    CUBIT_ASSIGN_OR_RETURN(const std::vector<float> row,
                           decoder->Start(0, text));
    dump->greedy.push_back(Best(row));
    text.push_back(dump->greedy.back());
  }
  CUBIT_ASSIGN_OR_RETURN(std::vector<float> row, decoder->Start(0, dump->ids));
  for (int64_t i = 0; i < tokens; ++i) {
    dump->greedy_cached.push_back(Best(row));
    row = decoder->Append({{0, dump->greedy_cached.back()}})[0];
  }
  return absl::OkStatus();
}

absl::Status Write(const Dump& dump, const std::string& path) {
  const auto length = static_cast<int64_t>(dump.ids.size());
  const auto tokens = static_cast<int64_t>(dump.greedy.size());
  const int64_t vocab = static_cast<int64_t>(dump.parallel.size()) / length;
  const DType i32 = DType::kInt32;
  const DType f32 = DType::kFloat32;
  const std::vector<SafetensorsEntry> entries = {
      {"ids", i32, {length}},
      {"parallel", f32, {length, vocab}},
      {"cached", f32, {length, vocab}},
      {"greedy", i32, {tokens}},
      {"greedy_cached", i32, {tokens}}};
  CUBIT_ASSIGN_OR_RETURN(
      SafetensorsWriter writer,
      SafetensorsWriter::Create(FileSystem::Posix(), path, entries, {}));
  const void* data[] = {dump.ids.data(), dump.parallel.data(),
                        dump.cached.data(), dump.greedy.data(),
                        dump.greedy_cached.data()};
  for (size_t i = 0; i < entries.size(); ++i) {
    CUBIT_RETURN_IF_ERROR(writer.Append(
        ConstTensor(data[i], entries[i].dtype, entries[i].shape)));
  }
  return writer.Finish();
}

absl::Status DumpLogits() {
  CUBIT_ASSIGN_OR_RETURN(const CheckpointModel loaded,
                         LoadCheckpointModel(absl::GetFlag(FLAGS_checkpoint)));
  Dump dump;
  dump.ids = {loaded.tokenizer->eot_id()};
  loaded.tokenizer->Encode(absl::GetFlag(FLAGS_text), &dump.ids);
  const int64_t tokens = absl::GetFlag(FLAGS_tokens);
  Stream stream;
  CUBIT_ASSIGN_OR_RETURN(
      const std::unique_ptr<Decoder> decoder,
      Decoder::Create(loaded.model.get(), /*num_texts=*/1,
                      static_cast<int64_t>(dump.ids.size()) + tokens, &stream));
  CUBIT_RETURN_IF_ERROR(FillLogits(decoder.get(), &dump));
  CUBIT_RETURN_IF_ERROR(FillGreedy(decoder.get(), tokens, &dump));
  return Write(dump, absl::GetFlag(FLAGS_out));
}

}  // namespace
}  // namespace cubit

int main(int argc, char** argv) {
  cubit::ParseCommandLine(argc, argv, cubit::kUsage);
  return cubit::ExitStatus(cubit::DumpLogits());
}
