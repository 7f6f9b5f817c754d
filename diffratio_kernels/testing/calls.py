"""Every public operator as a call with its arguments, forward and backward: to capture, repeat, sanitize."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import ops, reference
from .inputs import ModBlockCase, TwoBinCase, on_device

CASE = ModBlockCase(
    seed=1,
    tokens=48,
    heads=2,
    head_dim=72,
    hidden=136,
    keep=(29,),
    text=7,
    ragged_text=True,
    router_bias=True,
)
"""What the calls are made of, unless told otherwise."""
WITHOUT_GRADIENT = ("scatter_rescale_", "mod_block_next")


@dataclass(frozen=True)
class Call:
    """An operator with arguments that may be overwritten in place: the next run sees the new values."""

    function: Callable
    arguments: dict
    differentiable: bool = True

    def forward(self) -> tuple[Tensor, ...]:
        """All outputs, without autograd."""
        with torch.no_grad():
            return _tuple(self.function(**self.arguments))

    def training(self) -> tuple[Tensor, ...]:
        """All outputs, then the gradients of all floating arguments; each output is its incoming gradient."""
        leaves = {
            name: t.detach().requires_grad_()
            for name, t in self.arguments.items()
            if isinstance(t, Tensor) and t.is_floating_point()
        }
        outs = _tuple(self.function(**self.arguments | leaves))
        reached = [out for out in outs if out.requires_grad]
        incoming = [out.detach() for out in reached]
        grads = torch.autograd.grad(reached, list(leaves.values()), incoming, materialize_grads=True)
        return *(out.detach() for out in outs), *grads

    def runs(self) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
        """What can be run, by name: "forward" and, where there are gradients, "training"."""
        return {"forward": self.forward} | ({"training": self.training} if self.differentiable else {})

    def overwrite(self, other: Call) -> None:
        """Take over the values of another call with the same shapes."""
        for name, t in self.arguments.items():
            if isinstance(t, Tensor):
                t.copy_(other.arguments[name])


def two_bins_of(case: ModBlockCase) -> TwoBinCase:
    """The same with a small bin of half the tokens, and weights from the seed."""
    weights = torch.rand(case.batch, generator=torch.Generator().manual_seed(case.seed)).tolist()
    small = tuple(k // 2 for k in case.keep)
    return TwoBinCase(**vars(case), keep_small=small, weight_large=tuple(weights))


def two_bin_arguments(case: TwoBinCase) -> dict[str, dict]:
    """Operator -> the arguments that `two_bin_block` of a case, or something like it, calls it with."""
    block = case.arguments()
    x, gate = block["x"], block["modulation"][:, 2]
    keep, keep_small = case.full_keep, case.full_keep_small
    router = {name: block[name] for name in ("x", "router_weight", "router_bias")}
    index, offsets, logits = reference.route(
        x, block["router_weight"], keep, block["router_bias"], keep_small=keep_small
    )
    small_offsets = reference.packed_offsets(keep_small, offsets.device)
    generator = torch.Generator().manual_seed(case.seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(case.dtype)

    rows, both = len(index), len(index) + sum(keep_small)
    query, key, value = (draw(rows, case.heads, case.head_dim) for _ in range(3))
    offsets = {"large_offsets": offsets, "small_offsets": small_offsets}
    bins = {"weight_large": block["weight_large"], **offsets}
    longest = {"longest_large": max(keep, default=0), "longest_small": max(keep_small, default=0)}
    return {
        "route": router | {"keep": block["keep_large"], "keep_small": block["keep_small"]},
        "two_bin_gelu": {"pre": draw(both, case.hidden), **bins, "rows": rows},
        "two_bin_blend": {
            "x": x, "index": index, "hidden": draw(both, x.shape[2]), "branch": draw(rows, x.shape[2]),
            "gate": gate, "logits": logits, **bins,
            "rescale": case.rescale, "score_scale": case.score_scale,
        },
        "two_bin_attention": {
            "query": query, "key": key, "value": value, **offsets, **longest, "small": sum(keep_small),
        },
        "two_bin_block": block,
    }  # fmt: skip


def _tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _scatter_rescale_(x: Tensor, **arguments) -> Tensor:
    x = x.clone()
    ops.scatter_rescale_(x, **arguments)
    return x


def operator_calls(
    implementation: str, dtype: torch.dtype, device: str, seed: int = 1, case: ModBlockCase = CASE
) -> dict[str, Call]:
    """Operator -> its call, for every operator that has this implementation ("auto": all of them).

    Another seed gives other values in the same shapes.
    """
    case = replace(case, seed=seed, dtype=dtype)
    block = case.arguments()
    x, modulation = block["x"], block["modulation"]
    index, offsets, logits = reference.route(x, block["router_weight"], case.full_keep, block["router_bias"])
    generator = torch.Generator().manual_seed(seed)
    rows, branch = (torch.randn(len(index), x.shape[2], generator=generator).to(dtype) for _ in range(2))
    query, key, value = (
        torch.randn(len(index), case.heads, case.head_dim, generator=generator) for _ in range(3)
    )
    shift, scale, gate = modulation.unbind(1)[:3]
    put = {"index": index, "hidden": rows, "branch": branch, "gate": gate, "logits": logits}
    longest = max(case.full_keep)
    arguments = {
        "route": {name: block[name] for name in ("x", "router_weight", "keep", "router_bias")},
        "gather_adaln": {"x": x, "index": index, "shift": shift, "scale": scale},
        "adaln": {"rows": rows, "index": index, "tokens": case.tokens, "shift": shift, "scale": scale},
        "gate_residual": {n: put[n] for n in ("hidden", "branch", "gate", "index")} | {"tokens": case.tokens},
        "attention": {
            "query": query.to(dtype), "key": key.to(dtype), "value": value.to(dtype),
            "query_offsets": offsets, "key_offsets": offsets, "max_query": longest, "max_key": longest,
        },
        "mlp": {"rows": rows} | {n: block[n] for n in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")},
        "scatter_rescale": {"x": x, **put},
        "scatter_rescale_": {"x": x, **put},
        "mod_block": block,
        "mod_block_next": block | {
            "logits": logits, "next_router_weight": block["router_weight"].flip(0), "next_router_bias": None,
        },
    }  # fmt: skip
    two_bins = two_bin_arguments(two_bins_of(case))
    arguments |= {op: values for op, values in two_bins.items() if op != "route"}
    calls = {}
    for op, values in arguments.items():
        known = ops.IMPLEMENTATIONS[op.removesuffix("_").removesuffix("_next")]
        if implementation not in ("auto", *known):
            continue
        function = _scatter_rescale_ if op == "scatter_rescale_" else getattr(ops, op)
        own = {n: t.clone() if isinstance(t, Tensor) else t for n, t in on_device(values, device).items()}
        calls[op] = Call(function, own | {"implementation": implementation}, op not in WITHOUT_GRADIENT)
    return calls
