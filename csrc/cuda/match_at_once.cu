// Bipartite matching of images whose tokens one block can hold.
#include <cstdint>

#include "match.h"
#include "scores.cuh"

namespace tokenreduce::gpu {

namespace {

constexpr int kThreads = 512, kWarps = kThreads / kWarp;
constexpr int kSources = 128, kTiles = kSources / kAcross;  // most sources and tiles of targets
constexpr int kShare = kThreads / kSources;                 // threads that count the rank of a source

struct Chosen {
  uint64_t best[kTiles][kSources];  // of every tile of targets
  uint32_t score[kSources];
  int32_t match[kSources], rank[kSources], counts[kWarps];
};

// A row more than its chunks by half a chunk: eight lanes that read two rows meet in no bank.
__host__ __device__ int32_t bytes_of_row(int32_t chunks) { return chunks * kChunkBytes + kChunkBytes / 2; }

template <typename T, int many>
__global__ void __launch_bounds__(kThreads) match_image(
    Tokens<T> tokens, Maps maps, int32_t lanes, int32_t chunks) {
  extern __shared__ uint4 memory[];
  __shared__ Chosen chosen;
  const int32_t thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
  const int32_t n = maps.n, sources = maps.source_count(), targets = n - sources, stride = bytes_of_row(chunks);
  const int64_t image = blockIdx.x;
  char* rows = reinterpret_cast<char*>(memory);
  const T* data = tokens.data + image * tokens.image_stride;
  const int32_t at_once = kThreads / lanes;
  for (int32_t start = 0; start < n; start += at_once) {
    const int32_t token = start + thread / lanes, given = min(token, n - 1);
    char* to = rows + place_of(given, sources, maps.first) * stride;
    write_unit<many>(tokens, data + given * tokens.row_stride, lanes, chunks, token < n ? to : nullptr);
  }
  __syncthreads();
  const Units units{rows, stride, chunks, sources, targets};
  const int32_t down = (sources + kDown - 1) / kDown, across = (targets + kAcross - 1) / kAcross;
  for (int32_t tile = warp; tile < down * across; tile += kWarps) {
    Best best[1][2];
    take_tile<1>(units, tile / across * kDown, tile % across * kAcross, best);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint64_t key = best_of_four(best[0][r]);
      const int32_t source = tile / across * kDown + r * 8 + lane / 4;
      if (lane % 4 == 0) chosen.best[tile % across][source] = key;  // room for sources after the last
    }
  }
  __syncthreads();
  if (thread < sources) {
    uint64_t best = 0;
    for (int32_t t = 0; t < across; ++t) best = max(best, chosen.best[t][thread]);
    chosen.score[thread] = score_of(best);
    chosen.match[thread] = index_of(best);
  }
  __syncthreads();
  const int32_t i = thread / kShare;
  int32_t rank = 0;
  if (i < sources)
    for (int32_t j = thread % kShare; j < sources; j += kShare)
      rank += before(chosen.score[j], j, chosen.score[i], i) ? 1 : 0;
  for (int step = 1; step < kShare; step *= 2) rank += __shfl_xor_sync(~0u, rank, step);
  if (thread % kShare == 0) chosen.rank[i] = rank;
  __syncthreads();
  write_maps<kThreads>(
      maps, image, [](int32_t i) { return chosen.rank[i]; }, [](int32_t i) { return chosen.match[i]; }, chosen.counts);
}

}  // namespace

template <typename T>
bool match_at_once(const Matching<T>& job, const Device& device) {
  const int64_t shared = int64_t{job.maps.n} * bytes_of_row(job.chunks());
  const int64_t limit = device.shared_memory() - static_cast<int64_t>(sizeof(Chosen));
  if (job.maps.n > 2 * kSources || shared > limit) return false;
  if (job.packed)
    device.launch(match_image<T, kMany<T>>, job.batch, kThreads, shared, job.tokens, job.maps, job.lanes(kMany<T>),
                  job.chunks());
  else
    device.launch(match_image<T, 1>, job.batch, kThreads, shared, job.tokens, job.maps, job.lanes(1), job.chunks());
  return true;
}

template bool match_at_once(const Matching<float>&, const Device&);
template bool match_at_once(const Matching<double>&, const Device&);
template bool match_at_once(const Matching<torch::headeronly::Half>&, const Device&);
template bool match_at_once(const Matching<torch::headeronly::BFloat16>&, const Device&);

}  // namespace tokenreduce::gpu
