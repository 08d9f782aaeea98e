// Directions of tokens as tensor cores take them: every number as the sum of two of half precision.
#pragma once

#include <cuda_fp16.h>

#include "pack.cuh"

namespace tokenreduce::gpu {

constexpr int kChunk = 32;         // channels of a row that lie together: 64 bytes of high parts, 64 of low ones
constexpr int kChunkBytes = 128;
constexpr float kScale = 16384.0f;  // what is left for low parts are normal numbers; half precision ends at 65504

// Tokens (images, heads, n, channels) that are read as means over heads in fp32.
template <typename T>
struct Tokens {
  const T* data;
  int64_t image_stride, head_stride, row_stride;
  int32_t heads, channels;

  // Zeros after the last channel.
  template <int many>
  __device__ __forceinline__ void mean(const T* row, int32_t channel, float (&out)[many]) const {
#pragma unroll
    for (int e = 0; e < many; ++e) out[e] = 0.0f;
    if (channel >= channels) return;
    const T* from = row + channel;
#pragma unroll 4
    for (int32_t h = 0; h < heads; ++h) {
      const Pack<T, many> pack = read<many>(from + h * head_stride);
#pragma unroll
      for (int e = 0; e < many; ++e) out[e] += static_cast<float>(pack.values[e]);
    }
    const float part = 1.0f / static_cast<float>(heads);
#pragma unroll
    for (int e = 0; e < many; ++e) out[e] *= part;
  }
};

// Where a token's row is: sources first, then targets.
__device__ __forceinline__ int32_t place_of(int32_t token, int32_t sources, int32_t first) {
  return token / 2 + ((token & 1) == first ? 0 : sources);
}

// Writes the direction of one token to `to`, or nowhere if that is null. `lanes` neighbours of a warp share a token, a
// power of two; all lanes of the warp must come here.
template <int many, typename T>
__device__ __forceinline__ void write_unit(
    const Tokens<T>& from, const T* row, int32_t lanes, int32_t chunks, char* to) {
  const int32_t begin = threadIdx.x % lanes * many, step = lanes * many, end = chunks * kChunk;
  float held[many], squares = 0.0f;
  from.template mean<many>(row, begin, held);
#pragma unroll
  for (int e = 0; e < many; ++e) squares += held[e] * held[e];
  for (int32_t k = begin + step; k < end; k += step) {
    float values[many];
    from.template mean<many>(row, k, values);
#pragma unroll
    for (int e = 0; e < many; ++e) squares += values[e] * values[e];
  }
  for (int32_t other = lanes / 2; other; other /= 2) squares += __shfl_xor_sync(~0u, squares, other);
  const float length = inverse_length(squares) * kScale;
  for (int32_t k = begin; to && k < end; k += step) {
    if (k != begin) from.template mean<many>(row, k, held);
    Pack<__half, many> high, low;
#pragma unroll
    for (int e = 0; e < many; ++e) {
      const float value = held[e] * length;
      high.values[e] = __float2half_rn(value);
      low.values[e] = __float2half_rn(value - __half2float(high.values[e]));
    }
    auto* place = reinterpret_cast<__half*>(to + k / kChunk * kChunkBytes) + k % kChunk;
    write(high, place);
    write(low, place + kChunk);
  }
}

}  // namespace tokenreduce::gpu
