"""The stages of `benchmarks/gpu.py`, one a file: `run(session)` measures and writes rows."""
