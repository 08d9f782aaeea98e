// Merging and restoring tokens in one pass, on the CPU. Sums run in the order of the sources, always the same.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "../tensors.h"
#include "match.h"

namespace tokenreduce {

using torch::stable::parallel_for;

namespace {

template <typename T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

// For each output of an image its sources, in their order: `members` from `start[m]` to `start[m + 1]`.
struct Groups {
  std::vector<int64_t> start, members;
  std::vector<float> mass;  // of each output

  void sort(const int64_t* dest, const int64_t* rep, const int64_t* sources, int64_t keep, int64_t removed,
            const float* sizes) {
    start.assign(keep + 2, 0), members.resize(removed), mass.resize(keep);
    for (int64_t m = 0; m < keep; ++m) mass[m] = sizes ? sizes[rep[m]] : 1.0f;
    for (int64_t i = 0; i < removed; ++i) {
      ++start[dest[sources[i]] + 2];
      mass[dest[sources[i]]] += sizes ? sizes[sources[i]] : 1.0f;
    }
    for (int64_t m = 0; m < keep; ++m) start[m + 2] += start[m + 1];
    for (int64_t i = 0; i < removed; ++i) members[start[dest[sources[i]] + 1]++] = sources[i];
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

// The merged tokens, their sizes, and the bias of `size_bias` that belongs to them.
std::tuple<Tensor, Tensor, Tensor> merge_apply(
    const Tensor& given, const Tensor& dest, const Tensor& rep, const Tensor& sources,
    const std::optional<Tensor>& given_sizes, int64_t prefix, int64_t suffix) {
  const Tensor x = with_rows(given);
  const std::optional<Tensor> sizes = in_a_row(given_sizes);
  check(x, "x", {-1, -1, -1});
  check_protected("x", x.size(1), prefix, suffix);
  const int64_t batch = x.size(0), n = x.size(1) - prefix - suffix, width = x.size(2), stride = x.stride(1);
  if (rep.dim() != 2) fail("rep has shape ", shape_of(rep), "; it must be (B, M)");
  const int64_t keep = rep.size(1), removed = n - keep, all = prefix + keep + suffix;
  if (removed < 0) fail("rep names ", keep, " of ", n, " tokens");
  const Index to = check_index(dest, "dest", batch, n, keep);
  const Index stays = check_index(rep, "rep", batch, keep, n);
  const Index moves = check_index(sources, "sources", batch, removed, n);
  const float* mass = check_sizes(sizes, batch, n);
  const Tensor out = uninitialised(x, {batch, all, width});
  const Tensor grown = uninitialised(x, {batch, keep}, ScalarType::Float);
  const Tensor bias = uninitialised(x, {batch, 1, 1, all}, ScalarType::Float);
  float* sums = static_cast<float*>(grown.mutable_data_ptr());
  float* logits = static_cast<float*>(bias.mutable_data_ptr());
  std::vector<Groups> groups(batch);
  parallel_for(0, batch, grain(4 * n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      groups[i].sort(to[i], stays[i], moves[i], keep, removed, mass ? mass + i * n : nullptr);
      std::copy_n(groups[i].mass.data(), keep, sums + i * keep);
      write_bias(sums + i * keep, keep, prefix, suffix, logits + i * all);
    }
  });
  with_type(x, "x", [&](auto type) {
    using T = decltype(type);
    const T* data = static_cast<const T*>(x.const_data_ptr());
    T* target = static_cast<T*>(out.mutable_data_ptr());
    parallel_for(0, batch * all, grain(2 * width), [&](int64_t begin, int64_t end) {
      std::vector<Sum<T>> row(width);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / all, m = i % all - prefix;
        const T* from = data + image * x.stride(0);
        if (m < 0 || m >= keep) {
          std::copy_n(from + (m < 0 ? m + prefix : m - keep + prefix + n) * stride, width, target + i * width);
          continue;
        }
        merge_row(from + prefix * stride, stride, stays[image][m], groups[image], m,
                  mass ? mass + image * n : nullptr, width, row.data(), target + i * width);
      }
    });
  });
  return {out, grown, bias};
}

// Matching and merging in one call. Returns the merged tokens, sizes and bias, and the map.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> bipartite_merge(
    const Tensor& x, const Tensor& metric, const std::optional<Tensor>& sizes, int64_t keep, int64_t first,
    int64_t prefix, int64_t suffix) {
  const auto [dest, rep, sources] = match_between(metric, keep, first, prefix, suffix);
  const auto [out, grown, bias] = merge_apply(x, dest, rep, sources, sizes, prefix, suffix);
  return {out, grown, bias, dest, rep, sources};
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
