// What every CUDA operator needs: checks of its tensors, memory to work in, launches.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <cassert>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "../arithmetic.h"
#include "../tensors.h"

namespace tokenreduce::gpu {

constexpr int kWarp = 32;
constexpr int kRowsAtOnce = 8;  // rows of a block where every row has a warp

// A tensor of this shape on the GPU of `like`; -1 is any size.
inline void check_cuda(
    const Tensor& tensor, const char* name, const std::vector<int64_t>& shape, const Tensor& like) {
  if (!tensor.is_cuda()) fail(name, " is not on a GPU");
  if (tensor.get_device_index() != like.get_device_index()) fail(name, " is on another GPU");
  check_shape(tensor, name, shape);
}

// Places of tokens are 32-bit integers in the memory that kernels work in.
inline void check_count(int64_t n) {
  if (n > std::numeric_limits<int32_t>::max()) fail("images of ", n, " tokens are too big");
}

// The data of a float32 tensor of this shape, whose elements stand one after the other, or none.
inline const float* check_floats(
    const std::optional<Tensor>& tensor, const char* name, const std::vector<int64_t>& shape, const Tensor& like) {
  if (!tensor) return nullptr;
  check_cuda(*tensor, name, shape, like);
  check_type(*tensor, name, ScalarType::Float, "float32");
  return static_cast<const float*>(tensor->const_data_ptr());
}

// An int64 index (rows, columns) on the GPU.
struct DeviceIndex {
  const int64_t* data;
  int64_t stride;

  __device__ const int64_t* operator[](int64_t row) const { return data + row * stride; }
};

// An index of this shape; its entries are checked where a kernel reads them, because the host must not wait for them.
inline DeviceIndex check_device_index(
    const Tensor& tensor, const char* name, int64_t rows, int64_t columns, const Tensor& like) {
  check_cuda(tensor, name, {rows, columns}, like);
  check_type(tensor, name, ScalarType::Long, "int64");
  if (columns > 1 && tensor.stride(1) != 1) fail(name, " must have stride 1 in its last dimension");
  return {static_cast<const int64_t*>(tensor.const_data_ptr()), tensor.stride(0)};
}

// An entry of an index that came from outside.
__device__ __forceinline__ int64_t in_bounds(int64_t entry, int64_t bound) {
  assert(entry >= 0 && entry < bound);
  return entry;
}

// The GPU of a tensor is the current one as long as this lives.
struct Device {
  torch::stable::accelerator::DeviceGuard guard;
  cudaStream_t stream;

  explicit Device(const Tensor& tensor) : guard(tensor.get_device_index()) {
    void* current = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &current));
    stream = static_cast<cudaStream_t>(current);
  }
};

TOKENREDUCE_BOTH int64_t divide_up(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Memory for several arrays in one allocation, each aligned for vector loads.
class Workspace {
 public:
  // `allocate` lets `array` point to `count` elements.
  template <typename T>
  void add(T*& array, int64_t count) {
    constexpr int64_t align = 256;
    places.push_back([&array, start = bytes](char* memory) { array = reinterpret_cast<T*>(memory + start); });
    bytes += divide_up(count * static_cast<int64_t>(sizeof(T)), align) * align;
  }

  void allocate(const Tensor& like) {
    memory = uninitialised(like, {bytes}, ScalarType::Byte);
    for (const auto& place : places) place(static_cast<char*>(memory.mutable_data_ptr()));
  }

 private:
  std::vector<std::function<void(char*)>> places;
  int64_t bytes = 0;
  Tensor memory;
};

// Blocks and threads where every row has a warp.
inline int64_t row_blocks(int64_t rows) { return divide_up(rows, kRowsAtOnce); }
inline dim3 row_threads() { return dim3(kWarp, kRowsAtOnce); }
__device__ __forceinline__ int64_t this_row() { return int64_t{blockIdx.x} * kRowsAtOnce + threadIdx.y; }

__device__ __forceinline__ float sum_of_warp(float value) {
  for (int step = kWarp / 2; step; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

template <typename... Parameters, typename... Arguments>
void launch(
    cudaStream_t stream, void (*kernel)(Parameters...), int64_t blocks, dim3 threads, const Arguments&... arguments) {
  if (blocks == 0) return;  // CUDA refuses empty grids
  if (blocks > std::numeric_limits<int32_t>::max()) fail("the batch is too big for one launch");
  kernel<<<static_cast<unsigned>(blocks), threads, 0, stream>>>(arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace tokenreduce::gpu
