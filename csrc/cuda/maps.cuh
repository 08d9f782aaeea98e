// From scores to a map: ranks by counting, and where every token goes.
#pragma once

#include "device.h"

namespace tokenreduce::gpu {

// Where tokens went in every image: `dest (B, n)`, `rep (B, keep)`, `sources (B, n - keep)`.
struct Maps {
  int64_t *dest, *rep, *sources;
  int32_t n, keep, first;

  TOKENREDUCE_BOTH int32_t source_count() const { return (n - first + 1) / 2; }
};

// Whether the score of `other` comes before that of `i`, the lowest index first among equals.
__device__ __forceinline__ bool before(uint32_t score, int32_t other, uint32_t mine, int32_t i) {
  return score > mine || (score == mine && other < i);
}

// Merges the sources with the best scores into their matches. Outputs: kept sources in ascending order, then the
// targets. All threads of a block write the map of one image; `counts` is shared, one for each warp.
template <int threads, typename RankOf, typename MatchOf>
__device__ __forceinline__ void write_maps(
    const Maps& maps, int64_t image, const RankOf& rank_of, const MatchOf& match_of, int32_t* counts) {
  const int32_t sources = maps.source_count(), removed = maps.n - maps.keep, kept = sources - removed;
  int64_t *dest = maps.dest + image * maps.n, *rep = maps.rep + image * maps.keep;
  int32_t done = 0;  // kept sources in front of this step
  for (int32_t start = 0; start < sources; start += threads) {
    const int32_t i = start + static_cast<int32_t>(threadIdx.x);
    const int32_t rank = i < sources ? rank_of(i) : 0;
    const bool stays = i < sources && rank >= removed;
    int32_t all;
    const int32_t place = done + count_before<threads>(stays, counts, &all);
    done += all;
    if (i >= sources) continue;
    const int32_t token = 2 * i + maps.first;
    dest[token] = stays ? place : kept + match_of(i);
    (stays ? rep[place] : maps.sources[image * removed + rank]) = token;
  }
  for (int32_t i = threadIdx.x; i < maps.n - sources; i += threads) {
    const int32_t token = 2 * i + 1 - maps.first;
    rep[kept + i] = token;
    dest[token] = kept + i;
  }
}

}  // namespace tokenreduce::gpu
