// SPDX-License-Identifier: Apache-2.0

#include "data/input_reader.h"

#include <utility>

#include "data/text_format.h"
#include "data/text_source.h"
#include "runtime/check.h"
#include "runtime/file_system.h"
#include "runtime/status_macros.h"

namespace cubit {
namespace {

constexpr int64_t kPieceBytes = int64_t{16} << 20;
constexpr size_t kPieceFiles = 1024;

// One file after the other.
class FileStream : public InputStream {
 public:
  FileStream(InputPiece piece, const TokenVocabulary& vocabulary)
      : piece_(std::move(piece)), vocabulary_(vocabulary) {}

  absl::StatusOr<bool> Next(InputDocument* document) override {
    while (path_ < piece_.paths.size()) {
      if (text_ == nullptr && tokens_ == nullptr) {
        CUBIT_RETURN_IF_ERROR(OpenPath());
      }
      document->path = static_cast<int64_t>(path_);
      document->is_tokens = tokens_ != nullptr;
      document->text.clear();
      document->ids.clear();
      CUBIT_ASSIGN_OR_RETURN(const bool more,
                             tokens_ != nullptr ? tokens_->Next(&document->ids)
                                                : text_->Next(&document->text));
      if (more) {
        document->stated_tokens = text_ ? text_->stated_tokens() : -1;
        return true;
      }
      text_ = nullptr;
      tokens_ = nullptr;
      ++path_;
    }
    return false;
  }

 private:
  absl::Status OpenPath() {
    const std::string& path = piece_.paths[path_];
    const TextFormat format = TextFormatOf(path);
    if (HoldsTokens(format)) {
      CUBIT_ASSIGN_OR_RETURN(tokens_, OpenTokenFile(path, vocabulary_));
    } else if (format == TextFormat::kParquet) {
      CUBIT_CHECK_EQ(piece_.paths.size(), 1u);
      CUBIT_ASSIGN_OR_RETURN(
          text_, OpenParquetGroups(path, piece_.begin_group, piece_.end_group));
    } else {
      CUBIT_ASSIGN_OR_RETURN(text_, OpenTextFile(path));
    }
    return absl::OkStatus();
  }

  const InputPiece piece_;
  const TokenVocabulary vocabulary_;
  size_t path_ = 0;
  std::unique_ptr<TextSource> text_;  // of the open path: one of the two
  std::unique_ptr<TokenSource> tokens_;
};

class LocalReader : public InputReader {
 public:
  absl::StatusOr<std::vector<ParquetGroup>> ParquetGroups(
      const std::string& path) override {
    return ReadParquetGroups(path);
  }
  absl::StatusOr<std::unique_ptr<InputStream>> Open(
      const InputPiece& piece, const TokenVocabulary& vocabulary) override {
    return std::make_unique<FileStream>(piece, vocabulary);
  }
};

absl::Status CutParquet(const std::string& path, int64_t number,
                        InputReader& reader, std::vector<InputPiece>* pieces) {
  CUBIT_ASSIGN_OR_RETURN(const std::vector<ParquetGroup> groups,
                         reader.ParquetGroups(path));
  int64_t begin = 0;
  int64_t bytes = 0;
  const int64_t count = static_cast<int64_t>(groups.size());
  for (int64_t i = 0; i < count; ++i) {
    bytes += groups[static_cast<size_t>(i)].text_bytes;
    if (bytes < kPieceBytes && i + 1 < count) continue;
    pieces->push_back({{path}, number, begin, i + 1});
    begin = i + 1;
    bytes = 0;
  }
  return absl::OkStatus();
}

}  // namespace

InputReader& InputReader::InThisProcess() {
  static LocalReader* const reader = new LocalReader;
  return *reader;
}

absl::StatusOr<std::vector<InputPiece>> CutIntoPieces(
    const std::vector<std::string>& paths, InputReader& reader) {
  std::vector<InputPiece> pieces;
  bool joins = false;  // whether the last piece may get more files
  int64_t bytes = 0;   // in it
  for (size_t i = 0; i < paths.size(); ++i) {
    const int64_t number = static_cast<int64_t>(i);
    if (TextFormatOf(paths[i]) == TextFormat::kParquet) {
      CUBIT_RETURN_IF_ERROR(CutParquet(paths[i], number, reader, &pieces));
      joins = false;
      continue;
    }
    CUBIT_ASSIGN_OR_RETURN(const int64_t size,
                           FileSystem::Posix().FileSize(paths[i]));
    if (!joins || bytes + size > kPieceBytes ||
        pieces.back().paths.size() == kPieceFiles) {
      pieces.push_back({{}, number, 0, 0});
      joins = true;
      bytes = 0;
    }
    pieces.back().paths.push_back(paths[i]);
    bytes += size;
  }
  return pieces;
}

}  // namespace cubit
