// What methods ask of attention and of all pairs of tokens, on the CPU: products of blocks are used up where they are
// computed, no matrix of all pairs is ever stored.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "../tensors.h"
#include "best_targets.h"
#include "images.h"
#include "rows.h"

namespace tokenreduce {

namespace {

constexpr int64_t kAhead = 12;  // rows

float sum_of(const Floats& lanes) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

// The keys and queries of one head, and what becomes of them.
struct Head {
  Targets keys;
  Sources queries;
  std::vector<float> bias;    // of each key, -inf after the last
  std::vector<float> logits;  // kTile rows of as many
  std::vector<float> received;

  Head(int64_t n, int64_t width)
      : keys(n, width),
        queries(kTile, width),
        bias(keys.parts() * kLanes),
        logits(kTile * bias.size()),
        received(bias.size()) {}

  // Logits of the packed queries, and the largest of each row.
  void multiply(float* largest) {
    const int64_t row = static_cast<int64_t>(bias.size());
    Floats best[kTile], sums[kTile][2];
    for (Floats& lanes : best) lanes = Floats{} - INFINITY;
    for (int64_t panel = 0; panel < keys.blocks(); ++panel) {
      const int halves = keys.count - panel * kPanel > kLanes ? 2 : 1;
      if (halves == 2) products<2>(queries.at(0), keys.at(panel), keys.width, sums);
      else products<1>(queries.at(0), keys.at(panel), keys.width, sums);
      for (int r = 0; r < kTile; ++r)
        for (int h = 0; h < halves; ++h) {
          const int64_t first = panel * kPanel + h * kLanes;
          const Floats found = sums[r][h] + lanes_at(bias.data() + first);
          store_lanes(found, logits.data() + r * row + first);
          best[r] = found > best[r] ? found : best[r];  // a NaN is not lost: the sum of the row takes it in
        }
    }
    for (int r = 0; r < kTile; ++r) {
      largest[r] = best[r][0];
      for (int i = 1; i < kLanes; ++i) largest[r] = std::max(largest[r], best[r][i]);
    }
  }

  // Adds the softmax of the first `rows` rows to what their keys receive; returns what row r gives to key `first + r`.
  void give(const float* largest, int64_t first, int64_t rows, float* own) {
    const int64_t row = static_cast<int64_t>(bias.size());
    float part[kTile];
    for (int64_t r = 0; r < rows; ++r) {
      float* values = logits.data() + r * row;
      Floats sums{};
      for (int64_t i = 0; i < row; i += kLanes) {
        const Floats parts = exponential(lanes_at(values + i) - largest[r]);
        store_lanes(parts, values + i);
        sums += parts;
      }
      part[r] = 1.0f / sum_of(sums);
      own[r] = values[first + r] * part[r];
    }
    for (int64_t i = 0; i < row; i += kLanes) {
      Floats sums = lanes_at(received.data() + i);
      for (int64_t r = 0; r < rows; ++r) sums += lanes_at(logits.data() + r * row + i) * part[r];
      store_lanes(sums, received.data() + i);
    }
  }
};

}  // namespace

std::tuple<Tensor, Tensor> attention_statistics(
    const Tensor& given_queries, const Tensor& given_keys, const std::optional<Tensor>& given_bias) {
  const Tensor queries = with_rows(given_queries), keys = with_rows(given_keys);
  const std::optional<Tensor> bias = in_a_row(given_bias);
  check(queries, "queries", {-1, -1, -1, -1});
  const int64_t batch = queries.size(0), heads = queries.size(1), n = queries.size(2), width = queries.size(3);
  check(keys, "keys", {batch, heads, n, width});
  if (keys.scalar_type() != queries.scalar_type()) fail("keys must have the type of queries");
  if (bias) {
    check(*bias, "bias", {batch, 1, 1, n});
    check_type(*bias, "bias", ScalarType::Float, "float32");
  }
  const float* logits = bias ? static_cast<const float*>(bias->const_data_ptr()) : nullptr;
  const Tensor received = uninitialised(queries, {batch, heads, n}, ScalarType::Float);
  const Tensor own = uninitialised(queries, {batch, heads, n}, ScalarType::Float);
  float* all = static_cast<float*>(received.mutable_data_ptr());
  float* selves = static_cast<float*>(own.mutable_data_ptr());
  const float scale = 1.0f / std::sqrt(static_cast<float>(width));
  with_type(queries, "queries", [&](auto type) {
    using T = decltype(type);
    parallel_for(0, batch * heads, 1, [&](int64_t begin, int64_t end) {
      Head head(n, width);
      std::vector<float> buffer(kLanes * head.keys.width);
      for (int64_t i = begin; i < end; ++i) {
        const Rows<T> from = rows_of<T>(queries, i / heads, i % heads), to = rows_of<T>(keys, i / heads, i % heads);
        std::fill(head.received.begin(), head.received.end(), 0.0f);
        std::fill(head.bias.begin(), head.bias.end(), -INFINITY);
        for (int64_t k = 0; k < n; ++k) head.bias[k] = logits ? logits[i / heads * n + k] : 0.0f;
        for (int64_t part = 0; part < head.keys.parts(); ++part)
          pack(head.keys, part, buffer.data(), [&](int64_t row, float* out) {
            to.expect(std::min(row + kAhead, n - 1));
            to.read(row, out);
          });
        for (int64_t first = 0; first < n; first += kTile) {
          const int64_t here = std::min<int64_t>(kTile, n - first);
          float largest[kTile];
          for (int64_t row = 0; row < here; ++row) {
            from.expect(std::min(first + row + kAhead, n - 1));
            from.read(first + row, buffer.data());
            for (int64_t k = 0; k < width; ++k) buffer[k] *= scale;
            head.queries.put(row, 1, buffer.data());
          }
          head.multiply(largest);
          head.give(largest, first, here, selves + i * n + first);
        }
        std::copy_n(head.received.data(), n, all + i * n);
      }
    });
  });
  return {received, own};
}

namespace {

typedef double Doubles __attribute__((vector_size(kLanes * 8)));

// The energy of PiToMe of the rows of one image, times their number.
struct Energy {
  float margin, alpha;
  bool above_margin;  // tokens above it count by how far they are
  Sources a;
  Targets b;
  std::vector<float> own;

  Energy(int64_t n, int64_t width, double margin, double alpha, bool above_margin)
      : margin(static_cast<float>(margin)), alpha(static_cast<float>(alpha)), above_margin(above_margin),
        a(n, width), b(n, width), own(n) {}

  // Of each row of a tile; sums of floats this close are exact in double, so that equal energies come out equal.
  void of_tile(int64_t tile, double* out) const {
    Floats sums[kTile][2];
    Doubles totals[kTile] = {};
    for (int64_t panel = 0; panel < b.blocks(); ++panel) {
      const int halves = b.count - panel * kPanel > kLanes ? 2 : 1;
      if (halves == 2) products<2>(a.at(tile), b.at(panel), a.width, sums);
      else products<1>(a.at(tile), b.at(panel), a.width, sums);
      for (int r = 0; r < kTile; ++r)
        for (int h = 0; h < halves; ++h) totals[r] += terms(sums[r][h], tile * kTile + r, panel * kPanel + h * kLanes);
    }
    for (int64_t row = tile * kTile; row < std::min((tile + 1) * kTile, a.count); ++row) {
      out[row] = 0;
      for (int i = 0; i < kLanes; ++i) out[row] += totals[row - tile * kTile][i];
    }
  }

  // What the tokens from `first` on add to the energy of token `row`.
  Doubles terms(Floats cosine, int64_t row, int64_t first) const {
    if (row >= first && row < first + kLanes && row < a.count) cosine[row - first] = own[row];
    Floats found = pitome_term<Floats>(cosine, exponential(cosine - margin), margin, alpha, above_margin);
    for (int64_t i = std::max<int64_t>(0, b.count - first); i < kLanes; ++i) found[i] = 0;
    return __builtin_convertvector(found, Doubles);
  }
};

}  // namespace

Tensor pitome_energy(const Tensor& given, double margin, double alpha, bool above_margin) {
  const Tensor metric = with_rows(given);
  check(metric, "metric", {-1, -1, -1});
  const int64_t batch = metric.size(0), n = metric.size(1), width = metric.size(2);
  const Tensor out = uninitialised(metric, {batch, n}, ScalarType::Double);
  double* energies = static_cast<double*>(out.mutable_data_ptr());
  with_type(metric, "metric", [&](auto type) {
    using T = decltype(type);
    const auto of_image = [&](int64_t image) {
      Energy energy(n, width, margin, alpha, above_margin);
      const Rows<T> tokens = rows_of<T>(metric, image, 0);
      parallel_for(0, energy.b.parts(), grain(4 * kLanes * width), [&](int64_t begin, int64_t end) {
        std::vector<float> buffer(kLanes * energy.b.width);
        // Once for both sides: compiled twice it rounds in two ways, and the two cosines of a pair differ.
        for (int64_t part = begin; part < end; ++part) {
          pack(energy.b, part, buffer.data(), [&](int64_t i, float* row) {
            tokens.read(i, row);
            const float squares = squares_of(row, width), length = inverse_length(squares);
            for (int64_t k = 0; k < width; ++k) row[k] *= length;
            energy.own[i] = own_cosine(squares, length);
          });
          energy.a.put(part * kLanes, std::min<int64_t>(kLanes, n - part * kLanes), buffer.data());
        }
      });
      parallel_for(0, energy.a.blocks(), grain(kTile * n * (width + 32) / kLanes), [&](int64_t begin, int64_t end) {
        for (int64_t tile = begin; tile < end; ++tile) energy.of_tile(tile, energies + image * n);
      });
    };
    for_images(batch, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image) of_image(image);
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(tokenreduce_kernels, CPU, m) {
  m.impl("attention_statistics", TORCH_BOX(&attention_statistics));
  m.impl("pitome_energy", TORCH_BOX(&pitome_energy));
}

}  // namespace tokenreduce
