"""One seed of one Triton kernel, forward and backward, against the reference."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffratio_kernels.testing.budget import check_budget, longest_sum, shake
from diffratio_kernels.testing.cases import cast, on_device

from ..guards.interpreter import guarded
from .calls import ALL, random_call

EXACT = ("rows", "index", "cu_seqlens", "row_map")
"""Results that are copies or choices."""
SUMS = ("logits", "pre", "inner", "joined", "joined in place", "joined from x", "put", "put in place")
"""Outputs that sum many terms and can be right in the peer by luck, as gradients can."""
ENOUGH, MOST_DRAWS = 48, 8
"""Errors of few numbers are a matter of luck: a case is drawn again until its results hold ENOUGH that are
not zero, but not more than MOST_DRAWS times."""


def bits(t: Tensor) -> Tensor:
    """A tensor's bits as integers: NaN equals itself and -0 differs from +0."""
    return t.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


def same_bits(actual: Tensor, expected: Tensor) -> bool:
    """Whether two tensors agree in every bit."""
    return actual.dtype == expected.dtype and torch.equal(bits(actual), bits(expected))


def assert_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The results by name that are expected, among others."""
    for name, result in expected.items():
        assert same_bits(actual[name], result), name


def check_kernels(seed: int, device: str = "cpu", family: str = "one bin") -> None:
    """Assert that the kernels of a random call stay within the error budget, guarded."""
    name, dtype, arguments = random_call(seed, device, family=family)
    try:
        check_call(name, arguments, seed, lambda again: random_call(seed, device, again, family)[2])
    except Exception as error:
        call = f"{seed}, {device!r}" + (f", {family!r}" if family != "one bin" else "")
        again = f"again: tools.launchers.check.check_kernels({call})"
        raise AssertionError(f"{again}  # {name} {dtype}: {error}") from error


def check_call(
    name: str, arguments: dict, seed: int, drawn_again: Callable[[int], dict] | None = None
) -> None:
    """The same for a call of any size.

    drawn_again: the same call with other numbers, for results of few of them.
    """
    dtype = next(t.dtype for t in arguments.values() if isinstance(t, Tensor) and t.is_floating_point())
    results = _results(name, arguments, seed)
    scales = _cancelled(name, results, arguments)
    counts = [kinds[2].count_nonzero().item() for kinds in results.values()]
    fewest = min((count for count in counts if count), default=ENOUGH)
    for again in range(1, min(-(-ENOUGH // fewest), MOST_DRAWS) if drawn_again else 1):
        more = _results(name, drawn_again(again), seed)
        for key, kinds in results.items():
            results[key] = [
                torch.cat([a.flatten(), b.flatten()]) for a, b in zip(kinds, more[key], strict=True)
            ]
    for key, (actual, peer, gold, *shaken) in results.items():
        gradient = key.startswith("d ")
        check_budget(
            f"triton {name} {str(dtype).removeprefix('torch.')}: {key}", actual, peer, gold,
            factor=3 if gradient and name.endswith("attention") else 2,
            shaken=shaken if gradient or key in SUMS else (),
            scale=scales.get(key, 0.0), terms=longest_sum(arguments),
        )  # fmt: skip


def _results(name: str, arguments: dict, seed: int) -> dict[str, list[Tensor]]:
    """Every result of a call: of the kernel, the peer, in fp64, and in fp64 on shaken arguments."""
    operator = ALL[name]
    with guarded(seed):
        actual = on_device(operator.kernels(**arguments), "cpu")
    peer = on_device(operator.reference(**arguments), "cpu")
    arguments = on_device(arguments, "cpu")
    gold = operator.reference(**cast(arguments, torch.float64))
    assert actual.keys() == gold.keys(), f"{actual.keys()} instead of {gold.keys()}"
    results, shaken = {}, {}
    for key, result in actual.items():
        right = peer[key]
        assert result.shape == right.shape, f"{key}: {tuple(result.shape)} instead of {tuple(right.shape)}"
        if key in EXACT:
            assert same_bits(result, right), key
            continue
        # Kernels leave gradients that are sums over rows in fp32.
        assert result.dtype in (right.dtype, torch.float32), f"{key}: {result.dtype}"
        if right.dtype not in shaken:
            moved = [shake(arguments, right.dtype, seed + j) for j in range(4)]
            shaken[right.dtype] = [operator.reference(**other) for other in moved]
        others = [other[key] for other in shaken[right.dtype]]
        results[key] = [result.to(right.dtype), right, gold[key], *others]
    return results


def _cancelled(name: str, results: dict, arguments: dict) -> dict[str, float]:
    """Size of the terms of gradients through the softmax of one logit, which cancel to nothing."""
    if not name.endswith("attention") or results["d query"][2].any():
        return {}
    names = "grad_out", "value", "key", "query"
    sizes = [arguments[key].nan_to_num().abs() for key in names]
    grad_out, value, key, query = (t.max().item() if t.numel() else 0.0 for t in sizes)
    return {"d query": grad_out * value * key, "d key": grad_out * value * query}
