"""Oracles for tests and benchmarks: inputs, error budget, score matrices, poisoned and fenced memory, peak
memory, guards around interpreted kernels.

Nothing here is imported by the rest of the package.
"""
