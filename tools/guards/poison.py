"""Memory that nobody wrote must not look like a result."""

from __future__ import annotations

from contextlib import contextmanager

import torch


@contextmanager
def poisoned_memory():
    """Inside, `torch.empty` and its relatives are filled with NaN (integers with their largest value)."""
    was_on, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filled
