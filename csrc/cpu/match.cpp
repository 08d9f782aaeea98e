// Bipartite matching by cosine, and the rounds of `ward`, on the CPU.
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "../tensors.h"
#include "best_targets.h"
#include "images.h"
#include "match.h"
#include "points.h"
#include "rows.h"

namespace tokenreduce {

namespace {

// Sources and targets of one image and the best target of each source.
struct Sides {
  Sources a;
  Targets b;
  std::vector<float> score;
  std::vector<int32_t> match;

  Sides(int64_t n, int64_t width, int64_t first)
      : a(source_count(n, first), width), b(n - source_count(n, first), width), score(a.count), match(a.count) {}

  // Packs the rows that `read(token, out)` writes down, after `change(rows)` if they are to be changed.
  template <typename Read, typename... Change>
  void pack(int64_t first, const Read& read, const Change&... change) {
    parallel_for(0, a.parts() + b.parts(), grain(4 * kLanes * a.width), [&](int64_t begin, int64_t end) {
      const Lines buffer = lines(kLanes * a.width);
      std::fill_n(buffer.get(), kLanes * a.width, 0.0f);
      const auto source = [&](int64_t i, float* out) { read(source_at(i, first), out); };
      const auto target = [&](int64_t i, float* out) { read(target_at(i, first), out); };
      for (int64_t part = begin; part < end; ++part) {
        if (part < a.parts()) tokenreduce::pack(a, part, buffer.get(), source, change...);
        else tokenreduce::pack(b, part - a.parts(), buffer.get(), target, change...);
      }
    });
  }

  template <Score kind>
  void find_best() {
    const int64_t work = kTile * b.count * a.width / kLanes;
    parallel_for(0, a.blocks(), std::max<int64_t>(kGroup, grain(work)), [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; tile += kGroup)
        best_targets<kind>(a, b, tile, std::min(tile + kGroup, end), score.data(), match.data());
    });
  }
};

void check_keep(int64_t n, int64_t keep, int64_t first) {
  if (first != 0 && first != 1) fail("first is ", first, "; it must be 0 or 1");
  const int64_t sources = source_count(n, first), targets = n - sources;
  const int64_t least = n - (targets ? sources : 0);
  if (keep < least || keep > n) fail("keep is ", keep, "; of ", n, " tokens it must lie in [", least, ", ", n, "]");
}

}  // namespace

Maps match_between(
    const Tensor& given, int64_t keep, int64_t first, int64_t prefix, int64_t suffix, const Then& then) {
  const Tensor metric = with_rows(given);
  const bool headed = metric.dim() == 4;
  if (headed) check(metric, "metric", {-1, -1, -1, -1}); else check(metric, "metric", {-1, -1, -1});
  const int64_t last = metric.dim() - 1, batch = metric.size(0), width = metric.size(last);
  check_protected("metric", metric.size(last - 1), prefix, suffix);
  const int64_t n = metric.size(last - 1) - prefix - suffix, row_stride = metric.stride(last - 1);
  const int64_t heads = headed ? metric.size(1) : 1, head_stride = headed ? metric.stride(1) : 0;
  if (!heads) fail("metric has no heads");
  check_keep(n, keep, first);
  const Maps maps = new_maps(metric, batch, n, keep);
  with_type(metric, "metric", [&](auto type) {
    using T = decltype(type);
    const T* data = static_cast<const T*>(metric.const_data_ptr()) + prefix * row_stride;
    for_images(batch, [&](int64_t begin, int64_t end) {
      Sides sides(n, width, first);
      for (int64_t image = begin; image < end; ++image) {
        const Rows<T> tokens{data + image * metric.stride(0), heads, head_stride, row_stride, width};
        sides.pack(
            first, [&](int64_t token, float* out) { tokens.read(token, out); },
            [&](float* rows) { normalise(rows, sides.a.width, width); });
        sides.find_best<Score::kProduct>();
        const NewMap map = map_of(maps, image);
        merge_best(sides.score.data(), sides.match.data(), n, keep, first, map);
        if (then) then(image, map);
      }
    });
  });
  return maps;
}

Maps bipartite_match(const Tensor& metric, int64_t keep, int64_t first) {
  return match_between(metric, keep, first, 0, 0);
}

namespace {

// Tokens of one image as `ward` compares them, in the rounds so far: sketches of their directions, sizes, and where
// the tokens that entered are now.
struct Clusters {
  int64_t n, width;
  std::vector<float> points, sizes;
  std::vector<int64_t> dest, rep, sources;

  Clusters(int64_t n, int64_t width) : n(n), width(width), points(n * width), sizes(n, 1.0f), dest(n), rep(n) {
    std::iota(dest.begin(), dest.end(), 0);
    std::iota(rep.begin(), rep.end(), 0);
  }

  // The tokens as sources and targets, compared.
  Sides compare(int64_t first) const {
    Sides sides(n, width, first);
    sides.pack(first, [&](int64_t token, float* out) { std::copy_n(points.data() + token * width, width, out); });
    weigh(sides.a, [first](int64_t i) { return source_at(i, first); });
    weigh(sides.b, [first](int64_t i) { return target_at(i, first); });
    sides.find_best<Score::kWard>();
    return sides;
  }

  template <typename TokenAt>
  void weigh(Packed& side, const TokenAt& token_at) const {
    side.squares.assign(side.blocks() * side.block, 0.0f);
    side.inverse.assign(side.blocks() * side.block, 0.0f);
    for (int64_t i = 0; i < side.count; ++i) {
      const int64_t token = token_at(i);
      side.squares[i] = squares_of(points.data() + token * width, width);
      side.inverse[i] = 1.0f / sizes[token];
    }
  }

  void merge(const Sides& side, int64_t keep, int64_t first) {
    std::vector<int64_t> to(n), stay(keep), gone(n - keep);
    merge_best(side.score.data(), side.match.data(), n, keep, first, {to.data(), stay.data(), gone.data()});
    std::vector<float> mass(keep), moved(keep * width);
    for (int64_t m = 0; m < keep; ++m) {
      mass[m] = sizes[stay[m]];
      std::copy_n(points.data() + stay[m] * width, width, moved.data() + m * width);
    }
    for (int64_t token : gone) mass[to[token]] += sizes[token];
    for (int64_t token : gone) {
      const int64_t m = to[token];
      const float part = sizes[token] / std::max(mass[m], 1e-12f);
      const float *from = points.data() + token * width, *centre = points.data() + stay[m] * width;
      for (int64_t k = 0; k < width; ++k) moved[m * width + k] += part * (from[k] - centre[k]);
    }
    for (int64_t& now : dest) now = to[now];
    for (int64_t token : gone) sources.push_back(rep[token]);
    for (int64_t& token : stay) token = rep[token];
    rep = std::move(stay), points = std::move(moved), sizes = std::move(mass), n = keep;
  }
};

}  // namespace

Maps ward_match(
    const Tensor& given, const std::optional<Tensor>& given_sizes, const std::optional<Tensor>& given_signs,
    int64_t width, const std::vector<int64_t>& counts, int64_t first) {
  const Tensor features = with_rows(given);
  const std::optional<Tensor> sizes = in_a_row(given_sizes), signs = in_a_row(given_signs);
  check(features, "features", {-1, -1, -1});
  const int64_t batch = features.size(0), n = features.size(1), channels = features.size(2);
  if (width < 1 || width > channels) fail("width is ", width, "; it must lie in [1, ", channels, "]");
  if (!signs && width != channels) fail("signs are needed to sketch ", channels, " channels in ", width);
  for (const auto& [tensor, name] : {std::pair{&sizes, "sizes"}, std::pair{&signs, "signs"}}) {
    if (!*tensor) continue;
    if (tensor == &sizes) check(**tensor, name, {batch, n}); else check(**tensor, name, {channels});
    check_type(**tensor, name, ScalarType::Float, "float32");
  }
  int64_t now = n;
  for (int64_t keep : counts) {
    check_keep(now, keep, first);
    now = keep;
  }
  const float* mass = sizes ? static_cast<const float*>(sizes->const_data_ptr()) : nullptr;
  const float* sign = signs ? static_cast<const float*>(signs->const_data_ptr()) : nullptr;
  const Maps maps = new_maps(features, batch, n, now);
  with_type(features, "features", [&](auto type) {
    using T = decltype(type);
    const T* data = static_cast<const T*>(features.const_data_ptr());
    for_images(batch, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image) {
        Clusters clusters(n, width);
        if (mass) std::copy_n(mass + image * n, n, clusters.sizes.begin());
        const Rows<T> rows{data + image * features.stride(0), 1, 0, features.stride(1), channels};
        sketch_rows(rows, n, sign, width, width, clusters.points.data());
        for (int64_t keep : counts) clusters.merge(clusters.compare(first), keep, first);
        const NewMap map = map_of(maps, image);
        std::copy(clusters.dest.begin(), clusters.dest.end(), map.dest);
        std::copy(clusters.rep.begin(), clusters.rep.end(), map.rep);
        std::copy(clusters.sources.begin(), clusters.sources.end(), map.sources);
      }
    });
  });
  return maps;
}

STABLE_TORCH_LIBRARY_IMPL(tokenreduce_kernels, CPU, m) {
  m.impl("bipartite_match", TORCH_BOX(&bipartite_match));
  m.impl("ward_match", TORCH_BOX(&ward_match));
}

}  // namespace tokenreduce
