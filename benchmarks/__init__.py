"""Benchmarks of what selection costs: ``python -m benchmarks --help``."""
