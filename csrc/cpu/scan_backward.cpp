// Gradients of the selective scan on the CPU: states are computed again, one block of channels at a time. All sums run
// in one order, however threads divide the work.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "../tensors.h"
#include "images.h"
#include "scan.h"
#include "scan_math.h"
#include "scan_sums.h"

namespace tokenreduce {

namespace {

constexpr int64_t kTogether = 64;  // channels whose gradients of B and C are summed by one thread

// Gradients in the type that is computed in; those of B and C as one sum for each group of channels.
template <typename Real>
struct Gradients {
  Real *x, *dt, *z = nullptr, *decay_dt = nullptr;
  int64_t groups, width;     // sums of a row: those of B, of C, then zeros
  std::vector<Real> shared;  // (B, groups, L, width)
  PerImage<Real> fixed;      // those of A, D and dt_bias

  explicit Gradients(const ScanInputs& inputs)
      : groups((inputs.channels + kTogether - 1) / kTogether),
        width((2 * inputs.states + Lanes<Real>::count - 1) / Lanes<Real>::count * Lanes<Real>::count),
        shared(inputs.batch * groups * inputs.length * width),
        fixed(inputs.batch, inputs.states + 2, inputs.channels) {}
};

// What is known of each step of a block, and its sums.
template <typename Real>
struct Scratch {
  using Lane = Values<Real>;

  Vectors<Real> memory;
  Lane *states, *kept, *step, *slope, *arriving, *gated, *y, *rate, *carry, *rates, *parts;

  Scratch(int64_t length, int64_t count, int64_t width)
      : memory((2 * length + 1) * count + 5 * length + 3 * count + width), states(memory.at),
        kept(states + (length + 1) * count), step(kept + length * count), slope(step + length),
        arriving(slope + length), gated(arriving + length), y(gated + length), rate(y + length), carry(rate + count),
        rates(carry + count), parts(rates + count) {}
};

template <typename Real>
class Backward {
 public:
  using Lane = Values<Real>;

  Backward(const Scan<Real>& scan, const Rows3<Real>& grad, Gradients<Real>& to)
      : scan_(scan), grad_(grad), to_(to), length_(scan.inputs.length), states_(scan.inputs.states),
        scratch_(length_, states_, to.width) {}

  void run(int64_t image, int64_t group) {
    const int64_t each = kTogether / Lanes<Real>::count, first = group * each;
    for (int64_t block = first; block < std::min(first + each, scan_.blocks()); ++block) {
      const ScanBlock<Real> of(scan_, image, block, scratch_.rate);
      prepare(of);
      forwards(of);
      backwards(of, to_.shared.data() + (image * to_.groups + group) * length_ * to_.width);
    }
  }

 private:
  const Scan<Real>& scan_;
  const Rows3<Real>& grad_;
  Gradients<Real>& to_;
  int64_t length_, states_;
  Scratch<Real> scratch_;

  // Time steps, and what arrives at the ungated outputs.
  void prepare(const ScanBlock<Real>& block) {
    for (int64_t t = 0; t < length_; ++t) {
      const int64_t row = block.row(t);
      const Lane raw = block.raw_step(row), grad = block.of(grad_, row);
      scratch_.step[t] = block.step(raw, row), scratch_.slope[t] = block.slope(raw, row);
      scratch_.arriving[t] = grad;
      if (!scan_.z) continue;
      const Lane gate = block.of(scan_.z, row), part = sigmoid<Real>(gate);
      scratch_.arriving[t] = grad * gate * part;
      scratch_.gated[t] = grad * silu_slope<Real>(gate, part);
    }
  }

  void forwards(const ScanBlock<Real>& block) {
    std::fill_n(scratch_.states, states_, Lane{});
    for (int64_t t = 0; t < length_; ++t) {
      const int64_t row = block.row(t);
      const Lane value = block.of(scan_.x, row), step = scratch_.step[t], decay = block.decay(step, row);
      const Lane input = step * value;
      const Real *write = scan_.B.at(block.image, row), *read = scan_.C.at(block.image, row);
      const Lane* before = scratch_.states + t * states_;
      Lane *after = scratch_.states + (t + 1) * states_, *kept = scratch_.kept + t * states_;
      Lane y = block.skip * value;
      for (int64_t n = 0; n < states_; ++n) {
        kept[n] = exp2_of(decay * block.rate[n]);
        after[n] = kept[n] * before[n] + input * write[n];
        y += after[n] * read[n];
      }
      scratch_.y[t] = y;
    }
  }

  void backwards(const ScanBlock<Real>& block, Real* shared) {
    std::fill_n(scratch_.carry, states_, Lane{});
    std::fill_n(scratch_.rates, states_, Lane{});
    std::fill_n(scratch_.parts, to_.width, Lane{});
    Lane skip{}, bias{};
    for (int64_t t = length_; t-- > 0;) {
      const int64_t row = block.row(t);
      const Lane value = block.of(scan_.x, row), step = scratch_.step[t], arriving = scratch_.arriving[t];
      skip += arriving * value;
      const auto [input, decay] = back(block, t, row, step * value);
      add_sums(shared + row * to_.width);
      put(to_.x, block, row, arriving * block.skip + input * step);
      Lane raw = input * value;
      if (scan_.decay_dt) put(to_.decay_dt, block, row, decay); else raw += decay;
      raw *= scratch_.slope[t];
      bias += raw;
      put(to_.dt, block, row, raw);
      if (scan_.z) put(to_.z, block, row, scratch_.gated[t] * scratch_.y[t]);
    }
    const auto fixed = [&](int64_t row) { return to_.fixed.at(block.image, row) + block.first; };
    for (int64_t n = 0; n < states_; ++n) store(scratch_.rates[n], fixed(n), block.count);
    store(skip, fixed(states_), block.count);
    store(bias, fixed(states_ + 1), block.count);
  }

  // One step back through all states: the gradients of `step x` and of the decay.
  std::pair<Lane, Lane> back(const ScanBlock<Real>& block, int64_t t, int64_t row, const Lane& input) {
    const Real *write = scan_.B.at(block.image, row), *read = scan_.C.at(block.image, row);
    const Lane *before = scratch_.states + t * states_, *after = before + states_, *rate = block.rate;
    const Lane* kept = scratch_.kept + t * states_;
    const Lane arriving = scratch_.arriving[t], decay = block.decay(scratch_.step[t], row);
    Lane *carry = scratch_.carry, *rates = scratch_.rates, *parts = scratch_.parts;
    Lane of_input{}, of_decay{};
    for (int64_t n = 0; n < states_; ++n) {
      Lane of_state = carry[n] + arriving * read[n];
      parts[n] = of_state * input;
      parts[states_ + n] = arriving * after[n];
      of_input += of_state * write[n];
      of_state *= kept[n];
      carry[n] = of_state;
      of_state *= before[n];
      of_decay += of_state * rate[n];
      rates[n] += of_state * decay;
    }
    return {of_input, of_decay * Real(1 / kLog2e)};
  }

  // Adds the sums over the lanes of all parts to `row`.
  void add_sums(Real* row) {
    constexpr int count = Lanes<Real>::count;
    for (int64_t i = 0; i < to_.width; i += count)
      store(load(row + i, count) + sums_of_lanes(scratch_.parts + i), row + i, count);
  }

  void put(Real* to, const ScanBlock<Real>& block, int64_t row, const Lane& lanes) {
    store(lanes, to + (block.image * length_ + row) * scan_.inputs.channels + block.first, block.count);
  }
};

// Sums over groups of channels: the gradients of B (`part` 0) or C (1).
template <typename Real>
Tensor sum_groups(const ScanInputs& inputs, const Gradients<Real>& from, int part) {
  const Tensor out = uninitialised(inputs.x, {inputs.batch, inputs.length, inputs.states});
  Real* to = written<Real>(out);
  parallel_for(0, inputs.batch * inputs.length, grain(from.groups * inputs.states), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / inputs.length, row = i % inputs.length;
      const Real* first = from.shared.data() + (image * from.groups * inputs.length + row) * from.width;
      for (int64_t n = 0; n < inputs.states; ++n) {
        Real sum = 0;
        for (int64_t g = 0; g < from.groups; ++g)
          sum += first[g * inputs.length * from.width + part * inputs.states + n];
        to[i * inputs.states + n] = sum;
      }
    }
  });
  return out;
}

using Nine = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <typename Real>
std::vector<Tensor> gradients_of(const ScanInputs& inputs, const Tensor& grad) {
  Gradients<Real> to(inputs);
  // An empty tensor each for what was not given: results of an operator must not share memory.
  const auto none = [&] { return uninitialised(inputs.x, {0}); };
  const auto rows = [&](bool wanted) { return wanted ? uninitialised(inputs.x, ScanInputs::sizes(inputs.x)) : none(); };
  const Tensor x = rows(true), dt = rows(true);
  const Tensor z = rows(inputs.z.has_value()), decay = rows(inputs.decay_dt.has_value());
  to.x = written<Real>(x), to.dt = written<Real>(dt), to.z = written<Real>(z), to.decay_dt = written<Real>(decay);
  const Scan<Real> scan(inputs);
  const Rows3<Real> arriving(grad);
  const int64_t work = 64 * inputs.length * inputs.states;
  parallel_for(0, inputs.batch * to.groups, grain(work), [&](int64_t begin, int64_t end) {
    Backward<Real> backward(scan, arriving, to);
    for (int64_t i = begin; i < end; ++i) backward.run(i / to.groups, i % to.groups);
  });
  const auto one = [&](bool wanted, int64_t number) {
    return wanted ? to.fixed.total(inputs.x, inputs.states + number) : none();
  };
  return {x, dt, to.fixed.total(inputs.x, 0, inputs.states), sum_groups(inputs, to, 0), sum_groups(inputs, to, 1),
          one(inputs.D.has_value(), 0), z, decay, one(inputs.dt_bias.has_value(), 1)};
}

}  // namespace

Nine selective_scan_backward(
    const Tensor& grad, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
    const std::optional<Tensor>& D, const std::optional<Tensor>& z, const std::optional<Tensor>& decay_dt,
    const std::optional<Tensor>& dt_bias, const std::optional<Tensor>& order, const std::optional<Tensor>& scale,
    bool softplus, bool reverse) {
  const ScanInputs inputs(x, dt, A, B, C, D, z, decay_dt, dt_bias, order, scale, softplus, reverse);
  const Tensor arriving = taken(grad, "grad", ScanInputs::sizes(x), x);
  std::vector<Tensor> found;
  with_real(x, [&](auto type) { found = gradients_of<decltype(type)>(inputs, arriving); });
  const auto as = [&](int number, const Tensor& given) { return converted(found[number], given.scalar_type()); };
  return {as(0, x), as(1, dt), as(2, A), as(3, B), as(4, C), as(5, D.value_or(x)), as(6, z.value_or(x)),
          as(7, decay_dt.value_or(x)), as(8, dt_bias.value_or(x))};
}

STABLE_TORCH_LIBRARY_IMPL(tokenreduce_kernels, CPU, m) {
  m.impl("selective_scan_backward", TORCH_BOX(&selective_scan_backward));
}

}  // namespace tokenreduce
