// Agglomerative clustering by Ward's criterion, of points with sizes, of one image: the matrix of all costs is never
// stored.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "best_targets.h"
#include "images.h"
#include "rows.h"

namespace tokenreduce {

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

  // The first member of each token's cluster.
  std::vector<int64_t> labels() const {
    std::vector<int64_t> first(label_);
    for (int64_t i = 0; i < n_; ++i) first[i] = first[label_[i]];  // a label is lower than what it is of: final here
    return first;
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

}  // namespace tokenreduce
