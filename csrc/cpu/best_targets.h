// For every source its best target, from products of blocks that never leave the registers: the matrix of all products
// is never stored.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cstdint>
#include <cstring>

#include "../arithmetic.h"
#include "packed.h"

namespace tokenreduce {

constexpr int kGroup = 8;  // tiles of sources that share a panel while it is in the cache

// By product; by Ward's cost of targets; by Ward's cost of all others, where sources and targets are the same rows.
enum class Score { kProduct, kWard, kOthers };

// e to the power of values of at most 0, to 2 units in the last place; 0 below the smallest normal number.
inline Floats exponential(Floats x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to a whole number
  const Floats whole = (x * 1.44269504f + kRound) - kRound;
  const Floats rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Floats sum = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  sum = sum * rest + 8.3334519073e-3f;
  sum = sum * rest + 4.1665795894e-2f;
  sum = sum * rest + 1.6666665459e-1f;
  sum = sum * rest + 0.5f;
  sum = sum * rest * rest + rest + 1.0f;
  const Ints power = __builtin_convertvector(x < -87.0f ? Floats{} : whole, Ints);
  const Ints bits = (power + 127) << 23;
  return x < -87.0f ? Floats{} : sum * reinterpret_cast<Floats>(bits);
}

struct Running {
  Floats score[2];
  Ints index[2];
};

// The products of a tile with the first `halves` halves of a panel.
template <int halves>
void products(const float* sources, const float* targets, int64_t width, Floats (&sums)[kTile][2]) {
  Floats found[kTile][halves] = {};  // `sums` could be what is read, and would be written in every step
  for (int64_t k = 0; k < width; k += kLanes, sources += kTile * kLanes)
    for (int i = 0; i < kLanes; ++i, targets += kPanel) {
      Floats panel[halves];
      for (int h = 0; h < halves; ++h) panel[h] = lanes_at(targets + h * kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < kTile; ++r)
#pragma GCC unroll 2
        for (int h = 0; h < halves; ++h) found[r][h] += sources[r * kLanes + i] * panel[h];
    }
#pragma GCC unroll 12
  for (int r = 0; r < kTile; ++r)
#pragma GCC unroll 2
    for (int h = 0; h < halves; ++h) sums[r][h] = found[r][h];
}

// Ward's cost of a row and of the targets in one half of a panel, negated; -infinity for the row itself and for targets
// that are none. A cost that is no number is the greatest: it must not win, and must be more than none.
inline Floats cost_of_others(
    const Floats& product, int64_t row, const Floats& squares, const Floats& inverse, const Targets& b, int64_t first,
    const Ints& index) {
  const Floats none{}, cap = lanes_at(b.cap.data() + first);
  Floats found = -ward_cost<Floats>(
      product, squares, lanes_at(b.squares.data() + first), inverse, lanes_at(b.inverse.data() + first));
  found = found >= -FLT_MAX ? found : none - FLT_MAX;
  found = found > cap ? cap : found;
  return index == static_cast<int32_t>(row) ? none - INFINITY : found;
}

// Takes the scores of one half of a panel into the running best; `open` if they are the first.
inline void take(const Floats& found, const Ints& index, int half, bool open, Running& best) {
  const Floats now = best.score[half];
  const Ints better = open ? Ints{} - 1 : beats(found, now);
  best.score[half] = better ? found : now;
  best.index[half] = better ? index : best.index[half];
}

inline Ints indices_from(int64_t first) {
  Ints index;
  for (int lane = 0; lane < kLanes; ++lane) index[lane] = static_cast<int32_t>(first + lane);
  return index;
}

// Takes the products of one tile of sources with one panel of targets into the running best.
template <Score score>
void take(
    const Sources& a, int64_t tile, const Targets& b, int64_t panel, const Floats (&sums)[kTile][2], Running* best) {
  for (int h = 0; h < 2; ++h) {
    const int64_t first = panel * kPanel + h * kLanes;
    const Ints index = indices_from(first), behind = index >= static_cast<int32_t>(b.count);
    for (int r = 0; r < kTile; ++r) {
      const int64_t row = tile * kTile + r;
      const Floats none{};
      Floats found = sums[r][h];
      if constexpr (score == Score::kWard) {
        const Floats squares = lanes_at(b.squares.data() + first), inverse = lanes_at(b.inverse.data() + first);
        found = -ward_cost<Floats>(found, a.squares[row] + none, squares, a.inverse[row] + none, inverse);
      }
      if constexpr (score == Score::kOthers)
        found = cost_of_others(found, row, a.squares[row] + none, a.inverse[row] + none, b, first, index);
      else found = behind ? none - INFINITY : found;
      take(found, index, h, !panel, best[r]);
    }
  }
}

// Vectors of floats and of integers of the same number of lanes.
template <int lanes>
struct Vector {
  typedef float F __attribute__((vector_size(lanes * 4), may_alias));
  typedef int32_t I __attribute__((vector_size(lanes * 4), may_alias));
};

// The best of 2 * `lanes` scores, the lowest index of equals: halves are compared until one is left.
template <int lanes>
void reduce(float* scores, int32_t* indices) {
  auto* score = reinterpret_cast<typename Vector<lanes>::F*>(scores);
  auto* index = reinterpret_cast<typename Vector<lanes>::I*>(indices);
  const auto other = comes_first(score[1], index[1], score[0], index[0]);
  score[0] = other ? score[1] : score[0];
  index[0] = other ? index[1] : index[0];
  if constexpr (lanes > 2) reduce<lanes / 2>(scores, indices);
}

inline void reduce(const Running& best, float* score, int32_t* index) {
  // The halves are read as vectors, down to the last two.
  alignas(sizeof(Floats)) float scores[kPanel];
  alignas(sizeof(Ints)) int32_t indices[kPanel];
  std::memcpy(scores, best.score, sizeof scores);
  std::memcpy(indices, best.index, sizeof indices);
  reduce<kLanes>(scores, indices);
  const bool other = comes_first(scores[1], indices[1], scores[0], indices[0]);
  *score = scores[other], *index = indices[other];
}

// Best score and target of the sources in tiles `first` to `last`, at most kGroup.
template <Score score>
void best_targets(const Sources& a, const Targets& b, int64_t first, int64_t last, float* scores, int32_t* matches) {
  Running best[kGroup * kTile];
  Floats sums[kTile][2] = {};
  for (int64_t panel = 0; panel < b.blocks(); ++panel)
    for (int64_t tile = first; tile < last; ++tile) {
      if (b.count - panel * kPanel > kLanes) products<2>(a.at(tile), b.at(panel), a.width, sums);
      else products<1>(a.at(tile), b.at(panel), a.width, sums);
      take<score>(a, tile, b, panel, sums, best + (tile - first) * kTile);
    }
  const int64_t end = std::min(last * kTile, a.count);
  for (int64_t row = first * kTile; row < end; ++row) reduce(best[row - first * kTile], scores + row, matches + row);
}

}  // namespace tokenreduce
