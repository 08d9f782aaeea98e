// Bipartite matching as the operators ask for it.
#pragma once

#include <algorithm>
#include <tuple>

#include "maps.cuh"
#include "units.cuh"

namespace tokenreduce::gpu {

// `bipartite_match` of the tokens between `prefix` and `suffix` protected ones.
std::tuple<Tensor, Tensor, Tensor> match_between(
    const Tensor& metric, int64_t keep, int64_t first, int64_t prefix, int64_t suffix);

template <typename T>
struct Matching {
  Tokens<T> tokens;
  Maps maps;
  int64_t batch;
  bool packed;  // rows can be read in packs

  int32_t chunks() const { return static_cast<int32_t>(divide_up(tokens.channels, kChunk)); }

  // Neighbours of a warp that share a token, of which each reads `many` channels at once.
  int32_t lanes(int32_t many) const {
    int32_t lanes = 1;
    while (lanes < kWarp && lanes * many < chunks() * kChunk) lanes *= 2;
    return lanes;
  }
};

// All of it in one launch, one block an image; false, and nothing done, if a block cannot hold an image.
template <typename T>
bool match_at_once(const Matching<T>& job, const Device& device);

}  // namespace tokenreduce::gpu
