// The operators: one schema each, whatever the device.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(tokenreduce_kernels, m) {
  m.def("bipartite_match(Tensor metric, int keep, int first) -> (Tensor, Tensor, Tensor)");
  m.def(
      "ward_match(Tensor features, Tensor? sizes, Tensor? signs, int width, int[] counts, int first) -> "
      "(Tensor, Tensor, Tensor)");
  m.def(
      "ward_cluster(Tensor metric, Tensor? sizes, Tensor? signs, int width, bool directions, int keep) -> "
      "(Tensor, Tensor, Tensor)");
  m.def(
      "ward_in_place(Tensor features, Tensor positions, Tensor? sizes, Tensor? signs, int width, float nearness, "
      "int keep) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "merge_apply(Tensor x, Tensor dest, Tensor rep, Tensor sources, Tensor? sizes, int prefix, int suffix) -> "
      "(Tensor, Tensor, Tensor)");
  m.def(
      "bipartite_merge(Tensor x, Tensor metric, Tensor? sizes, int keep, int first, int prefix, int suffix) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("size_bias(Tensor sizes, int prefix, int suffix) -> Tensor");
  m.def("attention_statistics(Tensor queries, Tensor keys, Tensor? bias) -> (Tensor, Tensor)");
  m.def("class_rows(Tensor queries, Tensor keys, Tensor? bias, int class_tokens) -> Tensor");
  m.def("pitome_energy(Tensor metric, float margin, float alpha, bool above_margin) -> Tensor");
  m.def(
      "restore_apply(Tensor y, Tensor dest, Tensor? before, Tensor? after, int prefix, int suffix) -> Tensor");
  m.def(
      "krige_apply(Tensor y, Tensor dest, Tensor before, Tensor after, int prefix, int suffix, int nearest, "
      "float reach, float ridge, float least) -> Tensor");
  m.def(
      "selective_scan(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? decay_dt, "
      "Tensor? dt_bias, Tensor? order, Tensor? scale, bool softplus, bool reverse) -> Tensor");
  m.def(
      "selective_scan_backward(Tensor grad, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
      "Tensor? decay_dt, Tensor? dt_bias, Tensor? order, Tensor? scale, bool softplus, bool reverse) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("order_outputs(Tensor dest, Tensor rep) -> (Tensor, Tensor)");
  m.def(
      "scan_walks(Tensor origin, Tensor stands, Tensor sizes, int place, int prefix, int taps) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def("causal_conv(Tensor x, Tensor weight, Tensor? bias, Tensor? taps, bool reverse) -> Tensor");
  m.def(
      "causal_conv_backward(Tensor grad, Tensor x, Tensor weight, Tensor? bias, Tensor? taps, bool reverse) -> "
      "(Tensor, Tensor, Tensor)");
}
