// The selective scan: its inputs, and one block of channels of one image as the forward and backward kernels walk it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "../tensors.h"
#include "scan_inputs.h"
#include "scan_math.h"

namespace tokenreduce {

struct ScanInputs {
  Tensor x, dt, A, B, C;
  std::optional<Tensor> D, z, decay_dt, dt_bias, scale;
  std::optional<Index> order;
  bool softplus, reverse;
  int64_t batch, length, channels, states;

  ScanInputs(const Tensor& given, const Tensor& given_dt, const Tensor& given_A, const Tensor& given_B,
             const Tensor& given_C, const std::optional<Tensor>& given_D, const std::optional<Tensor>& given_z,
             const std::optional<Tensor>& given_decay, const std::optional<Tensor>& given_bias,
             const std::optional<Tensor>& given_order, const std::optional<Tensor>& given_scale, bool softplus,
             bool reverse)
      : x(taken(given, "x", {-1, -1, -1}, given)), dt(taken(given_dt, "dt", sizes(x), given)),
        A(taken(given_A, "A", {x.size(2), -1}, given)),
        B(taken(given_B, "B", {x.size(0), x.size(1), A.size(1)}, given)),
        C(taken(given_C, "C", {x.size(0), x.size(1), A.size(1)}, given)), D(taken(given_D, "D", {x.size(2)}, given)),
        z(taken(given_z, "z", sizes(x), given)), decay_dt(taken(given_decay, "decay_dt", sizes(x), given)),
        dt_bias(taken(given_bias, "dt_bias", {x.size(2)}, given)),
        scale(taken(given_scale, "scale", {x.size(0), x.size(1)}, given)), softplus(softplus), reverse(reverse),
        batch(x.size(0)), length(x.size(1)), channels(x.size(2)), states(A.size(1)) {
    if (!given_order) return;
    order = check_index(*given_order, "order", batch, length, length);
    for (int64_t image = 0; image < batch; ++image) check_walk((*order)[image]);
  }

  static std::vector<int64_t> sizes(const Tensor& x) { return {x.size(0), x.size(1), x.size(2)}; }

 private:
  // Rows that no step visits would stay unwritten.
  void check_walk(const int64_t* walk) const {
    std::vector<bool> seen(length);
    for (int64_t t = 0; t < length; ++t) {
      if (seen[walk[t]]) fail("order holds ", walk[t], " twice; it must visit every row of an image once");
      seen[walk[t]] = true;
    }
  }
};

// The same as numbers in memory.
template <typename Real>
struct Scan {
  const ScanInputs& inputs;
  Rows3<Real> x, dt, B, C, z, decay_dt, scale;  // scale: one number a row
  const Real *D, *dt_bias;

  explicit Scan(const ScanInputs& inputs)
      : inputs(inputs), x(inputs.x), dt(inputs.dt), B(inputs.B), C(inputs.C), z(inputs.z), decay_dt(inputs.decay_dt),
        scale(inputs.scale), D(numbers(inputs.D)), dt_bias(numbers(inputs.dt_bias)) {}

  int64_t blocks() const { return (inputs.channels + Lanes<Real>::count - 1) / Lanes<Real>::count; }

 private:
  static const Real* numbers(const std::optional<Tensor>& tensor) {
    return tensor ? static_cast<const Real*>(tensor->const_data_ptr()) : nullptr;
  }
};

// So many channels of an image as one vector holds, from `first` on.
template <typename Real>
struct ScanBlock {
  using Lane = Values<Real>;

  const Scan<Real>& scan;
  int64_t image, first;
  int count;
  const int64_t* order;
  Lane skip{}, bias{};
  Lane* rate;  // A log2(e), one vector for each state

  ScanBlock(const Scan<Real>& scan, int64_t image, int64_t block, Lane* rate)
      : scan(scan), image(image), first(block * Lanes<Real>::count),
        count(static_cast<int>(std::min<int64_t>(Lanes<Real>::count, scan.inputs.channels - first))),
        order(scan.inputs.order ? (*scan.inputs.order)[image] : nullptr), rate(rate) {
    if (scan.D) skip = load(scan.D + first, count);
    if (scan.dt_bias) bias = load(scan.dt_bias + first, count);
    const Tensor& A = scan.inputs.A;
    const Real* from = static_cast<const Real*>(A.const_data_ptr()) + first * A.stride(0);
    for (int64_t n = 0; n < scan.inputs.states; ++n) {
      rate[n] = Lane{};
      for (int i = 0; i < count; ++i) rate[n][i] = from[i * A.stride(0) + n] * Real(kLog2e);
    }
  }

  // The row that step `t` of the walk visits.
  int64_t row(int64_t t) const {
    const int64_t at = scan.inputs.reverse ? scan.inputs.length - 1 - t : t;
    return order ? order[at] : at;
  }

  Lane of(const Rows3<Real>& rows, int64_t row) const { return load(rows.at(image, row) + first, count); }
  Lane raw_step(int64_t row) const { return of(scan.dt, row) + bias; }
  Real scale(int64_t row) const { return scan.scale ? *scan.scale.at(image, row) : Real(1); }
  Lane step(const Lane& raw, int64_t row) const {
    return (scan.inputs.softplus ? softplus<Real>(raw) : raw) * scale(row);
  }
  // The derivative of the step.
  Lane slope(const Lane& raw, int64_t row) const {
    const Lane one = Lane{} + Real(1);
    return (!scan.inputs.softplus ? one : raw > Real(20) ? one : sigmoid<Real>(raw)) * scale(row);
  }
  Lane decay(const Lane& step, int64_t row) const { return scan.decay_dt ? of(scan.decay_dt, row) : step; }
};

}  // namespace tokenreduce
