// Tokens that come back with the change since, predicted from the outputs nearest to the one that stands for them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "../tensors.h"
#include "best_targets.h"
#include "rows.h"

namespace tokenreduce {

using torch::stable::parallel_for;

Tensor restore_apply(
    const Tensor& given, const Tensor& dest, const std::optional<Tensor>& given_before,
    const std::optional<Tensor>& given_after, int64_t prefix, int64_t suffix);

namespace {

constexpr int kAtOnce = 8;  // products that run side by side

// Products of `a` with so many rows, `width` floats each, one after the other.
template <int count>
void some_products(const float* a, const float* rows, int64_t width, float* out) {
  Floats sums[count] = {};
  int64_t k = 0;
  for (; k + kLanes <= width; k += kLanes) {
    const Floats part = lanes_at(a + k);
    for (int i = 0; i < count; ++i) sums[i] += part * lanes_at(rows + i * width + k);
  }
  for (int i = 0; i < count; ++i) {
    float sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += sums[i][lane];
    for (int64_t rest = k; rest < width; ++rest) sum += a[rest] * rows[i * width + rest];
    out[i] = sum;
  }
}

void products_with(const float* a, const float* rows, int64_t count, int64_t width, float* out) {
  int64_t i = 0;
  for (; i + kAtOnce <= count; i += kAtOnce) some_products<kAtOnce>(a, rows + i * width, width, out + i);
  for (; i < count; ++i) some_products<1>(a, rows + i * width, width, out + i);
}

// exp(-x / length) of floats, in a multiple of kLanes.
void decay(float* values, int64_t count, float length) {
  const float rate = -1 / length;
  for (int64_t i = 0; i < count; i += kLanes) store_lanes(exponential(lanes_at(values + i) * rate), values + i);
}

int64_t padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// The factors of a symmetric positive definite matrix (n, n), in the place of its lower triangle.
void factorise(float* matrix, int64_t n) {
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = j; i < n; ++i) {
      float left = matrix[i * n + j];
      for (int64_t k = 0; k < j; ++k) left -= matrix[i * n + k] * matrix[j * n + k];
      matrix[i * n + j] = i == j ? std::sqrt(left) : left / matrix[j * n + j];
    }
  }
}

// Solves it for one right side, in the place of that.
void solve(const float* factors, int64_t n, float* side) {
  for (int64_t i = 0; i < n; ++i) {
    float left = side[i];
    for (int64_t j = 0; j < i; ++j) left -= factors[i * n + j] * side[j];
    side[i] = left / factors[i * n + i];
  }
  for (int64_t i = n; i-- > 0;) {
    float left = side[i];
    for (int64_t j = i + 1; j < n; ++j) left -= factors[j * n + i] * side[j];
    side[i] = left / factors[i * n + i];
  }
}

// One image: rows as they are read, and the unit rows of the outputs `(keep, width)`.
template <typename T>
struct Kriging {
  Rows<T> now, after, before;  // of image tokens alone
  T* out;                      // (n, width)
  int64_t keep, width, nearest;
  float reach, ridge, least;
  const float* units;

  // Adds to all `members` of the output `centre` what they have changed by beyond it.
  void add(int64_t centre, const std::vector<int64_t>& members) const {
    const std::vector<int64_t> near = neighbours(centre);
    const int64_t count = static_cast<int64_t>(near.size());
    std::vector<float> offsets(count * width), beyond(count * width), row(width), own(width);
    const float* middle = units + centre * width;
    change(centre, own.data(), row.data());
    for (int64_t j = 0; j < count; ++j) {
      const float* unit = units + near[j] * width;
      change(near[j], beyond.data() + j * width, row.data());
      for (int64_t k = 0; k < width; ++k) {
        offsets[j * width + k] = unit[k] - middle[k];
        beyond[j * width + k] -= own[k];
      }
    }
    std::vector<float> kernel(padded(count * count)), squares(count), at_centre(count), side(padded(count));
    const float length = distances(offsets.data(), count, kernel.data(), squares.data());
    decay(kernel.data(), padded(count * count), length);
    std::copy_n(kernel.begin(), count, at_centre.begin());
    for (int64_t j = 0; j < count; ++j) kernel[j * count + j] += ridge;
    factorise(kernel.data(), count);
    for (const int64_t token : members) {
      unit_of(before, token, row.data());
      for (int64_t k = 0; k < width; ++k) row[k] -= middle[k];
      const float square = squares_of(row.data(), width);
      products_with(row.data(), offsets.data(), count, width, side.data());
      for (int64_t j = 0; j < count; ++j) side[j] = std::max(0.0f, square + squares[j] - 2 * side[j]);
      decay(side.data(), padded(count), length);
      for (int64_t j = 0; j < count; ++j) side[j] -= at_centre[j];
      solve(kernel.data(), count, side.data());
      add_rows(beyond.data(), side.data(), count, row.data(), out + token * width);
    }
  }

  static void unit_of(const Rows<T>& rows, int64_t token, float* to) {
    rows.read(token, to);
    const float inverse = 1 / std::max(1e-12f, std::sqrt(squares_of(to, rows.width)));
    for (int64_t k = 0; k < rows.width; ++k) to[k] *= inverse;
  }

 private:
  // Squared distances of outputs by their offsets from the first, `(count, count)`, and the squared length of the kernel.
  float distances(const float* offsets, int64_t count, float* to, float* squares) const {
    for (int64_t i = 0; i < count; ++i) products_with(offsets + i * width, offsets, i + 1, width, to + i * count);
    for (int64_t i = 0; i < count; ++i) squares[i] = to[i * count + i];
    double total = 0;
    for (int64_t i = 0; i < count; ++i) {
      to[i * count + i] = 0;
      for (int64_t j = 0; j < i; ++j) {
        const float distance = std::max(0.0f, squares[i] + squares[j] - 2 * to[i * count + j]);
        to[i * count + j] = to[j * count + i] = distance;
        total += 2 * distance;
      }
    }
    return std::max(least, reach * static_cast<float>(total / static_cast<double>(count * count)));
  }

  // Adds rows `(count, width)` with these weights to a row, by way of `sums (width)`.
  void add_rows(const float* rows, const float* weights, int64_t count, float* sums, T* to) const {
    using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;
    std::fill_n(sums, width, 0.0f);
    for (int64_t j = 0; j < count; ++j)
      for (int64_t k = 0; k < width; ++k) sums[k] += weights[j] * rows[j * width + k];
    for (int64_t k = 0; k < width; ++k) to[k] = static_cast<T>(static_cast<Wide>(to[k]) + sums[k]);
  }

  // The outputs nearest to `centre`, itself first; of equals the one that stands first.
  std::vector<int64_t> neighbours(int64_t centre) const {
    std::vector<float> likeness(keep);
    products_with(units + centre * width, units, keep, width, likeness.data());
    std::vector<std::pair<float, int64_t>> far(keep);
    for (int64_t j = 0; j < keep; ++j) far[j] = {std::isnan(likeness[j]) ? INFINITY : 1 - likeness[j], j};
    far[centre].first = -1;
    const int64_t count = std::min(nearest, keep);
    std::partial_sort(far.begin(), far.begin() + count, far.end());
    std::vector<int64_t> found(count);
    for (int64_t j = 0; j < count; ++j) found[j] = far[j].second;
    return found;
  }

  void change(int64_t output, float* to, float* scratch) const {
    now.read(output, to);
    after.read(output, scratch);
    for (int64_t k = 0; k < width; ++k) to[k] -= scratch[k];
  }
};

// The rows of an image after the prefix.
template <typename T>
Rows<T> image_rows(const Tensor& tensor, int64_t image, int64_t prefix) {
  Rows<T> rows = rows_of<T>(tensor, image, 0);
  rows.data += prefix * rows.row_stride;
  return rows;
}

}  // namespace

Tensor krige_apply(
    const Tensor& given, const Tensor& dest, const Tensor& given_before, const Tensor& given_after, int64_t prefix,
    int64_t suffix, int64_t nearest, double reach, double ridge, double least) {
  const Tensor y = with_rows(given), before = with_rows(given_before), after = with_rows(given_after);
  const Tensor out = restore_apply(y, dest, before, after, prefix, suffix);
  if (nearest < 1) fail("nearest is ", nearest, "; it must be 1 or more");
  const int64_t batch = y.size(0), keep = y.size(1) - prefix - suffix, width = y.size(2), n = dest.size(1);
  const Index to = check_index(dest, "dest", batch, n, keep);
  std::vector<std::vector<int64_t>> members(batch * keep);
  for (int64_t image = 0; image < batch; ++image)
    for (int64_t token = 0; token < n; ++token) members[image * keep + to[image][token]].push_back(token);
  std::vector<int64_t> several;
  for (int64_t i = 0; i < batch * keep; ++i)
    if (members[i].size() > 1) several.push_back(i);
  with_type(y, "y", [&](auto type) {
    using T = decltype(type);
    std::vector<float> units(batch * keep * width);
    parallel_for(0, batch * keep, grain(3 * width), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        Kriging<T>::unit_of(image_rows<T>(after, i / keep, prefix), i % keep, units.data() + i * width);
    });
    const int64_t work = (keep + nearest * nearest) * width;
    parallel_for(0, static_cast<int64_t>(several.size()), grain(work), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = several[i] / keep;
        T* const rows = static_cast<T*>(out.mutable_data_ptr()) + (image * (prefix + n + suffix) + prefix) * width;
        const Kriging<T> one{image_rows<T>(y, image, prefix),      image_rows<T>(after, image, prefix),
                             image_rows<T>(before, image, prefix), rows,
                             keep,                                 width,
                             nearest,                              static_cast<float>(reach),
                             static_cast<float>(ridge),            static_cast<float>(least),
                             units.data() + image * keep * width};
        one.add(several[i] % keep, members[several[i]]);
      }
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(tokenreduce_kernels, CPU, m) { m.impl("krige_apply", TORCH_BOX(&krige_apply)); }

}  // namespace tokenreduce
