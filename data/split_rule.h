// SPDX-License-Identifier: Apache-2.0
//
// The rule that holds documents out for validation.

#ifndef CUBIT_DATA_SPLIT_RULE_H_
#define CUBIT_DATA_SPLIT_RULE_H_

#include <cstdint>

namespace cubit {

// Which split a document belongs to: a rule of its index among the documents,
// counted over all inputs from 0. Of every `period` documents
// in a row one is for validation, at a place in the row that a hash of the row
// number gives; in the first row it is document 1. So two documents give one to
// each split. Of a single document the last validation_fraction of its tokens
// (at least one) become a validation document.
class SplitRule {
 public:
  // 0 <= validation_fraction <= 0.5.
  explicit SplitRule(double validation_fraction);

  // 0 if nothing is for validation.
  int64_t period() const { return period_; }
  bool IsValidation(int64_t document) const;
  // Tokens of a single document of `num_tokens` that stay in split "train".
  int64_t TrainTokensOfSingle(int64_t num_tokens) const;

 private:
  double validation_fraction_;
  int64_t period_;
};

}  // namespace cubit

#endif  // CUBIT_DATA_SPLIT_RULE_H_
