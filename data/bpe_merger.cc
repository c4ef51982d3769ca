// SPDX-License-Identifier: Apache-2.0

#include "data/bpe_merger.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "runtime/check.h"

namespace cubit {
namespace {

constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();

// Up to here scanning an array on the stack for the lowest rank is faster than
// a heap. Nearly every word of a language is shorter.
constexpr size_t kShortPiece = 48;

uint64_t Pair(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 |
         static_cast<uint32_t>(right);
}

// A token of a long piece in a list linked both ways.
struct Node {
  int32_t id;  // kDead: merged into a node before it
  uint32_t previous;
  uint32_t next;
};
constexpr int32_t kDead = -1;
constexpr uint32_t kNoNode = std::numeric_limits<uint32_t>::max();

// Rank above position, so that the smallest entry is the lowest rank and among
// equals the leftmost.
uint64_t HeapEntry(uint32_t rank, uint32_t position) {
  return uint64_t{rank} << 32 | position;
}

}  // namespace

bool BpeMerger::Add(const BpeMerge& merge) {
  const auto rank = static_cast<uint32_t>(products_.size());
  return products_.insert({Pair(merge.left, merge.right), {rank, merge.result}})
      .second;
}

BpeMerger::Product BpeMerger::Find(int32_t left, int32_t right) const {
  const auto found = products_.find(Pair(left, right));
  return found == products_.end() ? Product{kNoRank, 0} : found->second;
}

void BpeMerger::Merge(absl::string_view piece,
                      std::vector<int32_t>* ids) const {
  if (piece.size() <= kShortPiece) {
    MergeShort(piece, ids);
  } else {
    MergeLong(piece, ids);
  }
}

void BpeMerger::MergeShort(absl::string_view piece,
                           std::vector<int32_t>* ids) const {
  std::array<int32_t, kShortPiece> tokens;
  // products[i] is the merge of tokens i and i + 1.
  std::array<Product, kShortPiece> products;
  size_t count = piece.size();
  if (count == 0) return;
  for (size_t i = 0; i < count; ++i) {
    tokens[i] = byte_ids_[static_cast<unsigned char>(piece[i])];
  }
  for (size_t i = 0; i + 1 < count; ++i) {
    products[i] = Find(tokens[i], tokens[i + 1]);
  }
  while (count > 1) {
    const auto* best = std::min_element(
        products.begin(), products.begin() + (count - 1),
        [](const Product& a, const Product& b) { return a.rank < b.rank; });
    if (best->rank == kNoRank) break;
    const auto at = static_cast<size_t>(best - products.begin());
    tokens[at] = best->id;
    std::copy(tokens.begin() + at + 2, tokens.begin() + count,
              tokens.begin() + at + 1);
    std::copy(products.begin() + at + 1, products.begin() + count - 1,
              products.begin() + at);
    --count;
    if (at > 0) products[at - 1] = Find(tokens[at - 1], tokens[at]);
    if (at + 1 < count) products[at] = Find(tokens[at], tokens[at + 1]);
  }
  ids->insert(ids->end(), tokens.begin(), tokens.begin() + count);
}

// Every pair with a merge is in the heap. An entry goes stale when one of its
// two tokens is merged with another; it is known by the rank, which its pair no
// longer has, and skipped.
void BpeMerger::MergeLong(absl::string_view piece,
                          std::vector<int32_t>* ids) const {
  CUBIT_CHECK_LT(piece.size(), size_t{kNoNode});
  const auto size = static_cast<uint32_t>(piece.size());
  std::vector<Node> nodes(size);
  for (uint32_t i = 0; i < size; ++i) {
    nodes[i] = {byte_ids_[static_cast<unsigned char>(piece[i])],
                i == 0 ? kNoNode : i - 1, i + 1 == size ? kNoNode : i + 1};
  }
  const auto product_at = [&](uint32_t left) {
    const Node& node = nodes[left];
    if (node.id == kDead || node.next == kNoNode) return Product{kNoRank, 0};
    return Find(node.id, nodes[node.next].id);
  };
  std::vector<uint64_t> heap;
  for (uint32_t i = 0; i < size; ++i) {
    const Product product = product_at(i);
    if (product.rank != kNoRank) heap.push_back(HeapEntry(product.rank, i));
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto push = [&](uint32_t left) {
    const Product product = product_at(left);
    if (product.rank == kNoRank) return;
    heap.push_back(HeapEntry(product.rank, left));
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const uint64_t entry = heap.back();
    heap.pop_back();
    const auto left = static_cast<uint32_t>(entry);
    const Product product = product_at(left);
    if (product.rank != static_cast<uint32_t>(entry >> 32)) continue;
    Node& node = nodes[left];
    Node& merged = nodes[node.next];
    node.id = product.id;
    merged.id = kDead;
    node.next = merged.next;
    if (node.next != kNoNode) nodes[node.next].previous = left;
    if (node.previous != kNoNode) push(node.previous);
    push(left);
  }
  for (uint32_t i = 0; i != kNoNode; i = nodes[i].next) {
    ids->push_back(nodes[i].id);
  }
}

}  // namespace cubit
