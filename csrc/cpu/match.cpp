// Bipartite matching by cosine, and the rounds of `ward`, on the CPU.
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "../tensors.h"
#include "best_targets.h"
#include "match.h"
#include "rows.h"

namespace tokenreduce {

using torch::stable::parallel_for;

namespace {

constexpr int64_t kAtOnce = 16 << 20;  // bytes of packed tokens that are there at once

// Sources and targets of one image and the best target of each source.
struct Side {
  Packed a, b;
  std::vector<float> score;
  std::vector<int32_t> match;

  Side(int64_t n, int64_t width, int64_t first, Score score)
      : a(source_count(n, first), width, kTile, score),
        b(n - source_count(n, first), width, kPanel, score),
        score(a.count),
        match(a.count) {}

  int64_t blocks() const { return a.blocks() + b.blocks(); }

  // Packs block `number` of both sides, sources first, of the rows that `read(token, out)` writes down.
  template <typename Read>
  void pack(int64_t number, int64_t first, float* row, const Read& read) {
    Packed& to = number < a.blocks() ? a : b;
    const bool source = &to == &a;
    to.pack(source ? number : number - a.blocks(), row, [&](int64_t row, float* out) {
      read(source ? source_at(row, first) : target_at(row, first), out);
    });
  }
};

// The best target of every source of `sides`.
template <Score score>
void find_best(std::vector<Side>& sides) {
  const int64_t each = groups(sides[0].a.count);
  const int64_t work = kGroup * kTile * sides[0].b.count * sides[0].a.width / kLanes;
  parallel_for(0, each * static_cast<int64_t>(sides.size()), grain(work), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      Side& side = sides[i / each];
      best_targets<score>(side.a, side.b, i % each, side.score.data(), side.match.data());
    }
  });
}

void check_keep(int64_t n, int64_t keep, int64_t first) {
  if (first != 0 && first != 1) fail("first is ", first, "; it must be 0 or 1");
  const int64_t sources = source_count(n, first), targets = n - sources;
  const int64_t least = n - (targets ? sources : 0);
  if (keep < least || keep > n) fail("keep is ", keep, "; of ", n, " tokens it must lie in [", least, ", ", n, "]");
}

struct Maps {
  Tensor dest, rep, sources;
  int64_t n, keep;

  Maps(const Tensor& like, int64_t batch, int64_t n, int64_t keep)
      : dest(uninitialised(like, {batch, n}, ScalarType::Long)),
        rep(uninitialised(like, {batch, keep}, ScalarType::Long)),
        sources(uninitialised(like, {batch, n - keep}, ScalarType::Long)),
        n(n),
        keep(keep) {}

  Map of(int64_t image) const {
    const auto row = [image](const Tensor& tensor, int64_t width) {
      return static_cast<int64_t*>(tensor.mutable_data_ptr()) + image * width;
    };
    return {row(dest, n), row(rep, keep), row(sources, n - keep)};
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> match_between(
    const Tensor& given, int64_t keep, int64_t first, int64_t prefix, int64_t suffix) {
  const Tensor metric = with_rows(given);
  const bool headed = metric.dim() == 4;
  if (headed) check(metric, "metric", {-1, -1, -1, -1}); else check(metric, "metric", {-1, -1, -1});
  const int64_t last = metric.dim() - 1, batch = metric.size(0), width = metric.size(last);
  check_protected("metric", metric.size(last - 1), prefix, suffix);
  const int64_t n = metric.size(last - 1) - prefix - suffix, row_stride = metric.stride(last - 1);
  const int64_t heads = headed ? metric.size(1) : 1, head_stride = headed ? metric.stride(1) : 0;
  if (!heads) fail("metric has no heads");
  check_keep(n, keep, first);
  const Maps maps(metric, batch, n, keep);
  const int64_t at_once = std::clamp<int64_t>(kAtOnce / (4 * std::max<int64_t>(1, n * width)), 1, std::max<int64_t>(1, batch));
  with_type(metric, "metric", [&](auto type) {
    using T = decltype(type);
    const T* data = static_cast<const T*>(metric.const_data_ptr()) + prefix * row_stride;
    for (int64_t done = 0; done < batch; done += at_once) {
      std::vector<Side> sides;
      const int64_t images = std::min(at_once, batch - done);
      for (int64_t i = 0; i < images; ++i) sides.emplace_back(n, width, first, Score::kProduct);
      const int64_t blocks = sides[0].blocks();
      parallel_for(0, images * blocks, grain(4 * heads * width * kPanel), [&](int64_t begin, int64_t end) {
        std::vector<float> buffer(width);
        for (int64_t i = begin; i < end; ++i) {
          const T* from = data + (done + i / blocks) * metric.stride(0);
          const Rows<T> tokens{from, heads, head_stride, row_stride, width};
          sides[i / blocks].pack(i % blocks, first, buffer.data(), [&](int64_t token, float* out) {
            tokens.read(token, out);
            const float length = inverse_length(squares_of(out, width));
            for (int64_t k = 0; k < width; ++k) out[k] *= length;
          });
        }
      });
      find_best<Score::kProduct>(sides);
      parallel_for(0, images, grain(16 * n), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          merge_best(sides[i].score.data(), sides[i].match.data(), n, keep, first, maps.of(done + i));
      });
    }
  });
  return {maps.dest, maps.rep, maps.sources};
}

std::tuple<Tensor, Tensor, Tensor> bipartite_match(const Tensor& metric, int64_t keep, int64_t first) {
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

  // Signed sums of the channels of a direction.
  void sketch(int64_t token, const float* row, int64_t channels, const float* signs) {
    const float length = inverse_length(squares_of(row, channels));
    float* to = points.data() + token * width;
    if (!signs) {
      for (int64_t k = 0; k < width; ++k) to[k] = row[k] * length;
      return;
    }
    std::fill(to, to + width, 0.0f);
    for (int64_t start = 0; start < channels; start += width) {
      const int64_t end = std::min(width, channels - start);
      for (int64_t k = 0; k < end; ++k) to[k] += row[start + k] * length * signs[start + k];
    }
  }

  void pack(Side& side, int64_t number, int64_t first, float* row) const {
    side.pack(number, first, row, [&](int64_t token, float* out) {
      std::copy_n(points.data() + token * width, width, out);
    });
    Packed& to = number < side.a.blocks() ? side.a : side.b;
    const bool source = &to == &side.a;
    const int64_t start = (source ? number : number - side.a.blocks()) * to.block;
    for (int64_t row = start; row < std::min(start + to.block, to.count); ++row) {
      const int64_t token = source ? source_at(row, first) : target_at(row, first);
      to.squares[row] = squares_of(points.data() + token * width, width);
      to.inverse[row] = 1.0f / sizes[token];
    }
  }

  void merge(const Side& side, int64_t keep, int64_t first) {
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

std::tuple<Tensor, Tensor, Tensor> ward_match(
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
  const Maps maps(features, batch, n, now);
  std::vector<Clusters> images;
  for (int64_t i = 0; i < batch; ++i) {
    images.emplace_back(n, width);
    if (mass) std::copy_n(mass + i * n, n, images[i].sizes.begin());
  }
  with_type(features, "features", [&](auto type) {
    using T = decltype(type);
    const T* data = static_cast<const T*>(features.const_data_ptr());
    parallel_for(0, batch * n, grain(4 * channels), [&](int64_t begin, int64_t end) {
      std::vector<float> row(channels);
      for (int64_t i = begin; i < end; ++i) {
        const T* from = data + i / n * features.stride(0);
        Rows<T>{from, 1, 0, features.stride(1), channels}.read(i % n, row.data());
        images[i / n].sketch(i % n, row.data(), channels, sign);
      }
    });
  });
  for (int64_t keep : counts) {
    const int64_t tokens = images.empty() ? 0 : images[0].n;
    std::vector<Side> sides;
    for (int64_t i = 0; i < batch; ++i) sides.emplace_back(tokens, width, first, Score::kWard);
    const int64_t blocks = batch ? sides[0].blocks() : 0;
    parallel_for(0, batch * blocks, grain(4 * width * kPanel), [&](int64_t begin, int64_t end) {
      std::vector<float> buffer(width);
      for (int64_t i = begin; i < end; ++i) images[i / blocks].pack(sides[i / blocks], i % blocks, first, buffer.data());
    });
    if (batch) find_best<Score::kWard>(sides);
    parallel_for(0, batch, grain(tokens * width), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) images[i].merge(sides[i], keep, first);
    });
  }
  for (int64_t i = 0; i < batch; ++i) {
    const Map map = maps.of(i);
    std::copy(images[i].dest.begin(), images[i].dest.end(), map.dest);
    std::copy(images[i].rep.begin(), images[i].rep.end(), map.rep);
    std::copy(images[i].sources.begin(), images[i].sources.end(), map.sources);
  }
  return {maps.dest, maps.rep, maps.sources};
}

STABLE_TORCH_LIBRARY_IMPL(tokenreduce_kernels, CPU, m) {
  m.impl("bipartite_match", TORCH_BOX(&bipartite_match));
  m.impl("ward_match", TORCH_BOX(&ward_match));
}

}  // namespace tokenreduce
