// Bipartite matching by cosine on a GPU, of images of any size: directions, scores, ranks and maps.
#include <cstdint>
#include <tuple>
#include <vector>

#include "match.h"
#include "scores.cuh"

namespace tokenreduce::gpu {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

// What launches hand on, of every image: directions; of each source its best score, its target and its rank.
struct Work {
  char* rows;
  uint32_t* score;
  int32_t *match, *rank;
  uint32_t* done;  // blocks of `rank_sources` that are ready
};

template <typename T, int many>
__global__ void __launch_bounds__(kThreads) write_units(
    Tokens<T> tokens, Maps maps, int64_t batch, int32_t lanes, int32_t chunks, Work work) {
  const int64_t all = batch * maps.n, thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (thread < batch) work.done[thread] = 0;
  const int64_t row = thread / lanes, given = row < all ? row : all - 1, image = given / maps.n;
  const auto token = static_cast<int32_t>(given % maps.n);
  const int64_t place = image * maps.n + place_of(token, maps.source_count(), maps.first);
  char* to = row < all ? work.rows + place * chunks * kChunkBytes : nullptr;
  write_unit<many>(tokens, tokens.data + image * tokens.image_stride + token * tokens.row_stride, lanes, chunks, to);
}

// One block for `tiles` tiles of sources; its warps share the targets.
template <int tiles>
__global__ void __launch_bounds__(kThreads) find_best(Maps maps, int32_t chunks, Work work) {
  __shared__ uint64_t keys[kWarps][tiles * kDown];
  const int32_t sources = maps.source_count(), targets = maps.n - sources, stride = chunks * kChunkBytes;
  const int32_t blocks = (sources + tiles * kDown - 1) / (tiles * kDown);
  const int64_t image = blockIdx.x / blocks;
  const int32_t row = static_cast<int32_t>(blockIdx.x % blocks) * tiles * kDown;
  const int32_t thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
  const Units units{work.rows + image * maps.n * stride, stride, chunks, sources, targets};
  Best best[tiles][2];
  for (int32_t column = warp * kAcross; column < targets; column += kWarps * kAcross)
    take_tile<tiles>(units, row, column, best);
#pragma unroll
  for (int m = 0; m < tiles; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint64_t key = best_of_four(best[m][r]);
      if (lane % 4 == 0) keys[warp][m * kDown + r * 8 + lane / 4] = key;
    }
  __syncthreads();
  if (thread >= tiles * kDown || row + thread >= sources) return;
  uint64_t key = 0;
  for (int w = 0; w < kWarps; ++w) key = max(key, keys[w][thread]);
  const int64_t place = image * sources + row + thread;
  work.score[place] = score_of(key);
  work.match[place] = index_of(key);
}

// How many sources of its image come before each; the last block of an image that is ready writes the map.
__global__ void __launch_bounds__(kThreads) rank_sources(Maps maps, Work work) {
  __shared__ uint32_t tile[kThreads];
  __shared__ int32_t counts[kWarps];
  __shared__ bool last;
  const int32_t sources = maps.source_count(), blocks = (sources + kThreads - 1) / kThreads, thread = threadIdx.x;
  const int64_t image = blockIdx.x / blocks;
  const int32_t i = static_cast<int32_t>(blockIdx.x % blocks) * kThreads + thread;
  const uint32_t* score = work.score + image * sources;
  int32_t* ranks = work.rank + image * sources;
  const uint32_t mine = i < sources ? score[i] : 0;
  int32_t rank = 0;
  for (int32_t start = 0; start < sources; start += kThreads) {
    const int32_t here = min(kThreads, sources - start);
    __syncthreads();  // the last tile has been read
    if (thread < here) tile[thread] = score[start + thread];
    __syncthreads();
#pragma unroll 8
    for (int32_t j = 0; j < here; ++j) rank += before(tile[j], start + j, mine, i) ? 1 : 0;
  }
  if (i < sources) ranks[i] = rank;
  __threadfence();
  __syncthreads();
  if (thread == 0) last = atomicAdd(work.done + image, 1u) + 1 == static_cast<uint32_t>(blocks);
  __syncthreads();
  if (!last) return;
  __threadfence();
  const int32_t* matches = work.match + image * sources;
  write_maps<kThreads>(
      maps, image, [=](int32_t i) { return __ldcg(ranks + i); }, [=](int32_t i) { return matches[i]; }, counts);
}

// Memory for all of `Work`; the tensor owns it.
Tensor reserve(const Tensor& like, int64_t batch, const Maps& maps, int64_t chunks, Work& work) {
  constexpr int64_t align = 256;
  const auto up = [](int64_t bytes) { return divide_up(bytes, align) * align; };
  const int64_t rows = up(batch * maps.n * chunks * kChunkBytes), column = up(batch * maps.source_count() * 4);
  const Tensor memory = uninitialised(like, {rows + 3 * column + up(batch * 4)}, ScalarType::Byte);
  char* data = static_cast<char*>(memory.mutable_data_ptr());
  work.rows = data;
  work.score = reinterpret_cast<uint32_t*>(data + rows);
  work.match = reinterpret_cast<int32_t*>(data + rows + column);
  work.rank = reinterpret_cast<int32_t*>(data + rows + 2 * column);
  work.done = reinterpret_cast<uint32_t*>(data + rows + 3 * column);
  return memory;
}

template <typename T>
void match_in_steps(const Matching<T>& job, const Device& device, const Tensor& like) {
  const Maps& maps = job.maps;
  const int32_t chunks = job.chunks(), many = job.packed ? kMany<T> : 1, lanes = job.lanes(many);
  const int64_t sources = maps.source_count();
  Work work;
  const Tensor memory = reserve(like, job.batch, maps, chunks, work);
  const int64_t blocks = divide_up(job.batch * maps.n, kThreads / lanes);
  const auto units = job.packed ? write_units<T, kMany<T>> : write_units<T, 1>;
  device.launch(units, blocks, kThreads, 0, job.tokens, maps, job.batch, lanes, chunks, work);
  // Two tiles a block read targets half as often; one fills more processors.
  const int64_t pairs = job.batch * divide_up(sources, 2 * kDown);
  if (pairs >= 2 * device.processors()) device.launch(find_best<2>, pairs, kThreads, 0, maps, chunks, work);
  else device.launch(find_best<1>, job.batch * divide_up(sources, kDown), kThreads, 0, maps, chunks, work);
  device.launch(rank_sources, job.batch * divide_up(sources, kThreads), kThreads, 0, maps, work);
}

void check_keep(int64_t n, int64_t keep, int64_t first) {
  check_count(n);
  if (first != 0 && first != 1) fail("first is ", first, "; it must be 0 or 1");
  const int64_t sources = source_count(n, first), targets = n - sources;
  const int64_t least = n - (targets ? sources : 0);
  if (keep < least || keep > n) fail("keep is ", keep, "; of ", n, " tokens it must lie in [", least, ", ", n, "]");
}

int64_t* integers(const Tensor& tensor) { return static_cast<int64_t*>(tensor.mutable_data_ptr()); }

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
  check_count(width);
  const Device device(metric);
  const Tensor dest = uninitialised(metric, {batch, n}, ScalarType::Long);
  const Tensor rep = uninitialised(metric, {batch, keep}, ScalarType::Long);
  const Tensor sources = uninitialised(metric, {batch, n - keep}, ScalarType::Long);
  const auto small = [](int64_t number) { return static_cast<int32_t>(number); };
  const Maps maps{integers(dest), integers(rep), integers(sources), small(n), small(keep), small(first)};
  with_type(metric, "metric", [&](auto type) {
    using T = decltype(type);
    const T* data = static_cast<const T*>(metric.const_data_ptr()) + prefix * row_stride;
    const Tokens<T> tokens{data, metric.stride(0), head_stride, row_stride, small(heads), small(width)};
    const bool packed = packs(data, width, metric.stride(0), head_stride, row_stride);
    const Matching<T> job{tokens, maps, batch, packed};
    if (batch && n && !match_at_once(job, device)) match_in_steps(job, device, metric);
  });
  return {dest, rep, sources};
}

std::tuple<Tensor, Tensor, Tensor> bipartite_match(const Tensor& metric, int64_t keep, int64_t first) {
  return match_between(metric, keep, first, 0, 0);
}

STABLE_TORCH_LIBRARY_IMPL(tokenreduce_kernels, CUDA, m) { m.impl("bipartite_match", TORCH_BOX(&bipartite_match)); }

}  // namespace tokenreduce::gpu
