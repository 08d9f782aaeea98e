// The selective scan of Mamba on the CPU: time step, recurrence, skip and gate of one block of channels in one pass.
#include <algorithm>
#include <cstdint>
#include <optional>

#include "../tensors.h"
#include "images.h"
#include "scan.h"

namespace tokenreduce {

namespace {

// What some steps need beside the state: worked out together, for each waits long for its exponentials and quotients.
template <typename Real>
struct Ahead {
  using Lane = Values<Real>;
  static constexpr int64_t kMost = 32;

  int64_t row[kMost];
  Lane input[kMost], decay[kMost], skipped[kMost], gate[kMost];

  void look(const ScanBlock<Real>& block, int64_t first, int64_t count) {
    const Scan<Real>& scan = block.scan;
    for (int64_t i = 0; i < count; ++i) {
      row[i] = block.row(first + i);
      const Lane value = block.of(scan.x, row[i]), step = block.step(block.raw_step(row[i]), row[i]);
      input[i] = step * value, decay[i] = block.decay(step, row[i]), skipped[i] = block.skip * value;
      gate[i] = Lane{} + Real(1);
      if (!scan.z) continue;
      gate[i] = block.of(scan.z, row[i]);
      gate[i] *= sigmoid<Real>(gate[i]);
    }
  }
};

// Walks a block through the rows of its image. So many `states` stay in registers; 0 is any number, in memory.
template <int states, typename Real>
void walk(const ScanBlock<Real>& block, Values<Real>* memory, Real* out) {
  using Lane = Values<Real>;
  const Scan<Real>& scan = block.scan;
  const int64_t length = scan.inputs.length, width = states ? states : scan.inputs.states;
  Lane registers[states ? states : 1], *state = states ? registers : memory;
  std::fill_n(state, width, Lane{});
  Ahead<Real> ahead;
  for (int64_t first = 0; first < length; first += ahead.kMost) {
    const int64_t count = std::min(ahead.kMost, length - first);
    ahead.look(block, first, count);
    for (int64_t i = 0; i < count; ++i) {
      const Lane input = ahead.input[i], decay = ahead.decay[i];
      const Real *write = scan.B.at(block.image, ahead.row[i]), *read = scan.C.at(block.image, ahead.row[i]);
      Lane y = ahead.skipped[i];
#pragma GCC unroll 16
      for (int64_t n = 0; n < width; ++n) {
        state[n] = exp2_of(decay * block.rate[n]) * state[n] + input * write[n];
        y += state[n] * read[n];
      }
      store(y * ahead.gate[i], out + ahead.row[i] * scan.inputs.channels + block.first, block.count);
    }
  }
}

template <typename Real>
void scan_all(const ScanInputs& inputs, Real* out) {
  const Scan<Real> scan(inputs);
  const int64_t blocks = scan.blocks(), image = inputs.length * inputs.channels;
  parallel_for(0, inputs.batch * blocks, grain(16 * inputs.length * inputs.states), [&](int64_t begin, int64_t end) {
    Vectors<Real> memory(2 * inputs.states);
    for (int64_t i = begin; i < end; ++i) {
      const ScanBlock<Real> block(scan, i / blocks, i % blocks, memory.at);
      Real* to = out + i / blocks * image;
      if (inputs.states == 16) walk<16>(block, memory.at, to);
      else if (inputs.states == 8) walk<8>(block, memory.at, to);
      else walk<0>(block, memory.at + inputs.states, to);
    }
  });
}

}  // namespace

Tensor selective_scan(
    const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
    const std::optional<Tensor>& D, const std::optional<Tensor>& z, const std::optional<Tensor>& decay_dt,
    const std::optional<Tensor>& dt_bias, const std::optional<Tensor>& order, const std::optional<Tensor>& scale,
    bool softplus, bool reverse) {
  const ScanInputs inputs(x, dt, A, B, C, D, z, decay_dt, dt_bias, order, scale, softplus, reverse);
  const Tensor out = uninitialised(inputs.x, ScanInputs::sizes(x));
  with_real(x, [&](auto type) { scan_all(inputs, written<decltype(type)>(out)); });
  return converted(out, x.scalar_type());
}

STABLE_TORCH_LIBRARY_IMPL(tokenreduce_kernels, CPU, m) { m.impl("selective_scan", TORCH_BOX(&selective_scan)); }

}  // namespace tokenreduce
