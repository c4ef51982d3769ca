// SPDX-License-Identifier: Apache-2.0

#include "data/tokenize_pipeline.h"

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "tests/data/fake_tokenizer.h"
#include "tests/data/shard_files.h"

namespace cubit {
namespace {

class TokenizePipelineTest : public testing::Test {
 protected:
  // Files of documents of very different lengths, so that threads overtake.
  void SetUp() override {
    const std::string folder = ScratchFolder("");
    for (int file = 0; file < 5; ++file) {
      std::string lines;
      for (int line = 0; line < 40; ++line) {
        const int n = file * 40 + line;
        texts_.push_back(absl::StrCat(
            n, std::string(n % 7 == 0 ? 50000 : static_cast<size_t>(n), 'x')));
        absl::StrAppend(&lines, "{\"text\": \"", texts_.back(), "\"}\n");
      }
      paths_.push_back(absl::StrCat(folder, "/", file, ".jsonl"));
      SetFileContents(paths_.back(), lines);
      pieces_.push_back({{paths_.back()}, file, 0, 0});
    }
  }

  std::vector<std::string> paths_;
  std::vector<InputPiece> pieces_;  // one for each
  InputReader* const reader_ = &InputReader::InThisProcess();
  std::vector<std::string> texts_;
  const FakeTokenizer tokenizer_{1};
};

TEST_F(TokenizePipelineTest, GivesDocumentsInOrderForAnyNumberOfThreads) {
  for (const int threads : {1, 2, 5}) {
    const auto wanted = [](int64_t document) { return document % 3 != 1; };
    TokenizePipeline pipeline(pieces_, reader_, tokenizer_, threads, wanted);
    TokenizedBatch batch;
    int64_t document = 0;
    int64_t text_bytes = 0;
    int64_t file = 0;
    for (auto more = pipeline.Next(&batch);; more = pipeline.Next(&batch)) {
      ASSERT_TRUE(more.ok()) << more.status();
      if (!*more) break;
      EXPECT_EQ(batch.first_document, document);
      EXPECT_GE(batch.file, file);
      file = batch.file;
      text_bytes += batch.text_bytes;
      for (int64_t d = 0; d < batch.documents(); ++d, ++document) {
        std::string text;
        tokenizer_.Decode(batch.Ids(d), &text);
        EXPECT_EQ(text, wanted(document) ? texts_[static_cast<size_t>(document)]
                                         : "");
      }
    }
    EXPECT_EQ(document, 200);
    EXPECT_EQ(file, 4);
    int64_t wanted_bytes = 0;
    for (const std::string& text : texts_) {
      wanted_bytes += static_cast<int64_t>(text.size());
    }
    EXPECT_EQ(text_bytes, wanted_bytes);
  }
}

TEST_F(TokenizePipelineTest, GivesWhatComesBeforeAnErrorAndThenTheError) {
  std::string damaged = FileContents(paths_[3]);
  damaged.insert(damaged.rfind("{\"text\""), "{broken\n");
  SetFileContents(paths_[3], damaged);
  TokenizePipeline pipeline(pieces_, reader_, tokenizer_, 2,
                            [](int64_t) { return true; });
  TokenizedBatch batch;
  int64_t documents = 0;
  auto more = pipeline.Next(&batch);
  for (; more.ok() && *more; more = pipeline.Next(&batch)) {
    documents += batch.documents();
  }
  EXPECT_EQ(documents, 159);
  for (int repeat = 0; repeat < 2; ++repeat) {
    EXPECT_EQ(more.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(absl::StrContains(more.status().message(), paths_[3]));
    more = pipeline.Next(&batch);
  }
}

TEST_F(TokenizePipelineTest, SmallFilesOfOnePieceKeepTheirNumbers) {
  const auto pieces = CutIntoPieces(paths_, *reader_);
  ASSERT_TRUE(pieces.ok());
  ASSERT_EQ(pieces->size(), 1u);
  TokenizePipeline pipeline(*pieces, reader_, tokenizer_, 2,
                            [](int64_t) { return true; });
  TokenizedBatch batch;
  int64_t documents = 0;
  while (*pipeline.Next(&batch)) documents += batch.documents();
  EXPECT_EQ(documents, 200);
  EXPECT_EQ(batch.file, 4);
}

TEST_F(TokenizePipelineTest, StatesTheCountsOfWantedDocuments) {
  SetFileContents(paths_[0],
                  "{\"text\": \"a\", \"token_count\": 5}\n"
                  "{\"text\": \"b\", \"metadata\": {\"token_count\": 6}}\n"
                  "{\"text\": \"c\", \"other\": {\"token_count\": 7}}\n"
                  "{\"text\": \"d\", \"token_count\": 8}\n");
  TokenizePipeline pipeline({pieces_[0]}, reader_, tokenizer_, 1,
                            [](int64_t document) { return document != 3; });
  TokenizedBatch batch;
  ASSERT_TRUE(*pipeline.Next(&batch));
  EXPECT_EQ(batch.stated_tokens, (std::vector<int64_t>{5, 6, -1, -1}));
}

TEST_F(TokenizePipelineTest, StopsAtAnyMoment) {
  for (int taken = 0; taken < 6; ++taken) {
    TokenizePipeline pipeline(pieces_, reader_, tokenizer_, 3,
                              [](int64_t) { return true; });
    TokenizedBatch batch;
    for (int i = 0; i < taken; ++i) EXPECT_TRUE(pipeline.Next(&batch).ok());
  }
}

}  // namespace
}  // namespace cubit
