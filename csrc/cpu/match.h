// Choosing pairs and writing down the map, for one image.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <numeric>
#include <tuple>
#include <vector>

#include "../arithmetic.h"
#include "../tensors.h"

namespace tokenreduce {

// How `n` tokens became `keep`: the output of each token, the token that represents each output, the tokens that
// represent none, best first.
struct Map {
  const int64_t *dest, *rep, *sources;
};

// A `Map` that is still to be written.
struct NewMap {
  int64_t *dest, *rep, *sources;

  operator Map() const { return {dest, rep, sources}; }
};

// The maps of a batch: dest, rep and sources.
using Maps = std::tuple<Tensor, Tensor, Tensor>;

// Maps of `batch` images that are still to be written.
inline Maps new_maps(const Tensor& like, int64_t batch, int64_t n, int64_t keep) {
  return {uninitialised(like, {batch, n}, ScalarType::Long), uninitialised(like, {batch, keep}, ScalarType::Long),
          uninitialised(like, {batch, n - keep}, ScalarType::Long)};
}

inline NewMap map_of(const Maps& maps, int64_t image) {
  const auto row = [image](const Tensor& tensor) {
    return static_cast<int64_t*>(tensor.mutable_data_ptr()) + image * tensor.size(1);
  };
  return {row(std::get<0>(maps)), row(std::get<1>(maps)), row(std::get<2>(maps))};
}

// What is done with the map of an image, right after it was written and on the same thread.
using Then = std::function<void(int64_t image, const Map&)>;

// `bipartite_match` of the tokens between `prefix` and `suffix` protected ones.
Maps match_between(
    const Tensor& metric, int64_t keep, int64_t first, int64_t prefix, int64_t suffix, const Then& then = {});

// Merges the n - keep sources with the best scores into their matches. Outputs: kept sources in ascending order, then
// the targets.
inline void merge_best(
    const float* score, const int32_t* match, int64_t n, int64_t keep, int64_t first, const NewMap& map) {
  const int64_t sources = source_count(n, first), removed = n - keep, kept = sources - removed;
  std::vector<int32_t> order(sources);
  std::iota(order.begin(), order.end(), 0);
  const auto before = [score](int32_t a, int32_t b) { return comes_first(score[a], a, score[b], b); };
  if (removed < sources) std::nth_element(order.begin(), order.begin() + removed, order.end(), before);
  std::sort(order.begin(), order.begin() + removed, before);
  std::vector<bool> merged(sources);
  for (int64_t i = 0; i < removed; ++i) {
    merged[order[i]] = true;
    map.sources[i] = source_at(order[i], first);
    map.dest[map.sources[i]] = kept + match[order[i]];
  }
  for (int64_t i = 0, out = 0; i < sources; ++i) {
    if (merged[i]) continue;
    map.rep[out] = source_at(i, first);
    map.dest[map.rep[out]] = out;
    ++out;
  }
  for (int64_t i = 0; i < n - sources; ++i) {
    map.rep[kept + i] = target_at(i, first);
    map.dest[map.rep[kept + i]] = kept + i;
  }
}

}  // namespace tokenreduce
