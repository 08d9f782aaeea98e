// Checks of tensors that come from outside; messages name the tensor.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

// Its name up to torch 2.12.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

namespace tokenreduce {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  ((message << parts), ...);
  throw std::runtime_error(message.str());
}

inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << ")";
  return text.str();
}

// -1 is any size.
inline void check_shape(const Tensor& tensor, const char* name, const std::vector<int64_t>& shape) {
  bool fits = tensor.dim() == static_cast<int64_t>(shape.size());
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] < 0 || tensor.size(i) == shape[i];
  if (fits) return;
  std::ostringstream wanted;
  for (size_t i = 0; i < shape.size(); ++i) {
    wanted << (i ? ", " : "");
    if (shape[i] < 0) wanted << "any"; else wanted << shape[i];
  }
  fail(name, " has shape ", shape_of(tensor), "; it must be (", wanted.str(), ")");
}

inline void check_protected(const char* name, int64_t tokens, int64_t prefix, int64_t suffix) {
  if (prefix < 0 || suffix < 0 || prefix > tokens || suffix > tokens - prefix)
    fail(name, " has ", tokens, " tokens; ", prefix, " + ", suffix, " are protected");
}

// A CPU tensor of this shape.
inline void check(const Tensor& tensor, const char* name, const std::vector<int64_t>& shape) {
  if (!tensor.is_cpu()) fail(name, " is not on the CPU");
  check_shape(tensor, name, shape);
}

inline void check_type(const Tensor& tensor, const char* name, ScalarType type, const char* type_name) {
  if (tensor.scalar_type() != type) fail(name, " must be ", type_name);
}

// The tensor, or a copy of it, whose rows can be read one element after the other.
inline Tensor with_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  const bool together = last < 0 || !tensor.numel() || tensor.size(last) == 1 || tensor.stride(last) == 1;
  return together ? tensor : torch::stable::contiguous(tensor);
}

// The tensor, or a copy of it, whose elements stand one after the other.
inline Tensor in_a_row(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}
inline std::optional<Tensor> in_a_row(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(in_a_row(*tensor)) : tensor;
}

// A new tensor on the device of `like`, of its type or of `type`. Not `torch::stable::new_empty`, which goes through the
// dispatcher twice: at batch 1 that takes longer than what is written into most of these tensors.
inline Tensor uninitialised(const Tensor& like, const std::vector<int64_t>& shape, std::optional<ScalarType> type = {}) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(shape[i], 1);
  int32_t dtype = 0, device = 0, index = 0;
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  if (type) dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(*type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  const int64_t dims = static_cast<int64_t>(shape.size());
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dims, shape.data(), strides.data(), dtype, device, index, &made));
  return Tensor(made);
}

// An int64 index (rows, columns).
struct Index {
  Tensor owner;
  const int64_t* data;
  int64_t stride;

  const int64_t* operator[](int64_t row) const { return data + row * stride; }
};

// An index of this shape with entries in [0, bound).
inline Index check_index(const Tensor& tensor, const char* name, int64_t rows, int64_t columns, int64_t bound) {
  check(tensor, name, {rows, columns});
  check_type(tensor, name, ScalarType::Long, "int64");
  const Tensor owner = with_rows(tensor);
  const Index index{owner, static_cast<const int64_t*>(owner.const_data_ptr()), owner.stride(0)};
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < columns; ++i)
      if (index[row][i] < 0 || index[row][i] >= bound)
        fail(name, " holds ", index[row][i], "; its entries must lie in [0, ", bound, ")");
  return index;
}

// Runs `body` with a value of the element type of a floating tensor.
template <typename Body>
void with_type(const Tensor& tensor, const char* name, const Body& body) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return body(float{});
    case ScalarType::Double: return body(double{});
    case ScalarType::Half: return body(torch::headeronly::Half{});
    case ScalarType::BFloat16: return body(torch::headeronly::BFloat16{});
    default: fail(name, " must be float32, float64, float16 or bfloat16");
  }
}

// Iterations a thread should do at least, if one costs `work` operations.
inline int64_t grain(int64_t work) { return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, work)); }

}  // namespace tokenreduce
