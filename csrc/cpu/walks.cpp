// How the scans of a state-space model walk over the rows that are left: what `maps/walks.py` makes of about twenty small
// operators, where a tap reads the token that stands for a missing one.
#include <algorithm>
#include <cstdint>
#include <tuple>

#include "../tensors.h"

namespace tokenreduce {

namespace {

// One image: `prefix` protected rows, which stand at `place` of the whole sequence, then `left` of `entered` image tokens.
struct Sequence {
  const int64_t *origin, *stands;
  int64_t left, entered, place, prefix;

  int64_t rows() const { return prefix + left; }

  int64_t rank(int64_t row) const {
    if (row < prefix) return place + row;
    const int64_t from = origin[row - prefix];
    return from < place ? from : from + prefix;
  }

  // The row that stands for a place of the whole sequence, -1 beyond its ends.
  int64_t owner(int64_t at) const {
    if (at < 0 || at >= prefix + entered) return -1;
    if (at >= place && at < place + prefix) return at - place;
    return prefix + stands[at < place ? at : at - prefix];
  }

  void write_order(int64_t* to) const {
    const int64_t before = std::lower_bound(origin, origin + left, place) - origin;
    for (int64_t i = 0; i < rows(); ++i)
      to[i] = i < before ? prefix + i : i < before + prefix ? i - before : i;
  }

  void write_taps(int64_t taps, int64_t* ahead, int64_t* back) const {
    for (int64_t row = 0; row < rows(); ++row) {
      const int64_t at = rank(row);
      for (int64_t back_by = taps - 1; back_by >= 0; --back_by)
        *ahead++ = owner(at - back_by), *back++ = owner(at + back_by);
    }
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> scan_walks(
    const Tensor& given_origin, const Tensor& given_stands, const Tensor& given_sizes, int64_t place, int64_t prefix,
    int64_t taps) {
  check(given_origin, "origin", {-1, -1}), check(given_stands, "stands", {given_origin.size(0), -1});
  const int64_t batch = given_origin.size(0), left = given_origin.size(1), entered = given_stands.size(1);
  const Index origin = check_index(given_origin, "origin", batch, left, entered);
  const Index stands = check_index(given_stands, "stands", batch, entered, left);
  const Tensor sizes = in_a_row(given_sizes);
  check(sizes, "sizes", {batch, left}), check_type(sizes, "sizes", ScalarType::Float, "float32");
  if (prefix < 0 || taps < 1) fail("prefix is ", prefix, " and taps is ", taps, "; the least are 0 and 1");
  if (place < 0 || place > entered) fail("place is ", place, "; it must lie in [0, ", entered, "]");
  const int64_t rows = prefix + left;
  const Tensor order = uninitialised(given_origin, {batch, rows}), ahead = uninitialised(order, {batch, rows, taps}),
               back = uninitialised(order, {batch, rows, taps}), held = uninitialised(sizes, {batch, rows});
  const auto numbers = [](const Tensor& tensor) { return static_cast<int64_t*>(tensor.mutable_data_ptr()); };
  const float* from = static_cast<const float*>(sizes.const_data_ptr());
  float* size = static_cast<float*>(held.mutable_data_ptr());
  for (int64_t image = 0; image < batch; ++image) {
    const Sequence one{origin[image], stands[image], left, entered, place, prefix};
    if (!std::is_sorted(one.origin, one.origin + left)) fail("origin must ascend from row to row");
    one.write_order(numbers(order) + image * rows);
    one.write_taps(taps, numbers(ahead) + image * rows * taps, numbers(back) + image * rows * taps);
    std::fill_n(size + image * rows, prefix, 1.0f);
    std::copy_n(from + image * left, left, size + image * rows + prefix);
  }
  return {order, ahead, back, held};
}

STABLE_TORCH_LIBRARY_IMPL(tokenreduce_kernels, CPU, m) { m.impl("scan_walks", TORCH_BOX(&scan_walks)); }

}  // namespace tokenreduce
