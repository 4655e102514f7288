"""What selection costs, every figure a ratio of two things measured alternately: ``python -m benchmarks --help``."""
