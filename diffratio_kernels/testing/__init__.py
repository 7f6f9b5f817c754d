"""Oracles for tests and benchmarks: inputs, error budget, score matrices, poisoned memory, peak memory.

Nothing here is imported by the rest of the package.
"""
