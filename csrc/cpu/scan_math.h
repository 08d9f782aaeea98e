// Vectors of channels in fp32 or fp64, and what the scan and its convolution compute on them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#include "packed.h"

namespace tokenreduce {

template <typename Real>
struct Lanes;
template <>
struct Lanes<float> {
  static constexpr int count = kLanes;
  typedef Floats Values;
};
template <>
struct Lanes<double> {
  static constexpr int count = kLanes / 2;
  typedef double Values __attribute__((vector_size(kLanes * 4)));
};
template <typename Real>
using Values = typename Lanes<Real>::Values;

// The first `count` lanes, zeros in the others.
template <typename Real>
Values<Real> load(const Real* from, int count) {
  Values<Real> lanes{};
  if (count == Lanes<Real>::count) std::memcpy(&lanes, from, sizeof lanes);
  else for (int i = 0; i < count; ++i) lanes[i] = from[i];
  return lanes;
}
template <typename Real>
void store(const Values<Real>& lanes, Real* to, int count) {
  if (count == Lanes<Real>::count) std::memcpy(to, &lanes, sizeof lanes);
  else for (int i = 0; i < count; ++i) to[i] = lanes[i];
}

// Vectors from the beginning of a cache line on, not written yet.
template <typename Real>
struct Vectors {
  Lines memory;
  Values<Real>* at;

  explicit Vectors(int64_t count)
      : memory(lines(count * kLanes)), at(reinterpret_cast<Values<Real>*>(memory.get())) {}
};

// Of two numbers; the second where it is NaN. In one instruction, which GCC does not find for vectors.
inline Floats larger(const Floats& a, const Floats& b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}
inline Floats smaller(const Floats& a, const Floats& b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#elif defined(__AVX__)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

// 2 to the power of x to 2 units in the last place, and nearer to 1 the nearer x is to 0: products of many decays stay
// as good. At least 2^-126; infinity from 2^128 on; a NaN stays.
inline Floats exp2_of(Floats x) {
  x = larger(Floats{} - 126.0f, x);
#if defined(__AVX512F__)
  const Floats whole = _mm512_roundscale_ps(x, 0);
#else
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to a whole number
  x = smaller(Floats{} + 128.0f, x);
  const Floats shifted = x + kRound, whole = shifted - kRound;
#endif
  const Floats rest = x - whole;
  Floats sum = rest * 0.001326472423f + 0.009671513244f;
  sum = sum * rest + 0.05550733757f;
  sum = sum * rest + 0.2402224207f;
  sum = sum * rest + 0.6931469776f;
  sum = sum * rest + 1.0f;
#if defined(__AVX512F__)
  return _mm512_scalef_ps(sum, whole);
#else
  return reinterpret_cast<Floats>(reinterpret_cast<Ints>(sum) + (reinterpret_cast<Ints>(shifted) << 23));
#endif
}

// log(1 + x) of x in [0, 1], to 3 units in the last place also near 0: twice the series of atanh(x / (2 + x)).
inline Floats log1p_of(Floats x) {
  const Floats ratio = x / (x + 2.0f), square = ratio * ratio;
  Floats sum = square * 0.1400600373f + 0.1400090051f;
  sum = sum * square + 0.2001076376f;
  sum = sum * square + 0.3333320814f;
  return 2.0f * (ratio + ratio * square * sum);
}

// fp64 is for checking, not for speed.
inline Values<double> exp2_of(Values<double> x) {
  for (int i = 0; i < Lanes<double>::count; ++i) x[i] = std::exp2(x[i]);
  return x;
}
inline Values<double> log1p_of(Values<double> x) {
  for (int i = 0; i < Lanes<double>::count; ++i) x[i] = std::log1p(x[i]);
  return x;
}

constexpr double kLog2e = 1.4426950408889634;

template <typename Real>
Values<Real> sigmoid(const Values<Real>& x) {
  return Real(1) / (Real(1) + exp2_of(x * Real(-kLog2e)));
}

// The derivative of `x sigmoid(x)`, of x and its sigmoid.
template <typename Real>
Values<Real> silu_slope(const Values<Real>& x, const Values<Real>& part) {
  return part + x * part * (Real(1) - part);
}

// As in PyTorch: above 20 it is x.
template <typename Real>
Values<Real> softplus(const Values<Real>& x) {
  const Values<Real> none{}, size = x < Real(0) ? -x : x;
  const Values<Real> found = (x > Real(0) ? x : none) + log1p_of(exp2_of(size * Real(-kLog2e)));
  return x > Real(20) ? x : found;
}

// In lane i the sum over the lanes of rows[i], of as many rows as there are lanes: adding two halves, interleaved, once
// for each time that 2 goes into kLanes.
inline Floats sums_of_lanes(const Floats* rows) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes>();
  Floats sums[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) sums[i] = rows[i];
#pragma GCC unroll 4
  for (int half = kLanes / 2; half; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i)
      sums[i] = interleave<0>(sums[i], sums[i + half], lanes) + interleave<1>(sums[i], sums[i + half], lanes);
  return sums[0];
}
inline Values<double> sums_of_lanes(const Values<double>* rows) {
  Values<double> sums{};
  for (int i = 0; i < Lanes<double>::count; ++i)
    for (int k = 0; k < Lanes<double>::count; ++k) sums[i] += rows[i][k];
  return sums;
}

}  // namespace tokenreduce
