// What methods ask of attention and of all pairs of tokens, on a GPU: products of tiles are used up where they are
// computed, no matrix of all pairs is ever stored.
#include <cmath>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "tiles.cuh"

namespace tokenreduce::gpu {

namespace {

// Rows that are read as floats, `factor` times what they hold; zeros after the last row and channel.
template <typename T>
struct Side {
  const T* data;
  int64_t row_stride, count, width;
  float factor;

  __device__ __forceinline__ float at(int64_t row, int64_t channel) const {
    return row < count && channel < width ? static_cast<float>(data[row * row_stride + channel]) * factor : 0.0f;
  }

  // Channels from `channel` on of the rows from `begin` on, transposed.
  template <int width>
  __device__ __forceinline__ void load(int64_t begin, int64_t channel, float (&tile)[kDepth][width]) const {
    for (int i = threadIdx.x; i < (width - kPad) * kDepth; i += kTileThreads)
      tile[i % kDepth][i / kDepth] = at(begin + i / kDepth, channel + i % kDepth);
  }
};

// Which rows of a tile's two sides are this thread's.
__device__ __forceinline__ int my_down() { return threadIdx.x / kAcross * kEach; }
__device__ __forceinline__ int my_across() { return threadIdx.x % kAcross * kEach; }

// The products of this thread's rows, of those from `row` on of one side and from `column` on of the other.
template <typename T>
__device__ __forceinline__ void multiply(
    const Side<T>& a, int64_t row, const Side<T>& b, int64_t column, Tiles& tiles, float (&sums)[kEach][kEach]) {
  for (int r = 0; r < kEach; ++r)
    for (int c = 0; c < kEach; ++c) sums[r][c] = 0.0f;
  for (int64_t channel = 0; channel < a.width; channel += kDepth) {
    __syncthreads();
    a.load(row, channel, tiles.a);
    b.load(column, channel, tiles.b);
    __syncthreads();
    tiles.add_products(my_down(), my_across(), sums);
  }
}

// The sum over the threads with the same rows, for the first of them.
template <typename Value>
__device__ __forceinline__ Value sum_across(Value value) {
  for (int step = kAcross / 2; step; step /= 2) value += __shfl_down_sync(~0u, value, step, kAcross);
  return value;
}

// What a softmax divides by: the sum of exponentials, relative to the largest logit so far.
struct Softmax {
  float largest = -INFINITY, sum = 0.0f;

  __device__ __forceinline__ void take(float other, float other_sum) {
    if (other == -INFINITY) return;  // adds nothing, and the difference of two of them is NaN
    if (beats(other, largest)) {
      sum = sum * expf(largest - other) + other_sum;
      largest = other;
    } else {
      sum += other_sum * expf(other - largest);
    }
  }
};

// Queries or keys (images, heads, n, width).
template <typename T>
struct Heads {
  const T* data;
  int64_t image_stride, head_stride, row_stride;
};

template <typename T>
struct Attention {
  Heads<T> queries, keys;
  const float* bias;  // (images, n), or none
  int64_t heads, n, width;
  float scale;
  float *largest, *inverse;  // (images, heads, n), of every query
  float *received, *own;     // (images, heads, n)

  __device__ __forceinline__ Side<T> side(const Heads<T>& from, int64_t head, float factor) const {
    const T* data = from.data + head / heads * from.image_stride + head % heads * from.head_stride;
    return {data, from.row_stride, n, width, factor};
  }

  __device__ __forceinline__ float bias_of(int64_t head, int64_t key) const {
    return bias ? bias[head / heads * n + key] : 0.0f;
  }
};

// Largest logit and inverse sum of every query; one block for kRows queries of one head.
template <typename T>
__global__ void __launch_bounds__(kTileThreads) measure_queries(Attention<T> job) {
  __shared__ Tiles tiles;
  const int64_t blocks = divide_up(job.n, kRows), head = blockIdx.x / blocks, row = blockIdx.x % blocks * kRows;
  const Side<T> queries = job.side(job.queries, head, job.scale), keys = job.side(job.keys, head, 1.0f);
  Softmax found[kEach];
  for (int64_t column = 0; column < job.n; column += kColumns) {
    float sums[kEach][kEach];
    multiply(queries, row, keys, column, tiles, sums);
    for (int c = 0; c < kEach; ++c) {
      const int64_t key = column + my_across() + c;
      if (key >= job.n) continue;
      const float bias = job.bias_of(head, key);
      for (int r = 0; r < kEach; ++r) found[r].take(sums[r][c] + bias, 1.0f);
    }
  }
  for (int r = 0; r < kEach; ++r) {
    for (int step = kAcross / 2; step; step /= 2) {
      const float other = __shfl_down_sync(~0u, found[r].largest, step, kAcross);
      found[r].take(other, __shfl_down_sync(~0u, found[r].sum, step, kAcross));
    }
    const int64_t query = row + my_down() + r;
    if (my_across() || query >= job.n) continue;
    job.largest[head * job.n + query] = found[r].largest;
    job.inverse[head * job.n + query] = 1.0f / found[r].sum;
  }
}

// What every key receives, and what it gives to itself; one block for kRows keys of one head, that no two blocks add to
// one sum.
template <typename T>
__global__ void __launch_bounds__(kTileThreads) sum_received(Attention<T> job) {
  __shared__ Tiles tiles;
  const int64_t blocks = divide_up(job.n, kRows), head = blockIdx.x / blocks, row = blockIdx.x % blocks * kRows;
  const Side<T> queries = job.side(job.queries, head, job.scale), keys = job.side(job.keys, head, 1.0f);
  const int64_t first = row + my_down();
  float bias[kEach], totals[kEach] = {};
  for (int r = 0; r < kEach; ++r) bias[r] = first + r < job.n ? job.bias_of(head, first + r) : 0.0f;
  for (int64_t column = 0; column < job.n; column += kColumns) {
    float sums[kEach][kEach];
    multiply(keys, row, queries, column, tiles, sums);
    for (int c = 0; c < kEach; ++c) {
      const int64_t query = column + my_across() + c;
      if (query >= job.n) continue;
      const float largest = job.largest[head * job.n + query], inverse = job.inverse[head * job.n + query];
      for (int r = 0; r < kEach; ++r) {
        const float given = expf(sums[r][c] + bias[r] - largest) * inverse;
        totals[r] += given;
        if (query == first + r) job.own[head * job.n + query] = given;
      }
    }
  }
  for (int r = 0; r < kEach; ++r) {
    const float total = sum_across(totals[r]);
    if (my_across() == 0 && first + r < job.n) job.received[head * job.n + first + r] = total;
  }
}

// Tokens (images, n, width) and the energy of PiToMe.
struct Energy {
  float *unit, *own;  // (images, n, width) directions and (images, n) cosines of tokens with themselves
  int64_t batch, n, width;
  float margin, alpha;
  bool above_margin;
  double* out;  // (images, n), n times the energies
};

// One warp a token.
template <typename T>
__global__ void normalise(const T* from, int64_t image_stride, int64_t row_stride, Energy job) {
  const int64_t row = this_row();
  if (row >= job.batch * job.n) return;
  const T* token = from + row / job.n * image_stride + row % job.n * row_stride;
  float squares = 0.0f;
  for (int64_t k = threadIdx.x; k < job.width; k += kWarp) {
    const float value = static_cast<float>(token[k]);
    squares += value * value;
  }
  squares = sum_of_warp(squares);
  const float length = inverse_length(squares);
  for (int64_t k = threadIdx.x; k < job.width; k += kWarp)
    job.unit[row * job.width + k] = static_cast<float>(token[k]) * length;
  if (threadIdx.x == 0) job.own[row] = own_cosine(squares, length);
}

// One block for kRows tokens of one image. The cosines of a pair are one number whichever side a token is on, and their
// terms are summed in double, so that equal energies come out equal.
__global__ void __launch_bounds__(kTileThreads) sum_energy(Energy job) {
  __shared__ Tiles tiles;
  const int64_t blocks = divide_up(job.n, kRows), image = blockIdx.x / blocks, row = blockIdx.x % blocks * kRows;
  const Side<float> tokens{job.unit + image * job.n * job.width, job.width, job.n, job.width, 1.0f};
  const int64_t first = row + my_down();
  double totals[kEach] = {};
  for (int64_t column = 0; column < job.n; column += kColumns) {
    float sums[kEach][kEach];
    multiply(tokens, row, tokens, column, tiles, sums);
    for (int c = 0; c < kEach; ++c) {
      const int64_t token = column + my_across() + c;
      if (token >= job.n) continue;
      for (int r = 0; r < kEach; ++r) {
        const float cosine = token == first + r ? job.own[image * job.n + token] : sums[r][c];
        const float grown = expf(cosine - job.margin);
        totals[r] += pitome_term(cosine, grown, job.margin, job.alpha, job.above_margin);
      }
    }
  }
  for (int r = 0; r < kEach; ++r) {
    const double total = sum_across(totals[r]);
    if (my_across() == 0 && first + r < job.n) job.out[image * job.n + first + r] = total;
  }
}

template <typename T>
Heads<T> heads_of(const Tensor& tensor) {
  return {static_cast<const T*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

}  // namespace

std::tuple<Tensor, Tensor> attention_statistics(
    const Tensor& given_queries, const Tensor& given_keys, const std::optional<Tensor>& given_bias) {
  const Tensor queries = with_rows(given_queries), keys = with_rows(given_keys);
  const std::optional<Tensor> bias = in_a_row(given_bias);
  check_cuda(queries, "queries", {-1, -1, -1, -1}, queries);
  const int64_t batch = queries.size(0), heads = queries.size(1), n = queries.size(2), width = queries.size(3);
  check_cuda(keys, "keys", {batch, heads, n, width}, queries);
  if (keys.scalar_type() != queries.scalar_type()) fail("keys must have the type of queries");
  const float* logits = check_floats(bias, "bias", {batch, 1, 1, n}, queries);
  const Device device(queries);
  const Tensor received = uninitialised(queries, {batch, heads, n}, ScalarType::Float);
  const Tensor own = uninitialised(queries, {batch, heads, n}, ScalarType::Float);
  float *largest, *inverse;
  Workspace space;
  space.add(largest, batch * heads * n), space.add(inverse, batch * heads * n);
  space.allocate(queries);
  with_type(queries, "queries", [&](auto type) {
    using T = decltype(type);
    const Attention<T> job{
        heads_of<T>(queries), heads_of<T>(keys), logits, heads, n, width,
        1.0f / std::sqrt(static_cast<float>(width)), largest, inverse,
        static_cast<float*>(received.mutable_data_ptr()), static_cast<float*>(own.mutable_data_ptr())};
    const int64_t blocks = batch * heads * divide_up(n, kRows);
    launch(device.stream, measure_queries<T>, blocks, dim3(kTileThreads), job);
    launch(device.stream, sum_received<T>, blocks, dim3(kTileThreads), job);
  });
  return {received, own};
}

Tensor pitome_energy(const Tensor& given, double margin, double alpha, bool above_margin) {
  const Tensor metric = with_rows(given);
  check_cuda(metric, "metric", {-1, -1, -1}, metric);
  const int64_t batch = metric.size(0), n = metric.size(1), width = metric.size(2);
  const Device device(metric);
  const Tensor out = uninitialised(metric, {batch, n}, ScalarType::Double);
  Energy job{
      nullptr, nullptr, batch, n, width, static_cast<float>(margin), static_cast<float>(alpha), above_margin,
      static_cast<double*>(out.mutable_data_ptr())};
  Workspace space;
  space.add(job.unit, batch * n * width), space.add(job.own, batch * n);
  space.allocate(metric);
  with_type(metric, "metric", [&](auto type) {
    using T = decltype(type);
    const T* data = static_cast<const T*>(metric.const_data_ptr());
    const int64_t image_stride = metric.stride(0), row_stride = metric.stride(1);
    launch(device.stream, normalise<T>, row_blocks(batch * n), row_threads(), data, image_stride, row_stride, job);
  });
  launch(device.stream, sum_energy, batch * divide_up(n, kRows), dim3(kTileThreads), job);
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(tokenreduce_kernels, CUDA, m) {
  m.impl("attention_statistics", TORCH_BOX(&attention_statistics));
  m.impl("pitome_energy", TORCH_BOX(&pitome_energy));
}

}  // namespace tokenreduce::gpu
