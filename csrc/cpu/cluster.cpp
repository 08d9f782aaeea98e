// The clusters of `ward`, each represented by its first member, on the CPU.
#include <cstdint>
#include <optional>
#include <vector>

#include "../tensors.h"
#include "images.h"
#include "match.h"
#include "points.h"
#include "rows.h"
#include "tree.h"

namespace tokenreduce {

namespace {

// Outputs in the order of the first members.
void write(const std::vector<int64_t>& first, const NewMap& map) {
  int64_t kept = 0, gone = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(first.size()); ++i) {
    if (first[i] == i) map.rep[kept] = i, map.dest[i] = kept++;
    else map.sources[gone++] = i, map.dest[i] = map.dest[first[i]];
  }
}

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
        if (directions) sketch_rows(rows, n, sign, width, width, points.data());
        else
          parallel_for(0, n, grain(heads * channels), [&](int64_t begin, int64_t end) {
            for (int64_t token = begin; token < end; ++token) rows.read(token, points.data() + token * width);
          });
        Tree tree(n, width, points.data(), mass ? mass + image * n : nullptr);
        for (int64_t left = n; left > keep; --left) tree.merge();
        write(tree.labels(), map_of(maps, image));
      }
    });
  });
  return maps;
}

STABLE_TORCH_LIBRARY_IMPL(tokenreduce_kernels, CPU, m) { m.impl("ward_cluster", TORCH_BOX(&ward_cluster)); }

}  // namespace tokenreduce
