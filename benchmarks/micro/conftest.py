"""Micro-benchmarks import what `benchmarks/gpu.py` measures, and the library of this clone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import gpu  # noqa: F401  finds the clone
