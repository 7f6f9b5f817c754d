"""Cases of the operators: a whole block drawn from one seed, and every operator as a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import diffratio_kernels

from .. import reference
from .._backends import BACKENDS

LAYOUTS = ("contiguous", "transposed", "sliced", "offset", "expanded")


def laid_out(t: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout ("expanded" repeats the first sample by stride 0)."""
    if layout == "transposed" and t.dim() >= 2:
        return t.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":
        return torch.stack([t, t.flip(0)], dim=-1)[..., 0]
    if layout == "offset":  # one element past any alignment
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)
    if layout == "expanded" and t.dim() >= 2:
        return t[:1].expand(t.shape)
    return t


@dataclass(frozen=True)
class ModBlockCase:
    """Everything that defines one call of `mod_block`: B, N, H, D = H * head_dim, F, M text tokens."""

    seed: int
    batch: int = 2
    tokens: int = 24
    heads: int = 2
    head_dim: int = 16
    hidden: int = 48
    text: int | None = 5
    ragged_text: bool = False
    keep: tuple[int, ...] = (13,)
    biases: bool = True
    router_bias: bool = False
    rescale: str = "mlp"
    score_scale: float = 1.0
    layout: str = "contiguous"
    dtype: torch.dtype = torch.float32

    @property
    def full_keep(self) -> list[int]:
        """One kept count per sample."""
        return list(self.keep) * (self.batch if len(self.keep) == 1 else 1)

    def arguments(self) -> dict:
        """The arguments of `mod_block` by name, drawn in float32 and rounded to the case's dtype."""
        generator = torch.Generator().manual_seed(self.seed)
        width = self.heads * self.head_dim

        def draw(*shape, std=1.0):
            return (torch.randn(*shape, generator=generator) * std).to(self.dtype)

        def linear(out, inner):
            bias = draw(out, std=0.1)
            return draw(out, inner, std=inner**-0.5), bias if self.biases else None

        arguments = {
            "x": laid_out(draw(self.batch, self.tokens, width), self.layout),
            "router_weight": draw(width, std=2 * width**-0.5),
            "keep": list(self.keep),
            "modulation": laid_out(draw(self.batch, 6, width, std=0.3), self.layout),
        }
        for name, out, inner in (
            ("qkv", 3 * width, width),
            ("out", width, width),
            ("fc1", self.hidden, width),
            ("fc2", width, self.hidden),
        ):
            arguments[f"{name}_weight"], arguments[f"{name}_bias"] = linear(out, inner)
        arguments["num_heads"] = self.heads
        router_bias = draw(1)
        arguments["router_bias"] = router_bias if self.router_bias else None
        if self.text is not None:
            arguments["context_kv"] = draw(self.batch, self.text, 2, width)
            if self.ragged_text:
                lengths = torch.randint(0, self.text + 1, (self.batch,), generator=generator)
                arguments["context_lengths"] = lengths.to(torch.int32)
            for name in ("cross_q", "cross_out"):
                arguments[f"{name}_weight"], arguments[f"{name}_bias"] = linear(width, width)
        return arguments | {"rescale": self.rescale, "score_scale": self.score_scale}


@dataclass(frozen=True)
class TwoBinCase(ModBlockCase):
    """Everything that defines one call of `two_bin_block`: `keep` is what the large bin keeps."""

    keep_small: tuple[int, ...] = (7,)
    weight_large: tuple[float, ...] = (0.3, 0.8)

    @property
    def full_keep_small(self) -> list[int]:
        return list(self.keep_small) * (self.batch if len(self.keep_small) == 1 else 1)

    def arguments(self) -> dict:
        """The arguments of `two_bin_block` by name; the weights are float32 at least."""
        block = super().arguments()
        keep_large = block.pop("keep")
        weight = torch.tensor(self.weight_large, dtype=torch.promote_types(self.dtype, torch.float32))
        return block | {
            "keep_small": list(self.keep_small),
            "keep_large": keep_large,
            "weight_large": weight,
        }


def cast(arguments: dict, dtype: torch.dtype) -> dict:
    """The same arguments with every floating tensor in another dtype."""
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


def on_device(arguments: dict, device: str) -> dict:
    """The same arguments with every tensor on a device; layouts are kept on the CPU only."""
    return {n: v.to(device) if isinstance(v, Tensor) else v for n, v in arguments.items()}


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
"""What `operator_calls` makes its calls of, unless told otherwise."""
WITHOUT_GRADIENT = ("scatter_rescale_",)


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
    logits = reference.router_logits(x, block["router_weight"], block["router_bias"])
    index, offsets = reference.select_tokens(logits, keep, keep_small)
    cu_seqlens_small = reference.cu_seqlens_of(keep_small, offsets.device)
    generator = torch.Generator().manual_seed(case.seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(case.dtype)

    rows, both = len(index), len(index) + sum(keep_small)
    query, key, value = (draw(rows, case.heads, case.head_dim) for _ in range(3))
    offsets = {"cu_seqlens_large": offsets, "cu_seqlens_small": cu_seqlens_small}
    bins = {"weight_large": block["weight_large"], **offsets}
    longest = {"max_seqlen_large": max(keep, default=0), "max_seqlen_small": max(keep_small, default=0)}
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
    diffratio_kernels.scatter_rescale_(x, **arguments)
    return x


def heads_arguments(case: ModBlockCase, index: Tensor, generator: torch.Generator) -> dict:
    """`qk_norm_rope` of packed rows: rms norms, a table for every sample."""
    heads, width = case.heads, case.head_dim
    angle = torch.rand(case.batch, case.tokens, 1, width // 2, generator=generator) * 6

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(case.dtype)

    return {
        "query": draw(len(index), heads * width), "key": draw(len(index), heads * width),
        "value": draw(len(index), heads * width), "index": index, "tokens": case.tokens, "heads": heads,
        "kv_heads": heads, "norm": "rms", "query_weight": draw(width), "key_weight": draw(width),
        "cos": angle.cos(), "sin": angle.sin(),
    }  # fmt: skip


def operator_calls(
    backend: str, dtype: torch.dtype, device: str, seed: int = 1, case: ModBlockCase = CASE
) -> dict[str, Call]:
    """Operator -> its call, for every operator that has this backend ("auto": all of them).

    Another seed gives other values in the same shapes.
    """
    case = replace(case, seed=seed, dtype=dtype)
    block = case.arguments()
    x, modulation = block["x"], block["modulation"]
    logits = reference.router_logits(x, block["router_weight"], block["router_bias"])
    index, offsets = reference.select_tokens(logits, case.full_keep)
    generator = torch.Generator().manual_seed(seed)
    rows, branch = (torch.randn(len(index), x.shape[2], generator=generator).to(dtype) for _ in range(2))
    query, key, value = (
        torch.randn(len(index), case.heads, case.head_dim, generator=generator) for _ in range(3)
    )
    inner = torch.randn(2, len(index), case.hidden, generator=generator).to(dtype)
    shift, scale, gate = modulation.unbind(1)[:3]
    put = {"index": index, "hidden": rows, "branch": branch, "gate": gate, "logits": logits}
    longest = max(case.full_keep)
    arguments = {
        "route": {name: block[name] for name in ("x", "router_weight", "keep", "router_bias")},
        "gather_adaln": {"x": x, "index": index, "shift": shift, "scale": scale},
        "adaln": {"rows": rows, "index": index, "tokens": case.tokens, "shift": shift, "scale": scale},
        "gate_residual": {n: put[n] for n in ("hidden", "branch", "gate", "index")} | {"tokens": case.tokens},
        "qk_norm_rope": heads_arguments(case, index, generator),
        "attention": {
            "query": query.to(dtype), "key": key.to(dtype), "value": value.to(dtype),
            "cu_seqlens_q": offsets, "cu_seqlens_k": offsets,
            "max_seqlen_q": longest, "max_seqlen_k": longest,
        },
        "mlp": {"rows": rows} | {n: block[n] for n in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")},
        "activation": {
            "gate": inner[0], "value": inner[1], "index": index, "logits": logits, "kind": "silu",
            "score_scale": 2.0,
        },
        "scatter_rescale": {"x": x, **put},
        "scatter_rescale_": {"x": x, **put},
        "mod_block": block,
    }  # fmt: skip
    two_bins = two_bin_arguments(two_bins_of(case))
    arguments |= {op: values for op, values in two_bins.items() if op != "route"}
    calls = {}
    for op, values in arguments.items():
        if backend not in ("auto", *BACKENDS[op.removesuffix("_")]):
            continue
        function = _scatter_rescale_ if op == "scatter_rescale_" else getattr(diffratio_kernels, op)
        own = {n: t.clone() if isinstance(t, Tensor) else t for n, t in on_device(values, device).items()}
        calls[op] = Call(function, own | {"backend": backend}, op not in WITHOUT_GRADIENT)
    return calls
