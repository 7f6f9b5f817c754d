"""Step caching by diffusers: the other blocks are skipped in steps whose first block changed little."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

from torch import Tensor, nn


def median_change(model: nn.Module, run: Callable[[], object]) -> float:
    """How much what the first block adds changes from a step to the next, relative to its size: the median
    over the steps of `run`. As a threshold of First-Block-Cache it skips up to half of the steps."""
    changes, before = [], None

    def note(block: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal before
        added = out - inputs[0]
        if before is not None:
            changes.append((added - before).abs().mean() / before.abs().mean())
        before = added

    handle = model.transformer_blocks[0].register_forward_hook(note)
    try:
        run()
    finally:
        handle.remove()
    return median(float(change) for change in changes)


class Computed:
    """How many steps ran the last block."""

    def __init__(self) -> None:
        self.steps = 0


@contextmanager
def first_block_cache(model: nn.Module, threshold: float) -> Iterator[Computed]:
    """First-Block-Cache on a diffusers transformer for the calls of one sampling run.

    It is applied anew for every run: its state outlives a run, and would compare the first step with the last
    one of the run before.
    """
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache
    from diffusers.models.cache_utils import CacheMixin

    computed, last = Computed(), model.transformer_blocks[-1]
    own, forward = vars(last).get("forward"), last.forward

    def counted(*args, **kwargs):
        computed.steps += 1
        return forward(*args, **kwargs)

    last.forward = counted
    config = FirstBlockCacheConfig(threshold=threshold)
    apply_first_block_cache(model, config)
    try:
        # PixArt does not inherit the mixin; its methods need the hooks of a model only.
        with CacheMixin.cache_context(model, "sampling"):
            yield computed
    finally:
        model._cache_config = config
        CacheMixin.disable_cache(model)
        del last.forward
        if own is not None:
            last.forward = own
