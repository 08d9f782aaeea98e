// Reading rows of a tensor as floats.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../tensors.h"
#include "packed.h"

namespace tokenreduce {

// Rows of one image, `(heads, n, width)` in memory, read as means over heads in fp32.
template <typename T>
struct Rows {
  const T* data;
  int64_t heads, head_stride, row_stride, width;

  // Asks for a row that is read soon: rows of one head lie too far apart for the processor to foresee it.
  void expect(int64_t row) const {
    const T* from = data + row * row_stride;
    for (int64_t k = 0; k < width; k += 64 / sizeof(T)) __builtin_prefetch(from + k);
  }

  void read(int64_t row, float* out) const {
    const T* from = data + row * row_stride;
    const float part = 1.0f / static_cast<float>(heads);
    int64_t k = 0;
    for (; k + 4 * kLanes <= width; k += 4 * kLanes) mean<4>(from + k, part, out + k);
    for (; k + kLanes <= width; k += kLanes) mean<1>(from + k, part, out + k);
    for (; k < width; ++k) {
      float sum = 0;
      for (int64_t h = 0; h < heads; ++h) sum += static_cast<float>(from[h * head_stride + k]);
      out[k] = sum * part;
    }
  }

 private:
  static Floats load(const T* from) {
    if constexpr (std::is_same_v<T, float>) return lanes_at(from);
    Floats found;
    for (int i = 0; i < kLanes; ++i) found[i] = static_cast<float>(from[i]);
    return found;
  }

  // Of so many vectors of channels, whose sums stay in registers.
  template <int vectors>
  void mean(const T* from, float part, float* out) const {
    Floats sums[vectors];
    for (int i = 0; i < vectors; ++i) sums[i] = load(from + i * kLanes);
    for (int64_t h = 1; h < heads; ++h) {
      from += head_stride;
      for (int i = 0; i < vectors; ++i) sums[i] += load(from + i * kLanes);
    }
    for (int i = 0; i < vectors; ++i) store_lanes(sums[i] * part, out + i * kLanes);
  }
};

// The rows of one head of one image of a tensor `(B, H, N, d)`, or of one image of `(B, N, d)`.
template <typename T>
Rows<T> rows_of(const Tensor& tensor, int64_t image, int64_t head) {
  const int64_t last = tensor.dim() - 1;
  const T* data = static_cast<const T*>(tensor.const_data_ptr()) + image * tensor.stride(0);
  if (last == 3) data += head * tensor.stride(1);
  return {data, 1, 0, tensor.stride(last - 1), tensor.size(last)};
}

inline float squares_of(const float* row, int64_t width) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < width; ++k) sum += row[k] * row[k];
  return sum;
}

}  // namespace tokenreduce
