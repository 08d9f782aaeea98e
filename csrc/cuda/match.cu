// Bipartite matching by cosine, and the rounds of `ward`, on a GPU.
#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "best_targets.cuh"
#include "merge.h"

namespace tokenreduce::gpu {

namespace {

constexpr int kThreads = 256, kMapThreads = 512;

// Tokens (images, heads, n, channels) that are read as means over heads in fp32.
template <typename T>
struct Heads {
  const T* data;
  int64_t image_stride, head_stride, row_stride, heads, channels;

  __device__ __forceinline__ float at(int64_t image, int64_t row, int64_t k) const {
    const T* from = data + image * image_stride + row * row_stride + k;
    float sum = static_cast<float>(*from);
    if (heads == 1) return sum;
    for (int64_t h = 1; h < heads; ++h) sum += static_cast<float>(from[h * head_stride]);
    return sum * (1.0f / static_cast<float>(heads));
  }
};

// Where tokens went in every image: `dest (B, n)`, `rep (B, keep)`, `sources (B, n - keep)`.
struct Maps {
  int64_t *dest, *rep, *sources;
  int64_t n, keep;
};

// Signed sums of every `width`-th channel of a direction; one warp a token.
template <typename T>
__global__ void sketch(Heads<T> from, const float* signs, int64_t width, Points to) {
  const int64_t row = this_row();
  if (row >= to.batch * to.n) return;
  const int64_t image = row / to.n, token = row % to.n;
  float squares = 0.0f;
  for (int64_t k = threadIdx.x; k < from.channels; k += kWarp) {
    const float value = from.at(image, token, k);
    squares += value * value;
  }
  const float length = inverse_length(sum_of_warp(squares));
  for (int64_t k = threadIdx.x; k < to.width; k += kWarp) {
    float sum = 0.0f;
    if (k < width)
      for (int64_t channel = k; channel < from.channels; channel += width)
        sum += from.at(image, token, channel) * length * (signs ? signs[channel] : 1.0f);
    to.rows[row * to.width + k] = sum;
  }
}

// Squared lengths and inverse sizes, which Ward compares by; one warp a token.
__global__ void measure(Points points, const float* sizes) {
  const int64_t row = this_row();
  if (row >= points.batch * points.n) return;
  float squares = 0.0f;
  for (int64_t k = threadIdx.x; k < points.width; k += kWarp) {
    const float value = points.rows[row * points.width + k];
    squares += value * value;
  }
  squares = sum_of_warp(squares);
  if (threadIdx.x) return;
  points.squares[row] = squares;
  points.inverse[row] = sizes ? 1.0f / sizes[row] : 1.0f;
}

// How many threads in front of this one say yes, and how many do in all. `counts` is shared, one for each warp.
__device__ __forceinline__ int32_t count_before(bool yes, int32_t* counts, int32_t* all) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned votes = __ballot_sync(~0u, yes);
  __syncthreads();  // the counts of the last call have been read
  if (lane == 0) counts[warp] = __popc(votes);
  __syncthreads();
  int32_t before = __popc(votes & ((1u << lane) - 1));
  *all = 0;
  for (int w = 0; w < kMapThreads / kWarp; ++w) {
    if (w < warp) before += counts[w];
    *all += counts[w];
  }
  return before;
}

// Merges the sources with the best scores into their matches. Outputs: kept sources in ascending order, then the
// targets. One block an image.
__global__ void __launch_bounds__(kMapThreads) write_maps(
    const int32_t* ranks, const int32_t* matches, int64_t first, Maps maps) {
  __shared__ int32_t counts[kMapThreads / kWarp];
  const int64_t sources = source_count(maps.n, first), removed = maps.n - maps.keep, kept = sources - removed;
  const int64_t image = blockIdx.x;
  int64_t *dest = maps.dest + image * maps.n, *rep = maps.rep + image * maps.keep;
  int64_t done = 0;  // kept sources in front of this step
  for (int64_t start = 0; start < sources; start += kMapThreads) {
    const int64_t i = start + threadIdx.x;
    const int32_t rank = i < sources ? ranks[image * sources + i] : 0;
    const bool stays = i < sources && rank >= removed;
    int32_t all;
    const int64_t place = done + count_before(stays, counts, &all);
    done += all;
    if (i >= sources) continue;
    const int64_t token = source_at(i, first);
    dest[token] = stays ? place : kept + matches[image * sources + i];
    (stays ? rep[place] : maps.sources[image * removed + rank]) = token;
  }
  for (int64_t i = threadIdx.x; i < maps.n - sources; i += kMapThreads) {
    const int64_t token = target_at(i, first);
    rep[kept + i] = token;
    dest[token] = kept + i;
  }
}

// The map that changes nothing yet; one thread a token.
__global__ void start_maps(int64_t tokens, int64_t n, int64_t* dest, int64_t* rep) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < tokens) dest[i] = rep[i] = i % n;
}

// A round after those before, as one map: `rep (B, step.n)` is theirs. One thread a token that entered.
__global__ void follow(int64_t tokens, const int64_t* rep, Maps step, Maps total, int64_t* total_rep) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= tokens) return;
  const int64_t image = i / total.n, at = i % total.n, removed = step.n - step.keep;
  total.dest[i] = step.dest[image * step.n + total.dest[i]];
  if (at < step.keep) total_rep[image * step.keep + at] = rep[image * step.n + step.rep[image * step.keep + at]];
  if (at < removed) {
    const int64_t place = image * (total.n - total.keep) + total.n - step.n + at;
    total.sources[place] = rep[image * step.n + step.sources[image * removed + at]];
  }
}

// For every source (B, sources) its best score, the target it comes from and its rank among all sources.
struct Pairs {
  float* score;
  int32_t *match, *rank;

  void reserve(Workspace& space, const Points& points) {
    const int64_t count = points.batch * points.sources();
    space.add(score, count), space.add(match, count), space.add(rank, count);
  }
};

template <Score kind>
void write_best(const Points& points, const Pairs& pairs, const Maps& maps, cudaStream_t stream) {
  const int64_t sources = points.sources();
  const int64_t tiles = points.batch * divide_up(sources, kRows);
  launch(stream, find_best<kind>, tiles, dim3(kTileThreads), points, pairs.score, pairs.match);
  const int64_t blocks = points.batch * divide_up(sources, kRankThreads);
  const auto count = static_cast<int32_t>(sources);
  launch(stream, rank_sources, blocks, dim3(kRankThreads), pairs.score, count, pairs.rank);
  launch(stream, write_maps, points.batch, dim3(kMapThreads), pairs.rank, pairs.match, points.first, maps);
}

void check_keep(int64_t n, int64_t keep, int64_t first) {
  check_count(n);
  if (first != 0 && first != 1) fail("first is ", first, "; it must be 0 or 1");
  const int64_t sources = source_count(n, first), targets = n - sources;
  const int64_t least = n - (targets ? sources : 0);
  if (keep < least || keep > n) fail("keep is ", keep, "; of ", n, " tokens it must lie in [", least, ", ", n, "]");
}

// The tokens that are left, (B, n): one buffer is read while the other is written.
struct Clusters {
  float *rows, *sizes;
  int64_t* rep;  // of the tokens that entered

  void reserve(Workspace& space, const Points& points) {
    const int64_t count = points.batch * points.n;
    space.add(rows, count * points.width), space.add(sizes, count), space.add(rep, count);
  }
};

int64_t* integers(const Tensor& tensor) { return static_cast<int64_t*>(tensor.mutable_data_ptr()); }

int64_t padded(int64_t width) { return divide_up(width, kDepth) * kDepth; }

}  // namespace

std::tuple<Tensor, Tensor, Tensor> match_between(
    const Tensor& given, int64_t keep, int64_t first, int64_t prefix, int64_t suffix) {
  const Tensor metric = with_rows(given);
  const bool headed = metric.dim() == 4;
  check_cuda(metric, "metric", std::vector<int64_t>(headed ? 4 : 3, -1), metric);
  const int64_t last = metric.dim() - 1, batch = metric.size(0), width = metric.size(last);
  const int64_t n = metric.size(last - 1) - prefix - suffix, row_stride = metric.stride(last - 1);
  const int64_t heads = headed ? metric.size(1) : 1, head_stride = headed ? metric.stride(1) : 0;
  if (!heads) fail("metric has no heads");
  check_protected("metric", metric.size(last - 1), prefix, suffix);
  check_keep(n, keep, first);
  const Device device(metric);
  const Tensor dest = uninitialised(metric, {batch, n}, ScalarType::Long);
  const Tensor rep = uninitialised(metric, {batch, keep}, ScalarType::Long);
  const Tensor sources = uninitialised(metric, {batch, n - keep}, ScalarType::Long);
  Points points{nullptr, nullptr, nullptr, batch, n, padded(width), first};
  Pairs pairs;
  Workspace space;
  space.add(points.rows, batch * n * points.width);
  pairs.reserve(space, points);
  space.allocate(metric);
  with_type(metric, "metric", [&](auto type) {
    using T = decltype(type);
    const T* data = static_cast<const T*>(metric.const_data_ptr()) + prefix * row_stride;
    const Heads<T> tokens{data, metric.stride(0), head_stride, row_stride, heads, width};
    const float* no_signs = nullptr;
    launch(device.stream, sketch<T>, row_blocks(batch * n), row_threads(), tokens, no_signs, width, points);
  });
  const Maps maps{integers(dest), integers(rep), integers(sources), n, keep};
  write_best<Score::kProduct>(points, pairs, maps, device.stream);
  return {dest, rep, sources};
}

std::tuple<Tensor, Tensor, Tensor> bipartite_match(const Tensor& metric, int64_t keep, int64_t first) {
  return match_between(metric, keep, first, 0, 0);
}

std::tuple<Tensor, Tensor, Tensor> ward_match(
    const Tensor& given, const std::optional<Tensor>& given_sizes, const std::optional<Tensor>& given_signs,
    int64_t width, const std::vector<int64_t>& counts, int64_t first) {
  const Tensor features = with_rows(given);
  const std::optional<Tensor> sizes = in_a_row(given_sizes), signs = in_a_row(given_signs);
  check_cuda(features, "features", {-1, -1, -1}, features);
  const int64_t batch = features.size(0), n = features.size(1), channels = features.size(2);
  if (width < 1 || width > channels) fail("width is ", width, "; it must lie in [1, ", channels, "]");
  if (!signs && width != channels) fail("signs are needed to sketch ", channels, " channels in ", width);
  const float* mass = check_floats(sizes, "sizes", {batch, n}, features);
  const float* sign = check_floats(signs, "signs", {channels}, features);
  int64_t keep = n;
  for (int64_t count : counts) {
    check_keep(keep, count, first);
    keep = count;
  }
  const Device device(features);
  const Tensor dest = uninitialised(features, {batch, n}, ScalarType::Long);
  const Tensor rep = uninitialised(features, {batch, keep}, ScalarType::Long);
  const Tensor sources = uninitialised(features, {batch, n - keep}, ScalarType::Long);
  const Maps total{integers(dest), integers(rep), integers(sources), n, keep};
  Points points{nullptr, nullptr, nullptr, batch, n, padded(width), first};
  Clusters now, next;
  Pairs pairs;
  Maps step;
  int32_t *head, *behind;
  Workspace space;
  now.reserve(space, points), next.reserve(space, points), pairs.reserve(space, points);
  for (int64_t** array : {&step.dest, &step.rep, &step.sources}) space.add(*array, batch * n);
  for (float** array : {&points.squares, &points.inverse}) space.add(*array, batch * n);
  for (int32_t** array : {&head, &behind}) space.add(*array, batch * n);
  space.allocate(features);
  points.rows = now.rows;
  with_type(features, "features", [&](auto type) {
    using T = decltype(type);
    const T* data = static_cast<const T*>(features.const_data_ptr());
    const Heads<T> tokens{data, features.stride(0), 0, features.stride(1), 1, channels};
    launch(device.stream, sketch<T>, row_blocks(batch * n), row_threads(), tokens, sign, width, points);
  });
  const int64_t tokens = batch * n, blocks = divide_up(tokens, kThreads);
  int64_t* entered = counts.empty() ? total.rep : now.rep;
  launch(device.stream, start_maps, blocks, dim3(kThreads), tokens, n, total.dest, entered);
  for (size_t i = 0; i < counts.size(); ++i) {
    const bool last = i + 1 == counts.size();
    step.n = points.n, step.keep = counts[i];
    launch(device.stream, measure, row_blocks(batch * step.n), row_threads(), points, mass);
    write_best<Score::kWard>(points, pairs, step, device.stream);
    launch(device.stream, follow, blocks, dim3(kThreads), tokens, now.rep, step, total, last ? total.rep : next.rep);
    if (last) break;
    const Groups groups{
        {step.dest, step.n}, {step.rep, step.keep}, {step.sources, step.n - step.keep},
        mass, batch, step.n, step.keep, next.sizes, head, behind};
    const int64_t stride = points.width;
    merge<float>({groups, {now.rows, step.n * stride, stride}, stride, 0, 0, next.rows}, device.stream);
    points.rows = next.rows, points.n = step.keep, mass = next.sizes;
    std::swap(now, next);
  }
  return {dest, rep, sources};
}

STABLE_TORCH_LIBRARY_IMPL(tokenreduce_kernels, CUDA, m) {
  m.impl("bipartite_match", TORCH_BOX(&bipartite_match));
  m.impl("ward_match", TORCH_BOX(&ward_match));
}

}  // namespace tokenreduce::gpu
