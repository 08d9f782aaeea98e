// What the state-space kernels are given: checked, in the type they compute in, rows read where they lie.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "../tensors.h"

namespace tokenreduce {

// Rows `(B, L, width)` in memory, or nothing.
template <typename Real>
struct Rows3 {
  const Real* data = nullptr;
  int64_t image = 0, row = 0;

  Rows3() = default;
  explicit Rows3(const Tensor& tensor)
      : data(static_cast<const Real*>(tensor.const_data_ptr())), image(tensor.stride(0)), row(tensor.stride(1)) {}
  explicit Rows3(const std::optional<Tensor>& tensor) {
    if (tensor) *this = Rows3(*tensor);
  }

  explicit operator bool() const { return data; }
  const Real* at(int64_t i, int64_t number) const { return data + i * image + number * row; }
};

// fp64 where x is, else fp32.
inline ScalarType computed_in(const Tensor& x) {
  with_type(x, "x", [](auto) {});
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor converted(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

// The tensor, checked, in the type that is computed in.
inline Tensor taken(const Tensor& tensor, const char* name, const std::vector<int64_t>& shape, const Tensor& x) {
  check(tensor, name, shape);
  if (tensor.scalar_type() != ScalarType::Float && tensor.scalar_type() != x.scalar_type())
    fail(name, " must be float32 or of the type of x");
  return with_rows(converted(tensor, computed_in(x)));
}
inline std::optional<Tensor> taken(
    const std::optional<Tensor>& tensor, const char* name, const std::vector<int64_t>& shape, const Tensor& x) {
  return tensor ? std::optional<Tensor>(taken(*tensor, name, shape, x)) : tensor;
}

// Runs `body` with a value of the type that is computed in.
template <typename Body>
void with_real(const Tensor& x, const Body& body) {
  if (computed_in(x) == ScalarType::Double) body(double{}); else body(float{});
}

template <typename Real>
Real* written(const Tensor& tensor) {
  return static_cast<Real*>(tensor.mutable_data_ptr());
}

}  // namespace tokenreduce
