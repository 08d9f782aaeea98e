// Products of directions on tensor cores, of which only the best of every source is kept.
#pragma once

#include <climits>
#include <cmath>

#include "units.cuh"

namespace tokenreduce::gpu {

constexpr int kDown = 16, kAcross = 32;  // sources and targets of a tile
constexpr int kParts = kAcross / 8;      // products of one instruction are 16 by 8

// A number whose order as an integer is the order of scores: NaN is the greatest, zeros are equal.
__device__ __forceinline__ uint32_t ordered(float score) {
  if (score != score) return ~0u;
  const uint32_t bits = __float_as_uint(score + 0.0f);  // -0 becomes 0
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// The best target so far. Whoever takes targets in ascending order finds the lowest of equals.
struct Best {
  float score = -INFINITY;
  int32_t index = INT_MAX;

  __device__ __forceinline__ void take(float other, int32_t other_index) {
    if (!beats(other, score)) return;
    score = other;
    index = other_index;
  }

  // The greatest key of several is the best score with the lowest index.
  __device__ __forceinline__ uint64_t key() const {
    return static_cast<uint64_t>(ordered(score)) << 32 | ~static_cast<uint32_t>(index);
  }
};

__device__ __forceinline__ uint32_t score_of(uint64_t key) { return static_cast<uint32_t>(key >> 32); }
__device__ __forceinline__ int32_t index_of(uint64_t key) { return static_cast<int32_t>(~static_cast<uint32_t>(key)); }

// Adds the products of 16 rows with 8, over 16 channels, of which this thread holds some (`mma.m16n8k16` of PTX).
__device__ __forceinline__ void add_products(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The directions of one image in shared or global memory, `stride` bytes a row: sources, then targets.
struct Units {
  const char* data;
  int32_t stride, chunks, sources, targets;

  // Rows after the last are the last: what comes of them is not taken.
  __device__ __forceinline__ const char* source(int32_t i) const {
    return data + int64_t{min(i, sources - 1)} * stride;
  }
  __device__ __forceinline__ const char* target(int32_t i) const {
    return data + int64_t{sources + min(i, targets - 1)} * stride;
  }
};

// 8 channels of a row, as words of two. Which channels an instruction takes for its 16 does not matter as long as both
// sides take the same: a thread's are those that lie together, first the words 0 and 1, then 2 and 3.
union Words {
  uint4 four;
  uint32_t word[4];
};

__device__ __forceinline__ Words words_at(const char* from) {
  Words words;
  words.four = *reinterpret_cast<const uint4*>(from);
  return words;
}

// Scores of `tiles` tiles of sources from `row` on with one tile of targets from `column` on, taken into the bests of
// this thread's sources: those of its place in the instruction, 8 apart. All lanes of the warp must come here.
template <int tiles>
__device__ __forceinline__ void take_tile(
    const Units& units, int32_t row, int32_t column, Best (&best)[tiles][2]) {
  const int32_t down = threadIdx.x % kWarp / 4, across = threadIdx.x % 4;
  const char *a[tiles][2], *b[kParts];
#pragma unroll
  for (int m = 0; m < tiles; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) a[m][r] = units.source(row + m * kDown + r * 8 + down) + across * 16;
#pragma unroll
  for (int p = 0; p < kParts; ++p) b[p] = units.target(column + p * 8 + down) + across * 16;
  float sums[tiles][kParts][4] = {};
  for (int32_t at = 0; at < units.chunks * kChunkBytes; at += kChunkBytes) {
    Words left[tiles][2][2], right[kParts][2];  // high and low parts
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int32_t from = at + part * kChunkBytes / 2;
#pragma unroll
      for (int m = 0; m < tiles; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) left[m][r][part] = words_at(a[m][r] + from);
#pragma unroll
      for (int p = 0; p < kParts; ++p) right[p][part] = words_at(b[p] + from);
    }
    // What low parts add first, while the sum is small; low times low is below what fp32 rounds.
#pragma unroll
    for (int kind = 0; kind < 3; ++kind) {
      const int of_left = kind == 0, of_right = kind == 1;
#pragma unroll
      for (int w = 0; w < 4; w += 2)
#pragma unroll
        for (int m = 0; m < tiles; ++m) {
          const uint32_t rows[4] = {left[m][0][of_left].word[w], left[m][1][of_left].word[w],
                                    left[m][0][of_left].word[w + 1], left[m][1][of_left].word[w + 1]};
#pragma unroll
          for (int p = 0; p < kParts; ++p) {
            const uint32_t columns[2] = {right[p][of_right].word[w], right[p][of_right].word[w + 1]};
            add_products(sums[m][p], rows, columns);
          }
        }
    }
  }
#pragma unroll
  for (int p = 0; p < kParts; ++p)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int32_t target = column + p * 8 + across * 2 + e;
      if (target >= units.targets) continue;
#pragma unroll
      for (int m = 0; m < tiles; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) best[m][r].take(sums[m][p][r * 2 + e], target);
    }
}

// The best of the four threads that share a source.
__device__ __forceinline__ uint64_t best_of_four(const Best& best) {
  uint64_t key = best.key();
#pragma unroll
  for (int step = 1; step < 4; step *= 2) {
    const uint64_t other = __shfl_xor_sync(~0u, static_cast<unsigned long long>(key), step);
    key = other > key ? other : key;
  }
  return key;
}

}  // namespace tokenreduce::gpu
