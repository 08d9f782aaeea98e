// The short convolution of Mamba over tokens, and SiLU, on the CPU: each tap reads the row that an index names.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>

#include "../tensors.h"
#include "images.h"
#include "scan_inputs.h"
#include "scan_math.h"
#include "scan_sums.h"

namespace tokenreduce {

namespace {

constexpr int64_t kMostTaps = 8;
constexpr int64_t kTogether = 64;  // channels whose gradients one thread computes

struct ConvInputs {
  Tensor x, weight;
  std::optional<Tensor> bias, index;
  const int64_t* taps = nullptr;
  bool reverse;
  int64_t batch, length, channels, width;

  ConvInputs(const Tensor& given, const Tensor& given_weight, const std::optional<Tensor>& given_bias,
             const std::optional<Tensor>& given_taps, bool reverse)
      : x(taken(given, "x", {-1, -1, -1}, given)), weight(taken(given_weight, "weight", {x.size(2), -1}, given)),
        bias(taken(given_bias, "bias", {x.size(2)}, given)), index(in_a_row(given_taps)), reverse(reverse),
        batch(x.size(0)), length(x.size(1)), channels(x.size(2)), width(weight.size(1)) {
    if (width < 1 || width > kMostTaps) fail("weight has ", width, " columns; it must have 1 to ", kMostTaps);
    if (!index) return;
    check(*index, "taps", {batch, length, width});
    check_type(*index, "taps", ScalarType::Long, "int64");
    taps = static_cast<const int64_t*>(index->const_data_ptr());
    for (int64_t i = 0; i < batch * length * width; ++i)
      if (taps[i] < -1 || taps[i] >= length)
        fail("taps holds ", taps[i], "; its entries must lie in [-1, ", length, ")");
  }
};

// The taps of one row that read something, and where.
template <typename Real>
struct Taps {
  int count = 0;
  int column[kMostTaps];
  int64_t row[kMostTaps];
  const Real* from[kMostTaps];

  Taps(const ConvInputs& inputs, const Rows3<Real>& x, int64_t image, int64_t i) {
    for (int64_t k = 0; k < inputs.width; ++k) {
      const int64_t back = inputs.width - 1 - k;
      const int64_t read = inputs.taps      ? inputs.taps[(image * inputs.length + i) * inputs.width + k]
                           : inputs.reverse ? i + back
                                            : i - back;
      if (read < 0 || read >= inputs.length) continue;
      column[count] = static_cast<int>(k), row[count] = read, from[count++] = x.at(image, read);
    }
  }
};

// The filters as vectors of channels.
template <typename Real>
class Conv {
 public:
  using Lane = Values<Real>;

  const ConvInputs& inputs;
  const Rows3<Real> x;
  const int64_t blocks;

  explicit Conv(const ConvInputs& inputs)
      : inputs(inputs), x(inputs.x), blocks((inputs.channels + Lanes<Real>::count - 1) / Lanes<Real>::count),
        memory(blocks * (inputs.width + 1)) {
    const Real* bias = inputs.bias ? static_cast<const Real*>(inputs.bias->const_data_ptr()) : nullptr;
    const Real* weight = static_cast<const Real*>(inputs.weight.const_data_ptr());
    std::fill_n(memory.at, blocks * (inputs.width + 1), Lane{});
    for (int64_t e = 0; e < inputs.channels; ++e) {
      const int64_t block = e / Lanes<Real>::count, lane = e % Lanes<Real>::count;
      if (bias) filters(block)[-1][lane] = bias[e];
      for (int64_t k = 0; k < inputs.width; ++k) filters(block)[k][lane] = weight[e * inputs.weight.stride(0) + k];
    }
  }

  Lane* filters(int64_t block) const { return memory.at + block * (inputs.width + 1) + 1; }
  int count(int64_t block) const {
    return static_cast<int>(std::min<int64_t>(Lanes<Real>::count, inputs.channels - block * Lanes<Real>::count));
  }

  // What the taps read, before SiLU.
  Lane sum(const Taps<Real>& taps, int64_t block) const {
    return usual(taps, block) ? sum_of<4>(taps, block) : sum_of<0>(taps, block);
  }

  void forward(Real* out) const {
    const int64_t rows = inputs.batch * inputs.length, work = 4 * inputs.channels;
    torch::stable::parallel_for(0, rows, grain(work), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / inputs.length;
        const Taps<Real> taps(inputs, x, image, i % inputs.length);
        Real* to = out + i * inputs.channels;
        for (int64_t block = 0; block < blocks; ++block, to += Lanes<Real>::count) {
          const Lane found = sum(taps, block);
          store<Real>(found * sigmoid<Real>(found), to, count(block));
        }
      }
    });
  }

  // Gradients of one block of channels of an image; `to` has rows of x, `fixed` those of the filters and of the bias.
  void backward(const Rows3<Real>& grad, int64_t image, int64_t block, Real* to, PerImage<Real>& fixed) const {
    Lane sums[kMostTaps + 1] = {};
    const int lanes = count(block);
    const int64_t first = block * Lanes<Real>::count;
    to += image * inputs.length * inputs.channels + first;
    for (int64_t row = 0; row < inputs.length; ++row) store(Lane{}, to + row * inputs.channels, lanes);
    for (int64_t row = 0; row < inputs.length; ++row) {
      const Taps<Real> taps(inputs, x, image, row);
      const Lane found = sum(taps, block), part = sigmoid<Real>(found);
      const Lane arriving = load(grad.at(image, row) + first, lanes) * silu_slope<Real>(found, part);
      sums[inputs.width] += arriving;
      if (usual(taps, block)) spread<4>(taps, block, arriving, to, sums);
      else spread<0>(taps, block, arriving, to, sums);
    }
    for (int64_t k = 0; k <= inputs.width; ++k) store(sums[k], fixed.at(image, k) + first, lanes);
  }

 private:
  Vectors<Real> memory;  // for each block of channels the bias, then the columns of its filters

  // Four taps and whole vectors, for which code without branches stands.
  bool usual(const Taps<Real>& taps, int64_t block) const {
    return taps.count == 4 && count(block) == Lanes<Real>::count;
  }

  template <int known>
  Lane sum_of(const Taps<Real>& taps, int64_t block) const {
    const Lane* filter = filters(block);
    const int number = known ? known : taps.count, lanes = known ? Lanes<Real>::count : count(block);
    Lane found = filter[-1];
#pragma GCC unroll 4
    for (int i = 0; i < number; ++i)
      found += load(taps.from[i] + block * Lanes<Real>::count, lanes) * filter[taps.column[i]];
    return found;
  }

  // What arrives at a sum goes on to the rows and filters that it was made of.
  template <int known>
  void spread(const Taps<Real>& taps, int64_t block, const Lane& arriving, Real* to, Lane* sums) const {
    const Lane* filter = filters(block);
    const int number = known ? known : taps.count, lanes = known ? Lanes<Real>::count : count(block);
#pragma GCC unroll 4
    for (int i = 0; i < number; ++i) {
      Real* row = to + taps.row[i] * inputs.channels;
      sums[taps.column[i]] += arriving * load(taps.from[i] + block * Lanes<Real>::count, lanes);
      store<Real>(load(row, lanes) + arriving * filter[taps.column[i]], row, lanes);
    }
  }
};

}  // namespace

Tensor causal_conv(
    const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const std::optional<Tensor>& taps,
    bool reverse) {
  const ConvInputs inputs(x, weight, bias, taps, reverse);
  const Tensor out = uninitialised(inputs.x, {inputs.batch, inputs.length, inputs.channels});
  with_real(x, [&](auto type) {
    using Real = decltype(type);
    Conv<Real>(inputs).forward(written<Real>(out));
  });
  return converted(out, x.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> causal_conv_backward(
    const Tensor& given, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& taps, bool reverse) {
  const ConvInputs inputs(x, weight, bias, taps, reverse);
  const Tensor grad = taken(given, "grad", {inputs.batch, inputs.length, inputs.channels}, x);
  const Tensor out = uninitialised(inputs.x, {inputs.batch, inputs.length, inputs.channels});
  Tensor of_weight, of_bias = uninitialised(x, {0});
  with_real(x, [&](auto type) {
    using Real = decltype(type);
    const Conv<Real> conv(inputs);
    PerImage<Real> fixed(inputs.batch, inputs.width + 1, inputs.channels);
    const int64_t each = kTogether / Lanes<Real>::count, groups = (conv.blocks + each - 1) / each;
    const int64_t work = 16 * inputs.length * kTogether;
    parallel_for(0, inputs.batch * groups, grain(work), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t block = i % groups * each; block < std::min(conv.blocks, (i % groups + 1) * each); ++block)
          conv.backward(Rows3<Real>(grad), i / groups, block, written<Real>(out), fixed);
    });
    of_weight = converted(fixed.total(inputs.x, 0, inputs.width), weight.scalar_type());
    if (bias) of_bias = converted(fixed.total(inputs.x, inputs.width), bias->scalar_type());
  });
  return {converted(out, x.scalar_type()), of_weight, of_bias};
}

STABLE_TORCH_LIBRARY_IMPL(tokenreduce_kernels, CPU, m) {
  m.impl("causal_conv", TORCH_BOX(&causal_conv));
  m.impl("causal_conv_backward", TORCH_BOX(&causal_conv_backward));
}

}  // namespace tokenreduce
