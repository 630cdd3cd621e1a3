"""Benchmarks: ``python -m benchmarks NAME [--json]``. A and B interleaved in one run, medians and ratios, no flags needed."""
