// Gradients of parameters: what each image adds to them, summed in the order of the images.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../tensors.h"
#include "scan_inputs.h"

namespace tokenreduce {

// So many rows of one number for each channel, for each image; every one is to be written.
template <typename Real>
class PerImage {
 public:
  PerImage(int64_t images, int64_t rows, int64_t channels)
      : images_(images), rows_(rows), channels_(channels), values_(images * rows * channels) {}

  Real* at(int64_t image, int64_t row) { return values_.data() + (image * rows_ + row) * channels_; }

  // `(E, count)`: the sums over images of the rows from `first` on, one column each.
  Tensor total(const Tensor& like, int64_t first, int64_t count) {
    const Tensor out = uninitialised(like, {channels_, count});
    Real* to = written<Real>(out);
    std::vector<Real> sums(channels_);
    for (int64_t n = 0; n < count; ++n) {
      std::fill(sums.begin(), sums.end(), Real(0));
      for (int64_t image = 0; image < images_; ++image) {
        const Real* row = at(image, first + n);
        for (int64_t e = 0; e < channels_; ++e) sums[e] += row[e];
      }
      for (int64_t e = 0; e < channels_; ++e) to[e * count + n] = sums[e];
    }
    return out;
  }

  // `(E)`: the same of one row.
  Tensor total(const Tensor& like, int64_t row) { return torch::stable::view(total(like, row, 1), {channels_}); }

 private:
  int64_t images_, rows_, channels_;
  std::vector<Real> values_;
};

}  // namespace tokenreduce
