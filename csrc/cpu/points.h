// What `ward` compares: the directions of tokens, sketched, or the mean over heads of their keys.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../arithmetic.h"
#include "../tensors.h"
#include "rows.h"

namespace tokenreduce {

// The direction of `row (channels)` in `width` channels: sums of channels with their signs, or all of them without.
inline void sketch(const float* row, int64_t channels, const float* signs, int64_t width, float* to) {
  const float length = inverse_length(squares_of(row, channels));
  if (!signs) {
    for (int64_t k = 0; k < width; ++k) to[k] = row[k] * length;
    return;
  }
  std::fill(to, to + width, 0.0f);
  for (int64_t start = 0; start < channels; start += width) {
    const int64_t end = std::min(width, channels - start);
    for (int64_t k = 0; k < end; ++k) to[k] += row[start + k] * length * signs[start + k];
  }
}

// Sketched directions of `n` rows, `(n, width)`, each `stride` after the one before it.
template <typename T>
void sketch_rows(const Rows<T>& rows, int64_t n, const float* signs, int64_t width, int64_t stride, float* to) {
  torch::stable::parallel_for(0, n, grain(4 * rows.width), [&](int64_t begin, int64_t end) {
    std::vector<float> row(rows.width);
    for (int64_t token = begin; token < end; ++token) {
      rows.read(token, row.data());
      sketch(row.data(), rows.width, signs, width, to + token * stride);
    }
  });
}

}  // namespace tokenreduce
