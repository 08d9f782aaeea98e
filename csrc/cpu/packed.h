// The two sides of products of rows, laid out for `products` in best_targets.h: whatever one step reads lies together.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "../arithmetic.h"

namespace tokenreduce {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kTile = 12;
#elif defined(__AVX__)
constexpr int kLanes = 8, kTile = 6;
#else
constexpr int kLanes = 4, kTile = 8;
#endif
constexpr int kPanel = 2 * kLanes;  // targets whose products one step computes, for kTile sources

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));

// Wherever the floats lie. As references to a vector type with less alignment clang reads them as aligned ones.
inline Floats lanes_at(const float* from) {
  Floats lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}
inline void store_lanes(const Floats& lanes, float* to) { std::memcpy(to, &lanes, sizeof lanes); }

// Floats from the beginning of a cache line on, not written yet: zeros would cost as much as what is packed.
struct Release {
  void operator()(float* floats) const { ::operator delete[](floats, std::align_val_t{64}); }
};
using Lines = std::unique_ptr<float[], Release>;
inline Lines lines(int64_t count) { return Lines(new (std::align_val_t{64}) float[std::max<int64_t>(count, 1)]); }

// The rows of one side in blocks, with zeros after the last row and after the last channel.
struct Packed {
  int64_t count, width, block;  // `width` is a multiple of kLanes
  Lines values;
  std::vector<float> squares, inverse;  // of each row, only for Ward
  std::vector<float> cap;               // the greatest score of each row, -infinity of one that is gone: `kOthers`

  Packed(int64_t count, int64_t channels, int64_t block)
      : count(count),
        width((channels + kLanes - 1) / kLanes * kLanes),
        block(block),
        values(lines(blocks() * block * width)) {
    if (count % block) std::fill_n(values.get() + count / block * block * width, block * width, 0.0f);
  }

  int64_t blocks() const { return (count + block - 1) / block; }
  int64_t parts() const { return (count + kLanes - 1) / kLanes; }  // of kLanes rows, which are written at once
  const float* at(int64_t number) const { return values.get() + number * block * width; }
};

// kLanes channels of a row lie together, then those of the next row of the block.
struct Sources : Packed {
  Sources(int64_t count, int64_t channels) : Packed(count, channels, kTile) {}

  // Writes `rows` rows of `width` floats.
  void put(int64_t first, int64_t rows, const float* from) {
    for (int64_t row = first; row < first + rows; ++row)
      for (int64_t k = 0; k < width; k += kLanes, from += kLanes)
        store_lanes(lanes_at(from), values.get() + row / kTile * kTile * width + k * kTile + row % kTile * kLanes);
  }
};

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define TOKENREDUCE_SHUFFLE
#endif
#endif

// a[0], b[0], a[1], b[1] ... of the first or of the second half of both.
template <int half, int... i>
Floats interleave(const Floats& a, const Floats& b, std::integer_sequence<int, i...>) {
#if defined(TOKENREDUCE_SHUFFLE)
  return __builtin_shufflevector(a, b, (half * kLanes / 2 + i / 2 + i % 2 * kLanes)...);
#else
  return Floats{(i % 2 ? b : a)[half * kLanes / 2 + i / 2]...};
#endif
}

// Rows become columns: interleaving halves once for each time that 2 goes into kLanes.
inline void transpose(Floats (&rows)[kLanes]) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes>();
#pragma GCC unroll 4
  for (int step = 1; step < kLanes; step *= 2) {
    Floats next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = interleave<0>(rows[i], rows[i + kLanes / 2], lanes);
      next[2 * i + 1] = interleave<1>(rows[i], rows[i + kLanes / 2], lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

// One channel of all rows of a block lies together, then the next channel.
struct Targets : Packed {
  Targets(int64_t count, int64_t channels) : Packed(count, channels, kPanel) {}

  float& channel(int64_t row, int64_t k) { return values.get()[row / kPanel * kPanel * width + k * kPanel + row % kPanel]; }

  // Writes `rows` of at most kLanes rows of `width` floats, from row `first` on, a multiple of kLanes.
  void put(int64_t first, int64_t rows, const float* from) {
    float* to = values.get() + first / kPanel * kPanel * width + first % kPanel;
    for (int64_t k = 0; k < width; k += kLanes) {
      Floats part[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) part[i] = i < rows ? lanes_at(from + i * width + k) : Floats{};
      transpose(part);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store_lanes(part[i], to + (k + i) * kPanel);
    }
  }
};

// Packs part `number` of the rows that `read(row, out)` writes down, after `change(rows)` has changed kLanes of them;
// `buffer` has zeros for kLanes rows of `width`.
template <typename Side, typename Read, typename Change>
void pack(Side& to, int64_t number, float* buffer, const Read& read, const Change& change) {
  const int64_t first = number * kLanes, rows = std::min<int64_t>(kLanes, to.count - first);
  for (int64_t i = 0; i < rows; ++i) read(first + i, buffer + i * to.width);
  change(buffer);
  to.put(first, rows, buffer);
}
template <typename Side, typename Read>
void pack(Side& to, int64_t number, float* buffer, const Read& read) {
  pack(to, number, buffer, read, [](float*) {});
}

// Gives kLanes rows of `channels` floats, `width` floats apart, the length 1. Zeros after the channels stay zeros, also
// where a row holds NaN.
inline void normalise(float* rows, int64_t width, int64_t channels) {
  Floats squares[kLanes], sum{};
  for (int r = 0; r < kLanes; ++r) {
    squares[r] = Floats{};
    for (int64_t k = 0; k < width; k += kLanes) {
      const Floats part = lanes_at(rows + r * width + k);
      squares[r] += part * part;
    }
  }
  transpose(squares);
  for (const Floats& of_rows : squares) sum += of_rows;
  for (int r = 0; r < kLanes; ++r) {
    const float length = inverse_length(sum[r]);
    for (int64_t k = 0; k < channels; ++k) rows[r * width + k] *= length;
  }
}

}  // namespace tokenreduce
