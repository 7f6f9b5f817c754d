"""The error budget: at most twice the error of the same mathematics in eager PyTorch in the same dtype."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

worst: dict[str, float] = {}
"""Name of a check -> the largest part of its budget that any comparison used (1 is the limit)."""


def check_budget(
    name: str,
    actual: Tensor,
    peer: Tensor,
    gold: Tensor,
    factor: float = 2.0,
    shaken: Sequence[Tensor] = (),
    scale: float = 0.0,
    terms: int = 1,
) -> float:
    """Assert the bound and return the part of it that was used.

    actual: the kernel; peer: the reference in the working dtype; gold: the reference in fp64 on the same
    rounded inputs. With e = |. - gold|:  max e(actual) <= factor * max e(peer) + 2 eps max|gold|  and
    rms e(actual) <= factor/2 (1.5 rms e(peer) + eps rms(gold)), so that no bias hides under one bad element.
    The factor is 2, and 3 for gradients through attention.

    The peer can be right by luck, and which draws it is lucky on depends on the processor. So its error
    counts as no less than what its dtype and `terms`, the length of the longest sum in the operator, imply
    (`least_error`). Where that says too little, because results sum roundings of intermediate values,
    `shaken` are gold results on inputs moved by half an ulp (see `shake`): errors that no computation in this
    dtype can be blamed for. The largest counts. `scale` is the size of terms that cancel to nothing in the
    gold result.
    """
    if actual.shape != gold.shape or actual.dtype != peer.dtype:
        raise AssertionError(
            f"{name}: got {actual.dtype} {tuple(actual.shape)}, expected {peer.dtype} {tuple(gold.shape)}"
        )
    if actual.numel() == 0:
        return 0.0
    eps = torch.finfo(actual.dtype).eps
    gold = gold.double()
    error = actual.double() - gold
    size_max, size_rms = gold.abs().max().clamp(min=scale), _rms(gold).clamp(min=scale)
    least_max, least_rms = least_error(actual.dtype, terms)
    peer_max, peer_rms = least_max * size_max, least_rms * size_rms
    for other in (peer, *shaken):
        other_error = other.double() - gold
        peer_max = torch.maximum(peer_max, other_error.abs().max())
        peer_rms = torch.maximum(peer_rms, _rms(other_error))
    limit = factor * peer_max + 2 * eps * size_max
    rms_limit = factor / 2 * (1.5 * peer_rms + eps * size_rms)
    used = max(_part(error.abs().max(), limit), _part(_rms(error), rms_limit))
    worst[name] = max(worst.get(name, 0.0), used)
    if not used <= 1:
        raise AssertionError(
            f"{name}: error max {error.abs().max():.3e} rms {_rms(error):.3e} over the budget "
            f"max {limit:.3e} rms {rms_limit:.3e} ({used:.2f} of it)"
        )
    return used


def least_error(dtype: torch.dtype, terms: int) -> tuple[float, float]:
    """Relative error, at its worst element and in the root mean square, that any computation may have.

    One rounding at the store, eps/2 at most and eps/(2 sqrt 3) in the mean; and that of adding `terms` = n
    numbers in fp32 (fp64 for fp64), each addition with a rounding of u = eps/2. The latter stays below
    lambda sqrt(n) u times the sum of the magnitudes with a probability that grows as 1 - 2 exp(-lambda^2/2)
    (Higham and Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41(5),
    2019); here lambda is 1 and the magnitude that of the result, which is smaller. Its root mean square is
    sqrt(n/6) u: the k-th of n partial sums has sqrt(k/n) of the size of the last, and rounds by u/sqrt 3.
    """
    rounding = torch.finfo(dtype).eps / 2
    adding = torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2 * math.sqrt(terms)
    return rounding + adding, rounding / math.sqrt(3) + adding / math.sqrt(6)


def longest_sum(arguments: dict) -> int:
    """The longest dimension of the floating arguments: no operator adds up along more than one at a time."""
    tensors = [t for t in arguments.values() if isinstance(t, Tensor) and t.is_floating_point()]
    return max((size for t in tensors for size in t.shape), default=1)


def _rms(t: Tensor) -> Tensor:
    return t.square().mean().sqrt()


def _part(error: Tensor, limit: Tensor) -> float:
    return 0.0 if error == 0 else (error / limit).item()


def gradients(
    function: Callable[..., Tensor], arguments: dict, seed: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output of `function(**arguments)` and the gradient of every floating argument, by name.

    The incoming gradient is drawn from the seed, the same for every dtype.
    """
    leaves = {
        name: value.detach().clone().requires_grad_()
        for name, value in arguments.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    out = function(**(arguments | leaves))
    generator = torch.Generator().manual_seed(seed)
    grad_out = torch.randn(out.shape, generator=generator).to(torch.bfloat16).to(out.device, out.dtype)
    if not out.requires_grad:
        return out, {}
    grads = torch.autograd.grad(out, list(leaves.values()), grad_out, allow_unused=True)
    return out.detach(), {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
    }


def shake(arguments: dict, dtype: torch.dtype, seed: int) -> dict:
    """The floating arguments in fp64, each element moved by up to half an ulp of `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    half_ulp = torch.finfo(dtype).eps / 2

    def move(t: Tensor) -> Tensor:
        noise = torch.rand(t.shape, generator=generator, dtype=torch.double)
        return t.double() * (1 + half_ulp * (2 * noise.to(t.device) - 1))

    return {
        name: move(value) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }
