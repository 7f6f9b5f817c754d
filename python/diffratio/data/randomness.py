"""Random numbers that depend on names and indices alone, on every machine and in any order of access."""

from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

# The constants of splitmix64.
_STEP = 0x9E3779B97F4A7C15
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))


def uniforms(seed: int, items: Tensor, count: int) -> Tensor:
    """Return float64 ``[n, count]`` in [0, 1): row j is a function of ``(seed, items[j])``, int64 ``[n]``."""
    rows = _mix(items.numpy().astype(np.uint64) + np.uint64(seed * _STEP % 2**64))
    columns = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_STEP)
    bits = _mix(_mix(rows[:, None] + columns))
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def embedding(name: str, width: int) -> Tensor:
    """Return float32 ``[width]`` of standard normal numbers that stand for ``name``: a frozen embedding."""
    seed = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
    first, second = uniforms(seed, torch.zeros(1, dtype=torch.int64), 2 * width)[0].chunk(2)
    radius = torch.sqrt(-2 * torch.log1p(-first))
    return (radius * torch.cos(2 * torch.pi * second)).float()


def mixed_seed(*numbers: int) -> int:
    """32 well mixed bits of whole numbers: torch's CPU generator looks at no more of its seed."""
    return int(np.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(1)[0])
