// Choosing pairs and writing down the map, for one image.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <tuple>
#include <vector>

#include "../arithmetic.h"
#include "../tensors.h"

namespace tokenreduce {

// `bipartite_match` of the tokens between `prefix` and `suffix` protected ones.
std::tuple<Tensor, Tensor, Tensor> match_between(
    const Tensor& metric, int64_t keep, int64_t first, int64_t prefix, int64_t suffix);

// How `n` tokens became `keep`: the output of each token, the token that represents each output, the tokens that
// represent none, best first.
struct Map {
  int64_t* dest;
  int64_t* rep;
  int64_t* sources;
};

// Merges the n - keep sources with the best scores into their matches. Outputs: kept sources in ascending order, then
// the targets.
inline void merge_best(const float* score, const int32_t* match, int64_t n, int64_t keep, int64_t first, const Map& map) {
  const int64_t sources = source_count(n, first), removed = n - keep, kept = sources - removed;
  std::vector<int32_t> order(sources);
  std::iota(order.begin(), order.end(), 0);
  const auto before = [score](int32_t a, int32_t b) { return comes_first(score[a], a, score[b], b); };
  if (removed < sources) std::nth_element(order.begin(), order.begin() + removed, order.end(), before);
  std::sort(order.begin(), order.begin() + removed, before);
  std::sort(order.begin() + removed, order.end());
  for (int64_t i = 0; i < kept; ++i) {
    map.rep[i] = source_at(order[removed + i], first);
    map.dest[map.rep[i]] = i;
  }
  for (int64_t i = 0; i < n - sources; ++i) {
    map.rep[kept + i] = target_at(i, first);
    map.dest[map.rep[kept + i]] = kept + i;
  }
  for (int64_t i = 0; i < removed; ++i) {
    map.sources[i] = source_at(order[i], first);
    map.dest[map.sources[i]] = kept + match[order[i]];
  }
}

}  // namespace tokenreduce
