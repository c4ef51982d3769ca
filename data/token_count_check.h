// SPDX-License-Identifier: Apache-2.0
//
// FineWeb says of each document how many GPT-2 tokens it has. Comparing that
// with what was counted checks the text and the tokenizer from end to end.

#ifndef CUBIT_DATA_TOKEN_COUNT_CHECK_H_
#define CUBIT_DATA_TOKEN_COUNT_CHECK_H_

#include <cstdint>
#include <string>
#include <vector>

namespace cubit {

struct TokenCountCheck {
  struct Difference {
    int64_t document = 0;  // counted over all inputs, from 0
    int64_t stated = 0;
    int64_t counted = 0;
  };

  int64_t documents = 0;          // that state a number
  int64_t stated = 0;             // tokens of those, as stated
  int64_t counted = 0;            // and as counted, without end-of-text ids
  int64_t differing = 0;          // documents
  std::vector<Difference> first;  // at most 20

  // `document_stated` below 0: the document says nothing.
  void Add(int64_t document, int64_t document_stated, int64_t document_counted);

  // For a log: "token_count agrees with 291 of 300 documents; 9 differ, ...".
  // "" if no document stated a number.
  std::string ToString() const;
};

}  // namespace cubit

#endif  // CUBIT_DATA_TOKEN_COUNT_CHECK_H_
