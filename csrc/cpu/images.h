// Dividing the images of a batch among threads.
#pragma once

#include <cstdint>

#include "../tensors.h"

namespace tokenreduce {

using torch::stable::parallel_for;

// Runs `body(begin, end)` on ranges of images. Each thread gets images of its own if all get nearly as many, so that
// what one step leaves in its cache the next one reads. Else images follow each other, threads share the loops within.
template <typename Body>
void for_images(int64_t batch, const Body& body) {
  const int64_t threads = torch::stable::get_num_threads(), each = (batch + threads - 1) / threads;
  if (8 * each * threads <= 9 * batch) parallel_for(0, batch, 1, body); else body(0, batch);
}

}  // namespace tokenreduce
