// Merging and restoring tokens in one pass, on a GPU. Sums run in the order of the sources, always the same.
#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>

#include "merge.h"

namespace tokenreduce::gpu {

namespace {

template <typename T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Elements of a row that a thread reads at once.
template <typename T, int many>
struct alignas(sizeof(T) * many) Pack {
  T values[many];
};

template <int many, typename T>
__device__ __forceinline__ Pack<T, many> read(const T* from) {
  return *reinterpret_cast<const Pack<T, many>*>(from);
}

template <int many, typename T>
__device__ __forceinline__ void write(const Pack<T, many>& pack, T* to) {
  *reinterpret_cast<Pack<T, many>*>(to) = pack;
}

template <typename T>
constexpr int kMany = 16 / sizeof(T);

// Whether rows of `width` elements can be read in packs.
template <typename T>
bool packs(const Rows<T>& rows, int64_t width) {
  const bool strides = rows.image_stride % kMany<T> == 0 && rows.row_stride % kMany<T> == 0;
  return strides && width % kMany<T> == 0 && reinterpret_cast<uintptr_t>(rows.data) % sizeof(Pack<T, kMany<T>>) == 0;
}

// One warp an output: it looks through all sources of its image for its own.
__global__ void group_sources(Groups groups) {
  const int64_t output = this_row();
  if (output >= groups.batch * groups.keep) return;
  const int64_t image = output / groups.keep, m = output % groups.keep, removed = groups.n - groups.keep;
  const int64_t *dest = groups.dest[image], *sources = groups.sources[image];
  const float* sizes = groups.sizes ? groups.sizes + image * groups.n : nullptr;
  const int64_t rep = in_bounds(groups.rep[image][m], groups.n);
  float mass = sizes ? sizes[rep] : 1.0f;
  int32_t* link = groups.head + output;
  for (int64_t start = 0; start < removed; start += kWarp) {
    const int64_t i = start + threadIdx.x;
    bool mine = false;
    float size = 1.0f;
    if (i < removed) {
      const int64_t token = in_bounds(sources[i], groups.n);
      mine = in_bounds(dest[token], groups.keep) == m;
      if (mine && sizes) size = sizes[token];
    }
    for (unsigned left = __ballot_sync(~0u, mine); left; left &= left - 1) {
      const int lane = __ffs(left) - 1;
      mass += __shfl_sync(~0u, size, lane);
      if (threadIdx.x == 0) *link = static_cast<int32_t>(start + lane);
      link = groups.next + image * removed + start + lane;
    }
  }
  if (threadIdx.x == 0) {
    *link = -1;
    groups.mass[output] = mass;
  }
}

// One warp an output.
template <typename T, int many>
__global__ void merge_rows(Merge<T> job) {
  const Groups& groups = job.groups;
  const int64_t all = job.prefix + groups.keep + job.suffix, row = this_row();
  if (row >= groups.batch * all) return;
  const int64_t image = row / all, m = row % all - job.prefix;
  const bool merged = m >= 0 && m < groups.keep;
  int64_t at = m < 0 ? m : m - groups.keep + groups.n;
  int32_t head = -1;
  float mass = 1.0f;
  if (job.bias && threadIdx.x == 0) job.bias[row] = merged ? logf(groups.mass[image * groups.keep + m]) : 0.0f;
  if (merged) {
    at = groups.rep[image][m];
    head = groups.head[image * groups.keep + m];
    mass = groups.mass[image * groups.keep + m];
    mass = mass < 1e-12f ? 1e-12f : mass;
  }
  const T* centre = job.x.at(image, job.prefix + at);
  const int64_t* sources = groups.sources[image];
  const int32_t* next = groups.next + image * (groups.n - groups.keep);
  const float* sizes = groups.sizes ? groups.sizes + image * groups.n : nullptr;
  for (int64_t k = threadIdx.x * many; k < job.width; k += kWarp * many) {
    Pack<T, many> pack = read<many>(centre + k);
    Sum<T> middle[many], sums[many];
#pragma unroll
    for (int e = 0; e < many; ++e) middle[e] = sums[e] = static_cast<Sum<T>>(pack.values[e]);
    for (int32_t i = head; i >= 0; i = next[i]) {
      const Sum<T> part = (sizes ? sizes[sources[i]] : 1.0f) / mass;
      const Pack<T, many> from = read<many>(job.x.at(image, job.prefix + sources[i]) + k);
#pragma unroll
      for (int e = 0; e < many; ++e) sums[e] += (static_cast<Sum<T>>(from.values[e]) - middle[e]) * part;
    }
#pragma unroll
    for (int e = 0; e < many; ++e) pack.values[e] = static_cast<T>(sums[e]);
    write(pack, job.out + row * job.width + k);
  }
}

template <typename T>
struct Restore {
  DeviceIndex dest;
  Rows<T> now, before, after;  // `before` and `after` hold nothing where rows are copied
  int64_t batch, n, keep, width, prefix, suffix;
  T* out;  // (B, prefix + n + suffix, width)
};

// One warp a token.
template <typename T, int many>
__global__ void restore_rows(Restore<T> job) {
  const int64_t all = job.prefix + job.n + job.suffix, row = this_row();
  if (row >= job.batch * all) return;
  const int64_t image = row / all, token = row % all, m = token - job.prefix;
  int64_t at = token;
  if (m >= job.n) at = token - job.n + job.keep;
  else if (m >= 0) at = job.prefix + in_bounds(job.dest[image][m], job.keep);
  const T* now = job.now.at(image, at);
  const T* before = job.before.at(image, token);
  const T* after = job.after.at(image, at);
  for (int64_t k = threadIdx.x * many; k < job.width; k += kWarp * many) {
    Pack<T, many> pack = read<many>(now + k);
    if (job.before.data) {
      const Pack<T, many> was = read<many>(before + k), then = read<many>(after + k);
#pragma unroll
      for (int e = 0; e < many; ++e) {
        const Sum<T> change = static_cast<Sum<T>>(pack.values[e]) - static_cast<Sum<T>>(then.values[e]);
        pack.values[e] = static_cast<T>(static_cast<Sum<T>>(was.values[e]) + change);
      }
    }
    write(pack, job.out + row * job.width + k);
  }
}

template <typename T>
void restore(const Restore<T>& job, cudaStream_t stream) {
  const bool packed = packs(job.now, job.width) && packs(job.before, job.width) && packs(job.after, job.width);
  const auto kernel = packed ? restore_rows<T, kMany<T>> : restore_rows<T, 1>;
  launch(stream, kernel, row_blocks(job.batch * (job.prefix + job.n + job.suffix)), row_threads(), job);
}

__global__ void write_bias(const float* sizes, int64_t n, int64_t prefix, int64_t all, int64_t entries, float* out) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= entries) return;
  const int64_t token = i % all - prefix;
  out[i] = token < 0 || token >= n ? 0.0f : logf(sizes[i / all * n + token]);
}

template <typename T>
Rows<T> rows_of(const std::optional<Tensor>& tensor) {
  if (!tensor) return {nullptr, 0, 0};
  return {static_cast<const T*>(tensor->const_data_ptr()), tensor->stride(0), tensor->stride(1)};
}

}  // namespace

template <typename T>
void merge(const Merge<T>& job, cudaStream_t stream) {
  const Groups& groups = job.groups;
  launch(stream, group_sources, row_blocks(groups.batch * groups.keep), row_threads(), groups);
  const bool packed = packs(job.x, job.width);
  const auto kernel = packed ? merge_rows<T, kMany<T>> : merge_rows<T, 1>;
  launch(stream, kernel, row_blocks(groups.batch * (job.prefix + groups.keep + job.suffix)), row_threads(), job);
}

template void merge(const Merge<float>& job, cudaStream_t stream);  // for `ward_match`

std::tuple<Tensor, Tensor, Tensor> merge_apply(
    const Tensor& given, const Tensor& dest, const Tensor& rep, const Tensor& sources,
    const std::optional<Tensor>& given_sizes, int64_t prefix, int64_t suffix) {
  const Tensor x = with_rows(given);
  const std::optional<Tensor> sizes = in_a_row(given_sizes);
  check_cuda(x, "x", {-1, -1, -1}, x);
  const int64_t batch = x.size(0), n = x.size(1) - prefix - suffix, width = x.size(2);
  check_protected("x", x.size(1), prefix, suffix);
  check_count(n);
  if (rep.dim() != 2) fail("rep has shape ", shape_of(rep), "; it must be (B, M)");
  const int64_t keep = rep.size(1), removed = n - keep;
  if (removed < 0) fail("rep names ", keep, " of ", n, " tokens");
  const DeviceIndex to = check_device_index(dest, "dest", batch, n, x);
  const DeviceIndex stays = check_device_index(rep, "rep", batch, keep, x);
  const DeviceIndex moves = check_device_index(sources, "sources", batch, removed, x);
  const float* mass = check_floats(sizes, "sizes", {batch, n}, x);
  const Device device(x);
  const Tensor out = uninitialised(x, {batch, prefix + keep + suffix, width});
  const Tensor grown = uninitialised(x, {batch, keep}, ScalarType::Float);
  const Tensor bias = uninitialised(x, {batch, 1, 1, prefix + keep + suffix}, ScalarType::Float);
  float* logits = static_cast<float*>(bias.mutable_data_ptr());
  float* sums = static_cast<float*>(grown.mutable_data_ptr());
  Groups groups{to, stays, moves, mass, batch, n, keep, sums, nullptr, nullptr};
  Workspace space;
  space.add(groups.head, batch * keep);
  space.add(groups.next, batch * removed);
  space.allocate(x);
  with_type(x, "x", [&](auto type) {
    using T = decltype(type);
    T* target = static_cast<T*>(out.mutable_data_ptr());
    merge<T>({groups, rows_of<T>(x), width, prefix, suffix, target, logits}, device.stream);
  });
  return {out, grown, bias};
}

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
  check_cuda(y, "y", {-1, -1, -1}, y);
  const int64_t batch = y.size(0), keep = y.size(1) - prefix - suffix, width = y.size(2);
  check_protected("y", y.size(1), prefix, suffix);
  if (dest.dim() != 2) fail("dest has shape ", shape_of(dest), "; it must be (B, N)");
  const int64_t n = dest.size(1), all = prefix + n + suffix;
  const DeviceIndex to = check_device_index(dest, "dest", batch, n, y);
  if (before.has_value() != after.has_value()) fail("before and after must be given together");
  if (before) {
    check_cuda(*before, "before", {batch, all, width}, y);
    check_cuda(*after, "after", {batch, y.size(1), width}, y);
    if (before->scalar_type() != y.scalar_type()) fail("before must have the type of y");
    if (after->scalar_type() != y.scalar_type()) fail("after must have the type of y");
  }
  const Device device(y);
  const Tensor out = uninitialised(y, {batch, all, width});
  with_type(y, "y", [&](auto type) {
    using T = decltype(type);
    T* target = static_cast<T*>(out.mutable_data_ptr());
    const Restore<T> job{
        to, rows_of<T>(y), rows_of<T>(before), rows_of<T>(after), batch, n, keep, width, prefix, suffix, target};
    restore(job, device.stream);
  });
  return out;
}

Tensor size_bias(const Tensor& given, int64_t prefix, int64_t suffix) {
  const Tensor sizes = in_a_row(given);
  const float* mass = check_floats(sizes, "sizes", {-1, -1}, sizes);
  if (prefix < 0 || suffix < 0) fail("prefix is ", prefix, " and suffix ", suffix, "; they must not be negative");
  const int64_t n = sizes.size(1), all = prefix + n + suffix, entries = sizes.size(0) * all;
  const Device device(sizes);
  const Tensor out = uninitialised(sizes, {sizes.size(0), 1, 1, all});
  float* target = static_cast<float*>(out.mutable_data_ptr());
  launch(device.stream, write_bias, divide_up(entries, 256), dim3(256), mass, n, prefix, all, entries, target);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(tokenreduce_kernels, CUDA, m) {
  m.impl("merge_apply", TORCH_BOX(&merge_apply));
  m.impl("bipartite_merge", TORCH_BOX(&bipartite_merge));
  m.impl("size_bias", TORCH_BOX(&size_bias));
  m.impl("restore_apply", TORCH_BOX(&restore_apply));
}

}  // namespace tokenreduce::gpu
