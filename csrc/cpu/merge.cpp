// Merging and restoring tokens in one pass, on the CPU. Sums run in the order of the sources, always the same.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../tensors.h"
#include "images.h"
#include "match.h"

namespace tokenreduce {

namespace {

template <typename T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

// For each output of an image its sources, in their order: `members` from `start[m]` to `start[m + 1]`.
struct Groups {
  std::vector<int64_t> start, members;
  std::vector<float> mass;  // of each output

  Groups(const Map& map, int64_t n, int64_t keep, const float* sizes) : start(keep + 2), members(n - keep), mass(keep) {
    for (int64_t m = 0; m < keep; ++m) mass[m] = sizes ? sizes[map.rep[m]] : 1.0f;
    for (int64_t i = 0; i < n - keep; ++i) {
      const int64_t token = map.sources[i];
      ++start[map.dest[token] + 2];
      mass[map.dest[token]] += sizes ? sizes[token] : 1.0f;
    }
    for (int64_t m = 0; m < keep; ++m) start[m + 2] += start[m + 1];
    for (int64_t i = 0; i < n - keep; ++i) members[start[map.dest[map.sources[i]] + 1]++] = map.sources[i];
  }
};

template <typename T>
void merge_row(const T* image, int64_t stride, int64_t rep, const Groups& groups, int64_t m, const float* sizes,
               int64_t width, Sum<T>* row, T* out) {
  const T* centre = image + rep * stride;
  const int64_t begin = groups.start[m], end = groups.start[m + 1];
  if (begin == end) {
    std::copy_n(centre, width, out);
    return;
  }
  for (int64_t k = 0; k < width; ++k) row[k] = static_cast<Sum<T>>(centre[k]);
  const float mass = std::max(groups.mass[m], 1e-12f);
  for (int64_t i = begin; i < end; ++i) {
    const T* from = image + groups.members[i] * stride;
    const Sum<T> part = (sizes ? sizes[groups.members[i]] : 1.0f) / mass;
    for (int64_t k = 0; k < width; ++k)
      row[k] += (static_cast<Sum<T>>(from[k]) - static_cast<Sum<T>>(centre[k])) * part;
  }
  for (int64_t k = 0; k < width; ++k) out[k] = static_cast<T>(row[k]);
}

// Log sizes of one image, 0 for protected tokens.
void write_bias(const float* sizes, int64_t n, int64_t prefix, int64_t suffix, float* out) {
  out = std::fill_n(out, prefix, 0.0f);
  for (int64_t i = 0; i < n; ++i) *out++ = sizes[i] == 1.0f ? 0.0f : std::log(sizes[i]);
  std::fill_n(out, suffix, 0.0f);
}

const float* check_sizes(const std::optional<Tensor>& sizes, int64_t batch, int64_t n) {
  if (!sizes) return nullptr;
  check(*sizes, "sizes", {batch, n});
  check_type(*sizes, "sizes", ScalarType::Float, "float32");
  return static_cast<const float*>(sizes->const_data_ptr());
}

}  // namespace

// What merging makes of `x`, image by image: the tokens, their sizes, and the bias of `size_bias` that belongs to them.
struct Merged {
  Tensor x;
  std::optional<Tensor> sizes;
  int64_t keep, prefix, suffix, n, width, all;
  const float* mass;
  Tensor out, grown, bias;

  Merged(const Tensor& given, const std::optional<Tensor>& given_sizes, const char* name, int64_t keep, int64_t prefix,
         int64_t suffix)
      : x(with_rows(given)), sizes(in_a_row(given_sizes)), keep(keep), prefix(prefix), suffix(suffix) {
    check(x, "x", {-1, -1, -1});
    check_protected("x", x.size(1), prefix, suffix);
    n = x.size(1) - prefix - suffix, width = x.size(2), all = prefix + keep + suffix;
    if (keep < 0 || keep > n) fail(name, " names ", keep, " of ", n, " tokens");
    mass = check_sizes(sizes, x.size(0), n);
    out = uninitialised(x, {x.size(0), all, width});
    grown = uninitialised(x, {x.size(0), keep}, ScalarType::Float);
    bias = uninitialised(x, {x.size(0), 1, 1, all}, ScalarType::Float);
  }

  void image(int64_t number, const Map& map) const {
    const float* own = mass ? mass + number * n : nullptr;
    float* sums = static_cast<float*>(grown.mutable_data_ptr()) + number * keep;
    const Groups groups(map, n, keep, own);
    std::copy_n(groups.mass.data(), keep, sums);
    write_bias(sums, keep, prefix, suffix, static_cast<float*>(bias.mutable_data_ptr()) + number * all);
    with_type(x, "x", [&](auto type) {
      using T = decltype(type);
      const int64_t stride = x.stride(1);
      const T* from = static_cast<const T*>(x.const_data_ptr()) + number * x.stride(0);
      T* target = static_cast<T*>(out.mutable_data_ptr()) + number * all * width;
      parallel_for(0, all, grain(2 * width), [&](int64_t begin, int64_t end) {
        std::vector<Sum<T>> row(width);
        for (int64_t i = begin; i < end; ++i) {
          const int64_t m = i - prefix;
          T* to = target + i * width;
          if (m < 0 || m >= keep) std::copy_n(from + (m < 0 ? i : i - keep + n) * stride, width, to);
          else merge_row(from + prefix * stride, stride, map.rep[m], groups, m, own, width, row.data(), to);
        }
      });
    });
  }
};

std::tuple<Tensor, Tensor, Tensor> merge_apply(
    const Tensor& x, const Tensor& dest, const Tensor& rep, const Tensor& sources, const std::optional<Tensor>& sizes,
    int64_t prefix, int64_t suffix) {
  if (rep.dim() != 2) fail("rep has shape ", shape_of(rep), "; it must be (B, M)");
  const Merged merged(x, sizes, "rep", rep.size(1), prefix, suffix);
  const int64_t batch = merged.x.size(0), n = merged.n, keep = merged.keep;
  const Index to = check_index(dest, "dest", batch, n, keep);
  const Index stays = check_index(rep, "rep", batch, keep, n);
  const Index moves = check_index(sources, "sources", batch, n - keep, n);
  for_images(batch, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) merged.image(image, {to[image], stays[image], moves[image]});
  });
  return {merged.out, merged.grown, merged.bias};
}

// Matching and merging in one call. Returns the merged tokens, sizes and bias, and the map.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> bipartite_merge(
    const Tensor& x, const Tensor& metric, const std::optional<Tensor>& sizes, int64_t keep, int64_t first,
    int64_t prefix, int64_t suffix) {
  const Merged merged(x, sizes, "keep", keep, prefix, suffix);
  if (metric.dim() > 2) check(merged.x, "x", {metric.size(0), metric.size(metric.dim() - 2), -1});
  const auto [dest, rep, sources] = match_between(
      metric, keep, first, prefix, suffix, [&](int64_t image, const Map& map) { merged.image(image, map); });
  return {merged.out, merged.grown, merged.bias, dest, rep, sources};
}

Tensor restore_apply(
    const Tensor& given, const Tensor& dest, const std::optional<Tensor>& given_before,
    const std::optional<Tensor>& given_after, int64_t prefix, int64_t suffix) {
  const Tensor y = with_rows(given);
  std::optional<Tensor> before, after;
  if (given_before) before = with_rows(*given_before);
  if (given_after) after = with_rows(*given_after);
  check(y, "y", {-1, -1, -1});
  check_protected("y", y.size(1), prefix, suffix);
  const int64_t batch = y.size(0), keep = y.size(1) - prefix - suffix, width = y.size(2);
  if (dest.dim() != 2) fail("dest has shape ", shape_of(dest), "; it must be (B, N)");
  const int64_t n = dest.size(1), all = prefix + n + suffix;
  const Index to = check_index(dest, "dest", batch, n, keep);
  if (before.has_value() != after.has_value()) fail("before and after must be given together");
  if (before) {
    check(*before, "before", {batch, all, width});
    check(*after, "after", {batch, y.size(1), width});
    if (before->scalar_type() != y.scalar_type()) fail("before must have the type of y");
    if (after->scalar_type() != y.scalar_type()) fail("after must have the type of y");
  }
  const Tensor out = uninitialised(y, {batch, all, width});
  with_type(y, "y", [&](auto type) {
    using T = decltype(type);
    const auto row_of = [](const Tensor& tensor, int64_t image, int64_t row) {
      return static_cast<const T*>(tensor.const_data_ptr()) + image * tensor.stride(0) + row * tensor.stride(1);
    };
    T* target = static_cast<T*>(out.mutable_data_ptr());
    parallel_for(0, batch * all, grain(width), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / all, token = i % all;
        int64_t at = token;
        if (token >= prefix) at = token < prefix + n ? prefix + to[image][token - prefix] : token - n + keep;
        const T* now = row_of(y, image, at);
        T* row = target + i * width;
        if (!before) {
          std::copy_n(now, width, row);
          continue;
        }
        const T *was = row_of(*before, image, token), *then = row_of(*after, image, at);
        for (int64_t k = 0; k < width; ++k)
          row[k] = static_cast<T>(
              static_cast<Sum<T>>(was[k]) + (static_cast<Sum<T>>(now[k]) - static_cast<Sum<T>>(then[k])));
      }
    });
  });
  return out;
}

// Additive logits `(B, 1, 1, prefix + N + suffix)`: log size of each token, 0 for protected ones.
Tensor size_bias(const Tensor& given, int64_t prefix, int64_t suffix) {
  const Tensor sizes = in_a_row(given);
  if (sizes.dim() != 2) fail("sizes has shape ", shape_of(sizes), "; it must be (B, N)");
  const int64_t batch = sizes.size(0), n = sizes.size(1), all = prefix + n + suffix;
  const float* mass = check_sizes(sizes, batch, n);
  if (prefix < 0 || suffix < 0) fail("prefix is ", prefix, " and suffix ", suffix, "; they must not be negative");
  const Tensor out = uninitialised(sizes, {batch, 1, 1, all});
  float* row = static_cast<float*>(out.mutable_data_ptr());
  for (int64_t i = 0; i < batch; ++i) write_bias(mass + i * n, n, prefix, suffix, row + i * all);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(tokenreduce_kernels, CPU, m) {
  m.impl("merge_apply", TORCH_BOX(&merge_apply));
  m.impl("bipartite_merge", TORCH_BOX(&bipartite_merge));
  m.impl("size_bias", TORCH_BOX(&size_bias));
  m.impl("restore_apply", TORCH_BOX(&restore_apply));
}

}  // namespace tokenreduce
