// Outputs of integer maps in the ascending order of the tokens that represent them, for models that scan their tokens.
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <tuple>
#include <vector>

#include "../tensors.h"

namespace tokenreduce {

std::tuple<Tensor, Tensor> order_outputs(const Tensor& given_dest, const Tensor& given_rep) {
  check(given_dest, "dest", {-1, -1}), check(given_rep, "rep", {given_dest.size(0), -1});
  const int64_t batch = given_dest.size(0), n = given_dest.size(1), keep = given_rep.size(1);
  const Index dest = check_index(given_dest, "dest", batch, n, keep), rep = check_index(given_rep, "rep", batch, keep, n);
  const Tensor new_dest = uninitialised(given_dest, {batch, n}), new_rep = uninitialised(given_dest, {batch, keep});
  std::vector<int64_t> order(keep), rank(keep);
  for (int64_t image = 0; image < batch; ++image) {
    const int64_t *from = rep[image], *joins = dest[image];
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [from](int64_t a, int64_t b) { return from[a] < from[b]; });
    int64_t *to_rep = static_cast<int64_t*>(new_rep.mutable_data_ptr()) + image * keep,
            *to_dest = static_cast<int64_t*>(new_dest.mutable_data_ptr()) + image * n;
    for (int64_t i = 0; i < keep; ++i) rank[order[i]] = i, to_rep[i] = from[order[i]];
    for (int64_t i = 0; i < n; ++i) to_dest[i] = rank[joins[i]];
  }
  return {new_dest, new_rep};
}

STABLE_TORCH_LIBRARY_IMPL(tokenreduce_kernels, CPU, m) { m.impl("order_outputs", TORCH_BOX(&order_outputs)); }

}  // namespace tokenreduce
