// Reading rows of a tensor as floats.
#pragma once

#include <cstdint>

#include "../tensors.h"

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
    for (int64_t k = 0; k < width; ++k) out[k] = static_cast<float>(from[k]);
    if (heads == 1) return;
    for (int64_t h = 1; h < heads; ++h) {
      from += head_stride;
      for (int64_t k = 0; k < width; ++k) out[k] += static_cast<float>(from[k]);
    }
    const float part = 1.0f / static_cast<float>(heads);
    for (int64_t k = 0; k < width; ++k) out[k] *= part;
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
