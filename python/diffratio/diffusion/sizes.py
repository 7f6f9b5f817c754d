"""What PixArt-alpha at 1024 pixels is told of the size of its pictures."""

from torch import Tensor


def told_sizes(sizes: Tensor | None) -> dict[str, Tensor | None]:
    """`added_cond_kwargs` of heights and widths in pixels [B, 2]; None for models that are told nothing."""
    aspect = None if sizes is None else sizes[:, :1] / sizes[:, 1:]
    return {"resolution": sizes, "aspect_ratio": aspect}
