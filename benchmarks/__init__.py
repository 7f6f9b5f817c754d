"""What measures the package: it needs a checkout of the repository and is in no wheel.

Run its scripts in the root of the checkout: `python -m benchmarks.performance.write`.
"""
