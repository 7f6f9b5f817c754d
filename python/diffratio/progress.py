"""The progress bar of all long work."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


def progress_bar(iterable: Iterable | None = None, *, show: bool = True, **options) -> tqdm:
    """A tqdm bar on standard error where that is a terminal, else nothing: a log holds no bars.

    Args:
        iterable: what to go through; None for a bar that is moved on with `update`.
        show: False hides it on a terminal too.
        options: of tqdm.
    """
    return tqdm(iterable, file=sys.stderr, disable=None if show else True, **options)
