// What every CUDA operator needs: checks of its tensors, launches, counting within a block.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "../arithmetic.h"
#include "../tensors.h"

namespace tokenreduce::gpu {

constexpr int kWarp = 32;

// A tensor of this shape on the GPU of `like`; -1 is any size.
inline void check_cuda(
    const Tensor& tensor, const char* name, const std::vector<int64_t>& shape, const Tensor& like) {
  if (!tensor.is_cuda()) fail(name, " is not on a GPU");
  if (tensor.get_device_index() != like.get_device_index()) fail(name, " is on another GPU");
  check_shape(tensor, name, shape);
}

// Places of tokens are 32-bit integers that leave a few bits free.
inline void check_count(int64_t n) {
  if (n > std::numeric_limits<int32_t>::max() / 64) fail("images of ", n, " tokens are too big");
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
  int64_t row_stride, stride;

  // An entry, moved into [0, bound) if it is outside: the host must not wait to see it, and an assertion on the device
  // would leave the process without its GPU.
  __device__ __forceinline__ int32_t at(int64_t row, int64_t column, int32_t bound) const {
    const int64_t entry = data[row * row_stride + column * stride];
    return entry < 0 ? 0 : entry >= bound ? bound - 1 : static_cast<int32_t>(entry);
  }
};

inline DeviceIndex check_device_index(
    const Tensor& tensor, const char* name, int64_t rows, int64_t columns, const Tensor& like) {
  check_cuda(tensor, name, {rows, columns}, like);
  check_type(tensor, name, ScalarType::Long, "int64");
  return {static_cast<const int64_t*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1)};
}

// The GPU of a tensor is the current one as long as this lives.
struct Device {
  torch::stable::accelerator::DeviceGuard guard;
  int index;
  cudaStream_t stream;

  explicit Device(const Tensor& tensor) : guard(tensor.get_device_index()), index(tensor.get_device_index()) {
    void* current = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &current));
    stream = static_cast<cudaStream_t>(current);
  }

  int64_t ask(cudaDeviceAttr attribute) const {
    int value = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, index));
    return value;
  }
  int64_t processors() const { return ask(cudaDevAttrMultiProcessorCount); }
  int64_t shared_memory() const { return ask(cudaDevAttrMaxSharedMemoryPerBlockOptin); }  // a block may ask for

  template <typename... Parameters, typename... Arguments>
  void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared,
              const Arguments&... arguments) const {
    if (blocks == 0) return;  // CUDA refuses empty grids
    if (blocks > std::numeric_limits<int32_t>::max()) fail("the batch is too big for one launch");
    const auto bytes = static_cast<int>(shared);
    if (bytes > 32768)  // with what kernels have besides this may pass the 48 KB that need no asking
      STD_CUDA_CHECK(cudaFuncSetAttribute(
          reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    kernel<<<static_cast<unsigned>(blocks), threads, bytes, stream>>>(arguments...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

TOKENREDUCE_BOTH int64_t divide_up(int64_t count, int64_t size) { return (count + size - 1) / size; }

// How many threads of the block in front of this one say yes, and how many do in all. `counts` is shared, one for each
// warp; all threads of the block must come here.
template <int threads>
__device__ __forceinline__ int32_t count_before(bool yes, int32_t* counts, int32_t* all) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const unsigned votes = __ballot_sync(~0u, yes);
  __syncthreads();  // the counts of the last call have been read
  if (lane == 0) counts[warp] = __popc(votes);
  __syncthreads();
  int32_t before = __popc(votes & ((1u << lane) - 1));
  *all = 0;
#pragma unroll
  for (int w = 0; w < threads / kWarp; ++w) {
    if (w < warp) before += counts[w];
    *all += counts[w];
  }
  return before;
}

}  // namespace tokenreduce::gpu
