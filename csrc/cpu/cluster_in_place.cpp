// `ward` for models that scan their tokens: clusters of directions and places, each represented by the member nearest to
// its middle, in the order of these.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "../tensors.h"
#include "images.h"
#include "match.h"
#include "points.h"
#include "rows.h"
#include "tree.h"

namespace tokenreduce {

namespace {

// A product that is not fused with an addition: members are as near as in the reference, ties too.
inline float product(float a, float b) {
  volatile float kept = a * b;
  return kept;
}

// The mean of the `places (n, sides)` of each cluster's members, by the first of them.
std::vector<float> means(const std::vector<int64_t>& first, const float* places, int64_t sides, const float* sizes) {
  const int64_t n = first.size();
  std::vector<float> middle(n * sides), mass(n);
  for (int64_t i = 0; i < n; ++i) {
    const float size = sizes ? sizes[i] : 1.0f;
    mass[first[i]] += size;
    for (int64_t k = 0; k < sides; ++k) middle[first[i] * sides + k] += product(places[i * sides + k], size);
  }
  for (int64_t i = 0; i < n * sides; ++i) middle[i] /= std::max(mass[i / sides], 1e-12f);
  return middle;
}

// Of each cluster the member nearest to its mean `middle`, of equals the first; both by the first members of clusters.
std::vector<int64_t> central(
    const std::vector<int64_t>& first, const float* places, int64_t sides, const std::vector<float>& middle) {
  const int64_t n = first.size();
  std::vector<float> least(n, INFINITY);
  std::vector<int64_t> found(first);
  for (int64_t i = 0; i < n; ++i) {
    float distance = 0;
    for (int64_t k = 0; k < sides; ++k) {
      const float off = places[i * sides + k] - middle[first[i] * sides + k];
      distance += product(off, off);
    }
    if (distance < least[first[i]]) least[first[i]] = distance, found[first[i]] = i;
  }
  return found;
}

// The map whose outputs stand in the order of these members, and the mean of each, `middles (keep, sides)`.
void write(const std::vector<int64_t>& first, const std::vector<int64_t>& central, const std::vector<float>& middle,
           int64_t sides, const NewMap& map, float* middles) {
  int64_t kept = 0, gone = 0;
  std::vector<int64_t> output(first.size());
  for (int64_t i = 0; i < static_cast<int64_t>(first.size()); ++i) {
    if (central[first[i]] != i) { map.sources[gone++] = i; continue; }
    std::copy_n(middle.data() + first[i] * sides, sides, middles + kept * sides);
    map.rep[kept] = i, output[first[i]] = kept++;
  }
  for (size_t i = 0; i < first.size(); ++i) map.dest[i] = output[first[i]];
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> ward_in_place(
    const Tensor& given, const Tensor& given_places, const std::optional<Tensor>& given_sizes,
    const std::optional<Tensor>& given_signs, int64_t width, double nearness, int64_t keep) {
  const Tensor features = with_rows(given), places = in_a_row(given_places);
  const std::optional<Tensor> sizes = in_a_row(given_sizes), signs = in_a_row(given_signs);
  check(features, "features", {-1, -1, -1});
  const int64_t batch = features.size(0), n = features.size(1), channels = features.size(2);
  check(places, "positions", {batch, n, -1});
  check_type(places, "positions", ScalarType::Float, "float32");
  if (keep < 1 || keep > n) fail("keep is ", keep, "; of ", n, " tokens it must lie in [1, ", n, "]");
  if (width < 1 || width > channels) fail("width is ", width, "; it must lie in [1, ", channels, "]");
  if (!signs && width != channels) fail("signs are needed to sketch ", channels, " channels in ", width);
  if (sizes) check(*sizes, "sizes", {batch, n}), check_type(*sizes, "sizes", ScalarType::Float, "float32");
  if (signs) check(*signs, "signs", {channels}), check_type(*signs, "signs", ScalarType::Float, "float32");
  const float* mass = sizes ? static_cast<const float*>(sizes->const_data_ptr()) : nullptr;
  const float* sign = signs ? static_cast<const float*>(signs->const_data_ptr()) : nullptr;
  const float* place = static_cast<const float*>(places.const_data_ptr());
  const int64_t sides = places.size(2), all = width + (nearness != 0 ? sides : 0);
  const Maps maps = new_maps(features, batch, n, keep);
  const Tensor middles = uninitialised(places, {batch, keep, sides});
  float* means_of = static_cast<float*>(middles.mutable_data_ptr());
  with_type(features, "features", [&](auto type) {
    using T = decltype(type);
    for_images(batch, [&](int64_t begin, int64_t end) {
      std::vector<float> points(n * all);
      for (int64_t image = begin; image < end; ++image) {
        const float *at = place + image * n * sides, *size = mass ? mass + image * n : nullptr;
        sketch_rows(rows_of<T>(features, image, 0), n, sign, width, all, points.data());
        for (int64_t i = 0; i < n; ++i)
          for (int64_t k = width; k < all; ++k)
            points[i * all + k] = at[i * sides + k - width] * static_cast<float>(nearness);
        Tree tree(n, all, points.data(), size);
        for (int64_t left = n; left > keep; --left) tree.merge();
        const std::vector<int64_t> first = tree.labels();
        const std::vector<float> middle = means(first, at, sides, size);
        float* to = means_of + image * keep * sides;
        write(first, central(first, at, sides, middle), middle, sides, map_of(maps, image), to);
      }
    });
  });
  const auto& [dest, rep, sources] = maps;
  return {dest, rep, sources, middles};
}

STABLE_TORCH_LIBRARY_IMPL(tokenreduce_kernels, CPU, m) { m.impl("ward_in_place", TORCH_BOX(&ward_in_place)); }

}  // namespace tokenreduce
