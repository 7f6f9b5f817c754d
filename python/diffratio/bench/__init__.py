"""Latency and memory of one routed block, inference and training, beside what a user would run instead."""

from .block import BlockBenchmark, run_block_benchmark
from .training import run_training_benchmark

__all__ = ["BlockBenchmark", "run_block_benchmark", "run_training_benchmark"]
