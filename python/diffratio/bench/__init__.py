"""Latency and memory of one routed block beside what a user would run instead."""

from .block import BlockBenchmark, run_block_benchmark

__all__ = ["BlockBenchmark", "run_block_benchmark"]
