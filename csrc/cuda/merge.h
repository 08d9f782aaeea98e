// Merging as the operators `merge_apply` and `ward_match` ask for it.
#pragma once

#include <cstdint>
#include <tuple>

#include "device.h"

namespace tokenreduce::gpu {

// The sources of every output as a list in their order: `head (B, keep)` is the first, `next (B, n - keep)` the one
// after each, -1 none. Entries are places in `sources`.
struct Groups {
  DeviceIndex dest, rep, sources;
  const float* sizes;  // (B, n), or none
  int64_t batch, n, keep;
  float* mass;  // (B, keep), sizes of the outputs
  int32_t *head, *next;
};

// Tokens (images, rows, width) of which rows can be read.
template <typename T>
struct Rows {
  const T* data;
  int64_t image_stride, row_stride;

  __device__ const T* at(int64_t image, int64_t row) const { return data + image * image_stride + row * row_stride; }
};

// `bipartite_match` of the tokens between `prefix` and `suffix` protected ones.
std::tuple<Tensor, Tensor, Tensor> match_between(
    const Tensor& metric, int64_t keep, int64_t first, int64_t prefix, int64_t suffix);

template <typename T>
struct Merge {
  Groups groups;
  Rows<T> x;  // (B, prefix + n + suffix, width)
  int64_t width, prefix, suffix;
  T* out;       // (B, prefix + keep + suffix, width)
  float* bias;  // (B, prefix + keep + suffix), log sizes, or none
};

template <typename T>
void merge(const Merge<T>& job, cudaStream_t stream);

}  // namespace tokenreduce::gpu
