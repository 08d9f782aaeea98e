// What kernels compute, on scalars or on vectors of them; those for the CPU and for CUDA share it.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define TOKENREDUCE_BOTH __host__ __device__ __forceinline__
#else
#define TOKENREDUCE_BOTH inline
#endif

namespace tokenreduce {

// Whether a score is better than the best so far. NaN is better than every number, as in torch.max and torch.sort, and
// equal scores are not better: whoever goes through indices in ascending order finds the lowest.
template <typename Value>
TOKENREDUCE_BOTH auto beats(Value score, Value best) {
  return (score > best) | ((score != score) & (best == best));
}

// Whether one of two pairs (score, index) comes first in the stable descending order.
template <typename Value, typename Index>
TOKENREDUCE_BOTH auto comes_first(Value score, Index index, Value other, Index other_index) {
  return beats(score, other) | ((beats(other, score) == 0) & (index < other_index));
}

// What a row is multiplied by to have length 1; zero rows stay zero.
TOKENREDUCE_BOTH float inverse_length(float squares) {
  const float length = std::sqrt(squares);
  return 1.0f / (length < 1e-6f ? 1e-6f : length);  // a NaN stays
}

// What merging two clusters adds to the squared error (Ward): `s t / (s + t) |u - v|^2` of their product and squared
// lengths and of 1 / s and 1 / t.
template <typename Value>
TOKENREDUCE_BOTH Value ward_cost(Value product, Value squares, Value other_squares, Value inverse, Value other_inverse) {
  return (squares + other_squares - product - product) / (inverse + other_inverse);
}

// The cosine of a row with itself, of its squared length and inverse length: rounding must not decide between equals.
TOKENREDUCE_BOTH float own_cosine(float squares, float length) { return std::round(squares * length * length); }

// What a token of this cosine adds to the energy of PiToMe; `grown` is e to the power of `cosine - margin`.
template <typename Value>
TOKENREDUCE_BOTH Value pitome_term(Value cosine, Value grown, float margin, float alpha, bool above_margin) {
  const Value far = alpha * (grown - 1.0f), near = above_margin ? cosine - margin : cosine;
  return cosine >= margin ? near : far;
}

// Tokens alternate between sources and targets; the first source is token `first`, which is 0 or 1.
TOKENREDUCE_BOTH int64_t source_count(int64_t n, int64_t first) { return (n - first + 1) / 2; }
TOKENREDUCE_BOTH int64_t source_at(int64_t index, int64_t first) { return 2 * index + first; }
TOKENREDUCE_BOTH int64_t target_at(int64_t index, int64_t first) { return 2 * index + 1 - first; }

}  // namespace tokenreduce
