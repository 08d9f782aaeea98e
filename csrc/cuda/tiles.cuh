// Products of tiles of rows in shared memory.
#pragma once

#include "device.h"

namespace tokenreduce::gpu {

constexpr int kRows = 32, kColumns = 64, kDepth = 16;  // rows of one side, rows of the other and channels of a tile
constexpr int kEach = 4;                               // rows of either side whose products one thread computes
constexpr int kAcross = kColumns / kEach;              // threads with the same rows, always within one warp
constexpr int kTileThreads = kRows / kEach * kAcross;
constexpr int kPad = 4;  // against bank conflicts; rows stay aligned for vector loads

// Four neighbours in shared memory.
__device__ __forceinline__ void read_four(const float* from, float (&to)[kEach]) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

// Rows of both sides, transposed.
struct alignas(16) Tiles {
  float a[kDepth][kRows + kPad], b[kDepth][kColumns + kPad];

  // Adds the products of the rows from `down` on with those from `across` on, in the order of the channels.
  __device__ __forceinline__ void add_products(int down, int across, float (&sums)[kEach][kEach]) const {
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      float left[kEach], right[kEach];
      read_four(&a[k][down], left);
      read_four(&b[k][across], right);
#pragma unroll
      for (int r = 0; r < kEach; ++r)
#pragma unroll
        for (int c = 0; c < kEach; ++c) sums[r][c] += left[r] * right[c];
    }
  }
};

}  // namespace tokenreduce::gpu
