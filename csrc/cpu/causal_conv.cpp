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

// The taps of one row that read something.
struct Taps {
  int count = 0;
  int column[kMostTaps];
  int64_t row[kMostTaps];

  Taps(const ConvInputs& inputs, int64_t image, int64_t i) {
    for (int64_t k = 0; k < inputs.width; ++k) {
      const int64_t back = inputs.width - 1 - k;
      const int64_t from = inputs.taps      ? inputs.taps[(image * inputs.length + i) * inputs.width + k]
                           : inputs.reverse ? i + back
                                            : i - back;
      if (from < 0 || from >= inputs.length) continue;
      column[count] = static_cast<int>(k), row[count++] = from;
    }
  }
};

// The filters as vectors of channels.
template <typename Real>
struct Conv {
  using Lane = Values<Real>;

  const ConvInputs& inputs;
  Rows3<Real> x;
  int64_t blocks;
  Vectors<Real> memory;  // for each block of channels the bias, then the columns of its filters

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
  Lane of(const Rows3<Real>& rows, int64_t image, int64_t row, int64_t block) const {
    return load(rows.at(image, row) + block * Lanes<Real>::count, count(block));
  }

  // What the taps read, before SiLU.
  Lane sum(const Taps& taps, int64_t image, int64_t block) const {
    const Lane* filter = filters(block);
    Lane found = filter[-1];
    for (int i = 0; i < taps.count; ++i) found += of(x, image, taps.row[i], block) * filter[taps.column[i]];
    return found;
  }

  void forward(Real* out) const {
    const int64_t rows = inputs.batch * inputs.length, work = 4 * inputs.channels;
    torch::stable::parallel_for(0, rows, grain(work), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / inputs.length;
        const Taps taps(inputs, image, i % inputs.length);
        for (int64_t block = 0; block < blocks; ++block) {
          const Lane found = sum(taps, image, block);
          const Lane out_lanes = found * sigmoid<Real>(found);
          store(out_lanes, out + i * inputs.channels + block * Lanes<Real>::count, count(block));
        }
      }
    });
  }

  // Gradients of one block of channels of an image; `to` has rows of x, `fixed` those of the filters and of the bias.
  void backward(const Rows3<Real>& grad, int64_t image, int64_t block, Real* to, PerImage<Real>& fixed) const {
    const Lane* filter = filters(block);
    Lane sums[kMostTaps + 1] = {};
    const int lanes = count(block);
    const auto at = [&](int64_t row) {
      return to + (image * inputs.length + row) * inputs.channels + block * Lanes<Real>::count;
    };
    for (int64_t row = 0; row < inputs.length; ++row) store(Lane{}, at(row), lanes);
    for (int64_t row = 0; row < inputs.length; ++row) {
      const Taps taps(inputs, image, row);
      const Lane found = sum(taps, image, block), part = sigmoid<Real>(found);
      const Lane arriving = of(grad, image, row, block) * silu_slope<Real>(found, part);
      sums[inputs.width] += arriving;
      for (int i = 0; i < taps.count; ++i) {
        const int64_t from = taps.row[i], k = taps.column[i];
        sums[k] += arriving * of(x, image, from, block);
        store(load(at(from), lanes) + arriving * filter[k], at(from), lanes);
      }
    }
    for (int64_t k = 0; k <= inputs.width; ++k) store(sums[k], fixed.at(image, k) + block * Lanes<Real>::count, lanes);
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
