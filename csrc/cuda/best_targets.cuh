// For every source its best target, from products of tiles in shared memory: the matrix of all products is never
// stored.
#pragma once

#include <climits>
#include <cmath>
#include <cstdint>

#include "../arithmetic.h"
#include "tiles.cuh"

namespace tokenreduce::gpu {

enum class Score { kProduct, kWard };

struct Measure {
  float squares, inverse;  // squared length and 1 / size
};

// Tokens of all images as they are compared.
struct Points {
  float* rows;               // (B, n, width), `width` a multiple of kDepth, zeros after the channels
  float *squares, *inverse;  // (B, n), only for Ward
  int64_t batch, n, width, first;

  __device__ __forceinline__ Measure measure(int64_t image, int64_t token) const {
    return {squares[image * n + token], inverse[image * n + token]};
  }

  TOKENREDUCE_BOTH int64_t sources() const { return source_count(n, first); }
  TOKENREDUCE_BOTH int64_t targets() const { return n - sources(); }
};

struct Best {
  float score = -INFINITY;
  int32_t index = INT_MAX;

  __device__ __forceinline__ void take(float other, int32_t other_index) {
    if (!comes_first(other, other_index, score, index)) return;
    score = other;
    index = other_index;
  }
};

// Channels from `channel` on of the rows from `begin` on of one side, transposed; zeros after the last row.
template <bool source, int width>
__device__ __forceinline__ void load(
    const Points& points, int64_t image, int64_t begin, int64_t channel, float (&tile)[kDepth][width]) {
  constexpr int rows = width - kPad, parts = kDepth / 4;
  const int64_t count = source ? points.sources() : points.targets();
  for (int i = threadIdx.x; i < rows * parts; i += kTileThreads) {
    const int row = i / parts, k = i % parts * 4;
    float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (begin + row < count) {
      const int64_t token = source ? source_at(begin + row, points.first) : target_at(begin + row, points.first);
      const float* from = points.rows + (image * points.n + token) * points.width + channel + k;
      four = *reinterpret_cast<const float4*>(from);
    }
    tile[k][row] = four.x;
    tile[k + 1][row] = four.y;
    tile[k + 2][row] = four.z;
    tile[k + 3][row] = four.w;
  }
}

// Best score and target of kRows sources of one image.
template <Score kind>
__global__ void __launch_bounds__(kTileThreads) find_best(Points points, float* scores, int32_t* matches) {
  __shared__ Tiles tiles;
  const int64_t sources = points.sources(), targets = points.targets(), blocks = divide_up(sources, kRows);
  const int64_t image = blockIdx.x / blocks, row = blockIdx.x % blocks * kRows;
  const int down = threadIdx.x / kAcross * kEach, across = threadIdx.x % kAcross * kEach;
  Best best[kEach];
  Measure from[kEach] = {};
  if constexpr (kind == Score::kWard)
    for (int r = 0; r < kEach; ++r)
      if (row + down + r < sources) from[r] = points.measure(image, source_at(row + down + r, points.first));
  for (int64_t column = 0; column < targets; column += kColumns) {
    float sums[kEach][kEach] = {};
    for (int64_t channel = 0; channel < points.width; channel += kDepth) {
      __syncthreads();
      load<true>(points, image, row, channel, tiles.a);
      load<false>(points, image, column, channel, tiles.b);
      __syncthreads();
      tiles.add_products(down, across, sums);
    }
#pragma unroll
    for (int c = 0; c < kEach; ++c) {
      const int64_t target = column + across + c;
      if (target >= targets) continue;
      Measure to{};
      if constexpr (kind == Score::kWard) to = points.measure(image, target_at(target, points.first));
#pragma unroll
      for (int r = 0; r < kEach; ++r) {
        float found = sums[r][c];
        if constexpr (kind == Score::kWard)
          found = -ward_cost(found, from[r].squares, to.squares, from[r].inverse, to.inverse);
        best[r].take(found, static_cast<int32_t>(target));
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kEach; ++r) {
    for (int step = kAcross / 2; step; step /= 2) {
      const float score = __shfl_down_sync(~0u, best[r].score, step, kAcross);
      best[r].take(score, __shfl_down_sync(~0u, best[r].index, step, kAcross));
    }
    if (across || row + down + r >= sources) continue;
    scores[image * sources + row + down + r] = best[r].score;
    matches[image * sources + row + down + r] = best[r].index;
  }
}

constexpr int kRankThreads = 256;

// How many sources of its image come before each, best first.
static __global__ void __launch_bounds__(kRankThreads) rank_sources(
    const float* scores, int32_t sources, int32_t* ranks) {
  __shared__ float tile[kRankThreads];
  const int64_t blocks = divide_up(sources, kRankThreads), image = blockIdx.x / blocks;
  const int32_t i = static_cast<int32_t>(blockIdx.x % blocks * kRankThreads + threadIdx.x);
  scores += image * sources;
  const float mine = i < sources ? scores[i] : 0.0f;
  int32_t rank = 0;
  for (int32_t start = 0; start < sources; start += kRankThreads) {
    const int32_t here = min(kRankThreads, sources - start);
    __syncthreads();
    if (static_cast<int32_t>(threadIdx.x) < here) tile[threadIdx.x] = scores[start + threadIdx.x];
    __syncthreads();
#pragma unroll 8
    for (int32_t j = 0; j < here; ++j) rank += comes_first(tile[j], start + j, mine, i) ? 1 : 0;
  }
  if (i < sources) ranks[image * sources + i] = rank;
}

}  // namespace tokenreduce::gpu
