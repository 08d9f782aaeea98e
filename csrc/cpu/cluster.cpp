// Agglomerative clustering by Ward's criterion, of points with sizes, on the CPU: the matrix of all costs is never
// stored.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <optional>
#include <vector>

#include "../tensors.h"
#include "best_targets.h"
#include "images.h"
#include "match.h"
#include "points.h"
#include "rows.h"

namespace tokenreduce {

namespace {

// Clusters of one image, each at the place of its first member.
class Tree {
 public:
  Tree(int64_t n, int64_t width, const float* points, const float* sizes)
      : n_(n), width_(width), points_(points, points + n * width), size_(n, 1.0f), label_(n), b_(n, width), score_(n),
        nearest_(n), change_(n), seen_(n) {
    if (sizes) std::copy_n(sizes, n, size_.begin());
    std::iota(label_.begin(), label_.end(), 0);
    const int64_t places = b_.blocks() * b_.block;
    b_.squares.assign(places, 0.0f), b_.inverse.assign(places, 0.0f), b_.cap.assign(places, -INFINITY);
    std::fill_n(b_.cap.begin(), n, FLT_MAX);
    for (int64_t i = 0; i < n; ++i) weigh(i);
    search_all();
  }

  // Merges the two clusters that cost least, of equals the first. What a cluster costs to merge only grows as others
  // merge (Ward's criterion is reducible), so a cost that is out of date is a bound, and is computed again only where it
  // would be the least.
  void merge() {
    int64_t row = 0;
    for (;;) {
      row = std::max_element(score_.begin(), score_.end()) - score_.begin();  // the first of equals
      if (seen_[row] == change_[nearest_[row]]) break;
      search(row);
    }
    const int64_t into = std::min<int64_t>(row, nearest_[row]), gone = std::max<int64_t>(row, nearest_[row]);
    const float mass = size_[into] + size_[gone], part = size_[gone] / std::max(mass, 1e-12f);
    float *centre = points_.data() + into * width_, *from = points_.data() + gone * width_;
    for (int64_t k = 0; k < width_; ++k) {
      centre[k] += part * (from[k] - centre[k]);
      b_.channel(into, k) = centre[k];
    }
    size_[into] = mass, label_[gone] = into;
    weigh(into);
    b_.cap[gone] = -INFINITY, score_[gone] = -INFINITY;
    ++change_[into], ++change_[gone];
    search(into);
  }

  void write(const NewMap& map) {
    int64_t kept = 0, gone = 0;
    for (int64_t i = 0; i < n_; ++i) {
      // A label is lower than what it is of, so that of a label is final here.
      if (label_[i] == i) map.rep[kept] = i, map.dest[i] = kept++;
      else map.sources[gone++] = i, map.dest[i] = map.dest[label_[i]];
    }
  }

 private:
  int64_t n_, width_;
  std::vector<float> points_, size_;
  std::vector<int64_t> label_;  // the cluster that each one has become part of, or itself
  Targets b_;
  std::vector<float> score_;  // minus the least cost of merging each cluster; a bound where it is out of date
  std::vector<int32_t> nearest_, change_, seen_;  // with which; how often each changed, and had when it was looked at

  void weigh(int64_t i) {
    b_.squares[i] = squares_of(points_.data() + i * width_, width_), b_.inverse[i] = 1.0f / size_[i];
  }

  // Finds for every point what it costs least to merge with.
  void search_all() {
    Sources a(n_, width_);
    const auto read = [&](int64_t token, float* out) { std::copy_n(points_.data() + token * width_, width_, out); };
    parallel_for(0, a.parts() + b_.parts(), grain(4 * kLanes * width_), [&](int64_t begin, int64_t end) {
      const Lines buffer = lines(kLanes * a.width);
      std::fill_n(buffer.get(), kLanes * a.width, 0.0f);
      for (int64_t part = begin; part < end; ++part) {
        if (part < a.parts()) pack(a, part, buffer.get(), read);
        else pack(b_, part - a.parts(), buffer.get(), read);
      }
    });
    a.squares = b_.squares, a.inverse = b_.inverse;
    a.squares.resize(a.blocks() * a.block), a.inverse.resize(a.blocks() * a.block);
    const int64_t work = kTile * b_.count * a.width / kLanes;
    parallel_for(0, a.blocks(), std::max<int64_t>(kGroup, grain(work)), [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; tile += kGroup)
        best_targets<Score::kOthers>(a, b_, tile, std::min(tile + kGroup, end), score_.data(), nearest_.data());
    });
  }

  // Finds what merging with `row` costs least.
  void search(int64_t row) {
    const float* point = points_.data() + row * width_;
    const Floats none{}, squares = b_.squares[row] + none, inverse = b_.inverse[row] + none;
    Running best;
    for (int64_t panel = 0; panel < b_.blocks(); ++panel) {
      Floats sums[2] = {};
      const float* targets = b_.at(panel);
      for (int64_t k = 0; k < width_; ++k, targets += kPanel)
        for (int h = 0; h < 2; ++h) sums[h] += point[k] * lanes_at(targets + h * kLanes);
      for (int h = 0; h < 2; ++h) {
        const int64_t first = panel * kPanel + h * kLanes;
        const Ints index = indices_from(first);
        take(cost_of_others(sums[h], row, squares, inverse, b_, first, index), index, h, !panel, best);
      }
    }
    reduce(best, &score_[row], &nearest_[row]);
    seen_[row] = change_[nearest_[row]];
  }
};

}  // namespace

Maps ward_cluster(
    const Tensor& given, const std::optional<Tensor>& given_sizes, const std::optional<Tensor>& given_signs,
    int64_t width, bool directions, int64_t keep) {
  const Tensor metric = with_rows(given);
  const std::optional<Tensor> sizes = in_a_row(given_sizes), signs = in_a_row(given_signs);
  const bool headed = metric.dim() == 4;
  if (headed) check(metric, "metric", {-1, -1, -1, -1}); else check(metric, "metric", {-1, -1, -1});
  const int64_t last = metric.dim() - 1, batch = metric.size(0), n = metric.size(last - 1), channels = metric.size(last);
  const int64_t heads = headed ? metric.size(1) : 1, head_stride = headed ? metric.stride(1) : 0;
  if (!heads) fail("metric has no heads");
  if (keep < 1 || keep > n) fail("keep is ", keep, "; of ", n, " tokens it must lie in [1, ", n, "]");
  if (width < 1 || width > channels) fail("width is ", width, "; it must lie in [1, ", channels, "]");
  if (!signs && width != channels) fail("signs are needed to sketch ", channels, " channels in ", width);
  if (signs && !directions) fail("only directions are sketched");
  for (const auto& [tensor, name] : {std::pair{&sizes, "sizes"}, std::pair{&signs, "signs"}}) {
    if (!*tensor) continue;
    if (tensor == &sizes) check(**tensor, name, {batch, n}); else check(**tensor, name, {channels});
    check_type(**tensor, name, ScalarType::Float, "float32");
  }
  const float* mass = sizes ? static_cast<const float*>(sizes->const_data_ptr()) : nullptr;
  const float* sign = signs ? static_cast<const float*>(signs->const_data_ptr()) : nullptr;
  const Maps maps = new_maps(metric, batch, n, keep);
  with_type(metric, "metric", [&](auto type) {
    using T = decltype(type);
    const T* data = static_cast<const T*>(metric.const_data_ptr());
    for_images(batch, [&](int64_t begin, int64_t end) {
      std::vector<float> points(n * width);
      for (int64_t image = begin; image < end; ++image) {
        const Rows<T> rows{data + image * metric.stride(0), heads, head_stride, metric.stride(last - 1), channels};
        if (directions) sketch_rows(rows, n, sign, width, points.data());
        else
          parallel_for(0, n, grain(heads * channels), [&](int64_t begin, int64_t end) {
            for (int64_t token = begin; token < end; ++token) rows.read(token, points.data() + token * width);
          });
        Tree tree(n, width, points.data(), mass ? mass + image * n : nullptr);
        for (int64_t left = n; left > keep; --left) tree.merge();
        tree.write(map_of(maps, image));
      }
    });
  });
  return maps;
}

STABLE_TORCH_LIBRARY_IMPL(tokenreduce_kernels, CPU, m) { m.impl("ward_cluster", TORCH_BOX(&ward_cluster)); }

}  // namespace tokenreduce
