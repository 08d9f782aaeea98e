"""Kernels beside their PyTorch references: one file each, the reference in it as oracle and fallback."""
