"""What was made and what was there, as one picture: the seam smoothed, everything outside of the mask as it
was, bit by bit."""

import torch
from torch import Tensor

_STEPS = 2000  # of conjugate gradients; a smooth correction needs about as many as the hole is wide
_TOLERANCE = 1e-4  # of the residual's norm
_LOOK_EVERY = 20  # steps; looking waits for the device


def pasted(made: Tensor, picture: Tensor, mask: Tensor) -> Tensor:
    """`made` where the mask is, `picture` elsewhere, in the dtype of `picture`.

    Args:
        made, picture: [B, C, H, W].
        mask: [B, 1, H, W] bool.
    """
    return torch.where(mask, made.to(picture), picture)


def poisson_blended(made: Tensor, picture: Tensor, mask: Tensor) -> Tensor:
    """`made` in the mask, with its own differences between neighbours, and `picture` around it.

    The Poisson equation of image editing (Perez, Gangnet, Blake 2003): inside, the discrete Laplacian of the
    result is that of `made`; the pixels beside the mask are those of `picture`. What is added to `made` is
    harmonic, so a seam between two brightnesses becomes a slope. A mask that covers the whole picture has no
    seam: then it is `made`.

    Args:
        made, picture: [B, C, H, W], floating point.
        mask: [B, 1, H, W] bool.

    Returns:
        [B, C, H, W], outside of the mask bit-equal to `picture`.
    """
    inside = mask.to(torch.float32)
    gap = (picture - made).float()
    neighbours = _neighbours(torch.ones_like(inside))
    wanted = inside * _neighbours(gap * (1 - inside))

    def laplacian(x: Tensor) -> Tensor:
        return inside * (neighbours * x - _neighbours(x))

    return pasted(made + _solved(laplacian, wanted).to(made), picture, mask)


def _neighbours(x: Tensor) -> Tensor:
    """The sum of the four neighbours in the picture."""
    total = torch.zeros_like(x)
    total[..., 1:, :] += x[..., :-1, :]
    total[..., :-1, :] += x[..., 1:, :]
    total[..., :, 1:] += x[..., :, :-1]
    total[..., :, :-1] += x[..., :, 1:]
    return total


def _solved(operator, wanted: Tensor) -> Tensor:
    """x with operator(x) = wanted [B, C, H, W], by conjugate gradients, each channel on its own."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((-2, -1), keepdim=True)

    x, residual = torch.zeros_like(wanted), wanted.clone()
    direction, size = residual.clone(), dot(wanted, wanted)
    enough = size * _TOLERANCE**2
    for step in range(_STEPS):
        if step % _LOOK_EVERY == 0 and bool((size <= enough).all()):
            break
        along = operator(direction)
        pace = size / dot(direction, along).clamp(min=1e-30)
        x += pace * direction
        residual -= pace * along
        now = dot(residual, residual)
        direction = residual + now / size.clamp(min=1e-30) * direction
        size = now
    return x
