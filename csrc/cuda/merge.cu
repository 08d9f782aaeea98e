// Merging tokens in one pass, on a GPU. Sums run in the order of the sources, always the same.
#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>

#include "match.h"

namespace tokenreduce::gpu {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kRowBits = 5, kRows = 1 << kRowBits;  // most rows of a block

template <typename T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
struct Merge {
  DeviceIndex dest, rep, sources;
  const T* x;  // (B, prefix + n + suffix, width)
  int64_t image_stride, row_stride, width;
  const float* sizes;  // (B, n), or none
  int64_t batch;
  int32_t n, keep, prefix, suffix;
  int32_t rows;  // that a block writes
  T* out;        // (B, prefix + keep + suffix, width)
  float *grown, *bias;  // (B, keep) sizes, (B, prefix + keep + suffix) log sizes

  TOKENREDUCE_BOTH int32_t all() const { return prefix + keep + suffix; }
};

// The sources that merge into outputs `first` to `first + rows`, in their order, as `token << kRowBits | output - first`;
// returns how many. All threads of the block must come here.
template <typename T>
__device__ __forceinline__ int32_t find_members(
    const Merge<T>& job, int64_t image, int32_t first, uint32_t* found, int32_t* counts) {
  const int32_t removed = job.n - job.keep;
  int32_t total = 0;
  for (int32_t start = 0; start < removed; start += kThreads) {
    const int32_t i = start + static_cast<int32_t>(threadIdx.x);
    int32_t token = 0, row = -1;
    if (i < removed) {
      token = job.sources.at(image, i, job.n);
      row = job.dest.at(image, token, job.keep) - first;
    }
    const bool here = row >= 0 && row < job.rows;
    int32_t all;
    const int32_t place = total + count_before<kThreads>(here, counts, &all);
    if (here) found[place] = static_cast<uint32_t>(token) << kRowBits | static_cast<uint32_t>(row);
    total += all;
  }
  __syncthreads();
  return total;
}

// A source of an output and its share of it.
struct Member {
  int32_t token;
  float part;
};

// The members of one output among those found, together in `grouped` and in their order, without their parts yet. All
// lanes of a warp must come here, with the same row.
__device__ __forceinline__ int32_t group_members(
    const uint32_t* found, int32_t total, uint32_t row, Member*& grouped) {
  const int32_t lane = threadIdx.x % kWarp;
  const auto row_of = [&](int32_t i) { return i < total ? found[i] & (kRows - 1) : ~0u; };
  int32_t count = 0;
  for (int32_t start = 0; start < total; start += kWarp)
    grouped += __popc(__ballot_sync(~0u, row_of(start + lane) < row));
  for (int32_t start = 0; start < total; start += kWarp) {
    const bool here = row_of(start + lane) == row;
    const unsigned votes = __ballot_sync(~0u, here);
    const int32_t place = count + __popc(votes & ((1u << lane) - 1));
    if (here) grouped[place].token = static_cast<int32_t>(found[start + lane] >> kRowBits);
    count += __popc(votes);
  }
  __syncwarp();
  return count;
}

// The size of an output, and with it the parts of its members.
__device__ __forceinline__ float weigh(const float* sizes, int32_t rep, Member* members, int32_t count) {
  float mass = sizes ? sizes[rep] : 1.0f;
  for (int32_t i = 0; i < count; ++i) mass += sizes ? sizes[members[i].token] : 1.0f;
  const float whole = mass < 1e-12f ? 1e-12f : mass;
  for (int32_t i = threadIdx.x % kWarp; i < count; i += kWarp)
    members[i].part = (sizes ? sizes[members[i].token] : 1.0f) / whole;
  __syncwarp();
  return mass;
}

// Writes one row, a part of it in each lane: `centre`, moved towards the members.
template <int many, typename T>
__device__ __forceinline__ void merge_row(
    const Merge<T>& job, const T* image, const T* centre, const Member* members, int32_t count, T* out) {
  for (int64_t k = threadIdx.x % kWarp * many; k < job.width; k += kWarp * many) {
    Pack<T, many> pack = read<many>(centre + k);
    if (count) {
      Sum<T> middle[many], sums[many];
#pragma unroll
      for (int e = 0; e < many; ++e) middle[e] = sums[e] = static_cast<Sum<T>>(pack.values[e]);
      for (int32_t i = 0; i < count; ++i) {
        const Member member = members[i];
        const Sum<T> part = member.part;
        const Pack<T, many> from = read<many>(image + (job.prefix + member.token) * job.row_stride + k);
#pragma unroll
        for (int e = 0; e < many; ++e) sums[e] += (static_cast<Sum<T>>(from.values[e]) - middle[e]) * part;
      }
#pragma unroll
      for (int e = 0; e < many; ++e) pack.values[e] = static_cast<T>(sums[e]);
    }
    write(pack, out + k);
  }
}

// One block for some rows of an image, one warp a row.
template <typename T, int many>
__global__ void __launch_bounds__(kThreads) merge_rows(Merge<T> job) {
  extern __shared__ Member memory[];  // as many as there are sources, then what `find_members` finds
  __shared__ int32_t counts[kWarps];
  const int32_t all = job.all(), blocks = (all + job.rows - 1) / job.rows;
  const int64_t image = blockIdx.x / blocks;
  const int32_t begin = static_cast<int32_t>(blockIdx.x % blocks) * job.rows;
  auto* found = reinterpret_cast<uint32_t*>(memory + (job.n - job.keep));
  const int32_t total = find_members(job, image, begin - job.prefix, found, counts);
  const T* data = job.x + image * job.image_stride;
  const float* sizes = job.sizes ? job.sizes + image * job.n : nullptr;
  const bool first_lane = threadIdx.x % kWarp == 0;
  for (int32_t local = threadIdx.x / kWarp; local < job.rows && begin + local < all; local += kWarps) {
    const int32_t row = begin + local, m = row - job.prefix;
    int32_t at = m < 0 ? row : row - job.keep + job.n, count = 0;
    Member* members = memory;
    float mass = 1.0f;
    if (m >= 0 && m < job.keep) {
      const int32_t rep = job.rep.at(image, m, job.n);
      at = job.prefix + rep;
      count = group_members(found, total, local, members);
      mass = weigh(sizes, rep, members, count);
      if (first_lane) job.grown[image * job.keep + m] = mass;
    }
    if (first_lane) job.bias[image * all + row] = logf(mass);  // 0 for protected tokens
    T* out = job.out + (image * all + row) * job.width;
    merge_row<many>(job, data, data + at * job.row_stride, members, count, out);
  }
}

template <typename T>
void merge(Merge<T> job, const Device& device) {
  // Fewer rows a block fill more processors; more rows look through the sources less often.
  const auto blocks = [&] { return job.batch * divide_up(job.all(), job.rows); };
  job.rows = kWarps;
  while (job.rows < kRows && blocks() > 4 * device.processors()) job.rows *= 2;
  constexpr int64_t each = sizeof(Member) + sizeof(uint32_t);
  const int64_t shared = (job.n - job.keep) * each, limit = device.shared_memory() - 1024;
  if (shared > limit) fail("merge_apply merges at most ", limit / each, " tokens of an image on this GPU");
  const bool packed = packs(job.x, job.width, job.image_stride, job.row_stride);
  const auto kernel = packed ? merge_rows<T, kMany<T>> : merge_rows<T, 1>;
  device.launch(kernel, blocks(), kThreads, shared, job);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> merge_apply(
    const Tensor& given, const Tensor& dest, const Tensor& rep, const Tensor& sources,
    const std::optional<Tensor>& given_sizes, int64_t prefix, int64_t suffix) {
  const Tensor x = with_rows(given);
  const std::optional<Tensor> sizes = in_a_row(given_sizes);
  check_cuda(x, "x", {-1, -1, -1}, x);
  const int64_t batch = x.size(0), n = x.size(1) - prefix - suffix, width = x.size(2);
  check_protected("x", x.size(1), prefix, suffix);
  check_count(x.size(1));
  if (rep.dim() != 2) fail("rep has shape ", shape_of(rep), "; it must be (B, M)");
  const int64_t keep = rep.size(1), removed = n - keep, all = prefix + keep + suffix;
  if (removed < 0) fail("rep names ", keep, " of ", n, " tokens");
  const DeviceIndex to = check_device_index(dest, "dest", batch, n, x);
  const DeviceIndex stays = check_device_index(rep, "rep", batch, keep, x);
  const DeviceIndex moves = check_device_index(sources, "sources", batch, removed, x);
  const float* mass = check_floats(sizes, "sizes", {batch, n}, x);
  const Device device(x);
  const Tensor out = uninitialised(x, {batch, all, width});
  const Tensor grown = uninitialised(x, {batch, keep}, ScalarType::Float);
  const Tensor bias = uninitialised(x, {batch, 1, 1, all}, ScalarType::Float);
  const auto small = [](int64_t number) { return static_cast<int32_t>(number); };
  const auto floats = [](const Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); };
  with_type(x, "x", [&](auto type) {
    using T = decltype(type);
    const T* data = static_cast<const T*>(x.const_data_ptr());
    const int64_t image_stride = x.stride(0), row_stride = x.stride(1);
    T* target = static_cast<T*>(out.mutable_data_ptr());
    merge<T>({to, stays, moves, data, image_stride, row_stride, width, mass, batch, small(n), small(keep),
              small(prefix), small(suffix), 0, target, floats(grown), floats(bias)},
             device);
  });
  return {out, grown, bias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> bipartite_merge(
    const Tensor& x, const Tensor& metric, const std::optional<Tensor>& sizes, int64_t keep, int64_t first,
    int64_t prefix, int64_t suffix) {
  if (metric.dim() > 2) check_cuda(x, "x", {metric.size(0), metric.size(metric.dim() - 2), -1}, metric);
  const auto [dest, rep, sources] = match_between(metric, keep, first, prefix, suffix);
  const auto [out, grown, bias] = merge_apply(x, dest, rep, sources, sizes, prefix, suffix);
  return {out, grown, bias, dest, rep, sources};
}

STABLE_TORCH_LIBRARY_IMPL(tokenreduce_kernels, CUDA, m) {
  m.impl("merge_apply", TORCH_BOX(&merge_apply));
  m.impl("bipartite_merge", TORCH_BOX(&bipartite_merge));
}

}  // namespace tokenreduce::gpu
