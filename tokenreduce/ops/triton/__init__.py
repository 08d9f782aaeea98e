"""Operators for GPUs in Triton, which comes with PyTorch: users compile nothing. Imported only where it can run."""
