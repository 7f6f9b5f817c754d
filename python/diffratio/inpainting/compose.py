"""What was made and what was there, as one picture: the seam smoothed, everything outside of the mask as it
was, bit by bit."""

import torch
import torch.nn.functional as F
from torch import Tensor

_COARSEST = 16  # pixels of a side
_TOLERANCE = 1e-4  # of the residual's norm
_LOOK_EVERY = 10  # steps; looking waits for the device


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
    result is that of `made`; the pixels beside the mask are those of `picture`. So what is added to `made` is
    harmonic, and a seam between two brightnesses becomes a slope. A mask that covers the whole picture has no
    seam: then it is `made`.

    Args:
        made, picture: [B, C, H, W], floating point.
        mask: [B, 1, H, W] bool.

    Returns:
        [B, C, H, W], outside of the mask bit-equal to `picture`.
    """
    rows, columns = (_span(mask.any(dim=0).any(dim=dim).flatten()) for dim in (2, 1))
    part = (..., rows, columns)
    blended = made.clone()
    blended[part] += _harmonic((picture - made)[part].float(), mask[part]).to(made)
    return pasted(blended, picture, mask)


def _span(marked: Tensor) -> slice:
    """From the pixel before the first that is marked to the one behind the last."""
    places = marked.nonzero().flatten().tolist() or [0]
    return slice(max(places[0] - 1, 0), places[-1] + 2)


def _harmonic(values: Tensor, mask: Tensor) -> Tensor:
    """Zero outside of the mask; inside each pixel is the mean of its neighbours, of which those outside have
    their `values` [B, C, H, W].

    By conjugate gradients, from what half the resolution gives (cascadic multigrid: Bornemann, Deuflhard
    1996).
    """
    inside, known = mask.to(values), values.masked_fill(mask, 0)
    count = _neighbours(torch.ones_like(inside))

    def laplacian(x: Tensor) -> Tensor:
        return inside * (count * x - _neighbours(x))

    start = torch.zeros_like(values)
    if min(values.shape[-2:]) > _COARSEST:
        share = F.avg_pool2d(1 - inside, 2, ceil_mode=True)
        half = F.avg_pool2d(known, 2, ceil_mode=True) / share.clamp(min=1e-6)
        half = half + _harmonic(half, share == 0)
        start = inside * F.interpolate(half, values.shape[-2:], mode="bilinear")
    return _solved(laplacian, inside * _neighbours(known), start)


def _neighbours(x: Tensor) -> Tensor:
    """The sum of the four neighbours in the picture."""
    total = torch.zeros_like(x)
    total[..., 1:, :] += x[..., :-1, :]
    total[..., :-1, :] += x[..., 1:, :]
    total[..., :, 1:] += x[..., :, :-1]
    total[..., :, :-1] += x[..., :, 1:]
    return total


def _solved(operator, wanted: Tensor, x: Tensor) -> Tensor:
    """operator(x) = wanted [B, C, H, W] by conjugate gradients from x on, each channel on its own."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((-2, -1), keepdim=True)

    residual = wanted - operator(x)
    direction, size = residual.clone(), dot(residual, residual)
    enough = dot(wanted, wanted) * _TOLERANCE**2
    for step in range(wanted[0, 0].numel()):  # exact arithmetic needs no more
        if step % _LOOK_EVERY == 0 and bool((size <= enough).all()):
            break
        along = operator(direction)
        pace = size / dot(direction, along).clamp(min=1e-30)
        x = torch.addcmul(x, pace, direction)
        residual.addcmul_(pace, along, value=-1)
        now = dot(residual, residual)
        direction.mul_(now / size.clamp(min=1e-30)).add_(residual)
        size = now
    return x
