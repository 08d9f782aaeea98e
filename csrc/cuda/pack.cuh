// Reading and writing rows 16 bytes at a time where their strides allow it.
#pragma once

#include "device.h"

namespace tokenreduce::gpu {

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

// Whether rows of `width` elements from `data` on, with these distances between them, can be read in packs.
template <typename T, typename... Strides>
bool packs(const T* data, int64_t width, Strides... strides) {
  return width % kMany<T> == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0 && ((strides % kMany<T> == 0) && ...);
}

}  // namespace tokenreduce::gpu
