"""What developers run on the sources; nothing here ships, and the packages never import it.

The root of the checkout is on the path: `python -m tools.aot.kernels`, `from tools.aot import rules`.
"""
