"""Benchmarks by part; each module names its own in BENCHMARKS, `bench.py` runs them."""
