// Attention of class tokens to all tokens, mean over heads, on the CPU: keys are read once, where they lie.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

#include "../tensors.h"
#include "best_targets.h"
#include "images.h"
#include "rows.h"

namespace tokenreduce {

namespace {

constexpr int64_t kSoon = 12;  // rows

float dot(const float* a, const float* b, int64_t width) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < width; ++k) sum += a[k] * b[k];
  return sum;
}

// One head of one image: logits of keys, and what becomes of them.
template <typename T>
struct ClassHead {
  Rows<T> queries, keys;
  int64_t n;
  const float* bias;  // of each key, `step` after the one before it; or none
  int64_t step;

  int64_t padded() const { return (n + kLanes - 1) / kLanes * kLanes; }

  // Softmax over all keys for so many queries, each `(padded)` in `rows`.
  void attend(int64_t count, float* rows) const {
    const int64_t width = keys.width;
    const float scale = 1.0f / std::sqrt(static_cast<float>(width));
    std::vector<float> scaled(count * width), buffer(width);
    for (int64_t query = 0; query < count; ++query) queries.read(query, scaled.data() + query * width);
    for (float& value : scaled) value *= scale;
    for (int64_t token = 0; token < n; ++token) {
      keys.expect(std::min(token + kSoon, n - 1));
      const float* key = floats(token, buffer.data());
      for (int64_t query = 0; query < count; ++query)
        rows[query * padded() + token] =
            dot(scaled.data() + query * width, key, width) + (bias ? bias[token * step] : 0.0f);
    }
    for (int64_t query = 0; query < count; ++query) softmax(rows + query * padded());
  }

 private:
  const float* floats(int64_t token, float* buffer) const {
    if constexpr (std::is_same_v<T, float>) return keys.data + token * keys.row_stride;
    keys.read(token, buffer);
    return buffer;
  }

  void softmax(float* row) const {
    std::fill(row + n, row + padded(), -INFINITY);
    const float largest = *std::max_element(row, row + n);
    float total = 0;
    for (int64_t i = 0; i < padded(); i += kLanes) {
      store_lanes(exponential(lanes_at(row + i) - largest), row + i);
      for (int64_t lane = 0; lane < kLanes; ++lane) total += row[i + lane];
    }
    for (int64_t i = 0; i < n; ++i) row[i] /= total;
  }
};

}  // namespace

Tensor class_rows(
    const Tensor& given_queries, const Tensor& given_keys, const std::optional<Tensor>& bias, int64_t class_tokens) {
  const Tensor queries = with_rows(given_queries), keys = with_rows(given_keys);
  check(keys, "keys", {-1, -1, -1, -1});
  const int64_t batch = keys.size(0), heads = keys.size(1), n = keys.size(2), width = keys.size(3);
  check(queries, "queries", {batch, heads, -1, width});
  if (keys.scalar_type() != queries.scalar_type()) fail("keys must have the type of queries");
  if (class_tokens < 1 || class_tokens > queries.size(2))
    fail("class_tokens is ", class_tokens, "; it must lie in [1, ", queries.size(2), "]");
  if (bias) {
    check(*bias, "bias", {bias->size(0) == 1 ? 1 : batch, 1, 1, n});
    check_type(*bias, "bias", ScalarType::Float, "float32");
  }
  const float* logits = bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr;
  const int64_t of_image = bias && bias->size(0) > 1 ? bias->stride(0) : 0, step = bias ? bias->stride(3) : 0;
  const int64_t padded = (n + kLanes - 1) / kLanes * kLanes, each = class_tokens * padded;
  const Tensor out = uninitialised(keys, {batch, n}, ScalarType::Float);
  float* to = static_cast<float*>(out.mutable_data_ptr());
  std::vector<float> rows(batch * heads * each);
  with_type(keys, "keys", [&](auto type) {
    using T = decltype(type);
    parallel_for(0, batch * heads, grain(2 * n * width), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / heads, head = i % heads;
        const ClassHead<T> one{rows_of<T>(queries, image, head), rows_of<T>(keys, image, head), n,
                               logits ? logits + image * of_image : nullptr, step};
        one.attend(class_tokens, rows.data() + i * each);
      }
    });
  });
  const float part = 1.0f / static_cast<float>(heads * class_tokens);
  for (int64_t image = 0; image < batch; ++image)
    for (int64_t i = 0; i < n; ++i) {
      float sum = 0;
      for (int64_t row = 0; row < heads * class_tokens; ++row) sum += rows[image * heads * each + row * padded + i];
      to[image * n + i] = sum * part;
    }
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(tokenreduce_kernels, CPU, m) { m.impl("class_rows", TORCH_BOX(&class_rows)); }

}  // namespace tokenreduce
