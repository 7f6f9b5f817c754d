"""A PixArt-Sigma-sized transformer from diffusers: dense, compiled, and routed at one ratio everywhere."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from diffratio import DiffRatioConfig, cuda_graphs
from diffratio.baselines import apply_baseline
from diffratio.evaluation.flops import TransformerShape, transformer_flops
from diffratio.evaluation.flops.baselines import baseline_kept
from diffratio.routing.apply import route_blocks
from diffratio.routing.find import routed_layers
from diffratio.routing.state import RoutedLayer
from diffratio_kernels import kept_tokens, reference, route
from diffratio_kernels.blocks.stream import Call
from diffratio_kernels.testing.budget import check_budget
from diffratio_kernels.testing.cases import cast

from ..harness.options import Options
from ..harness.subject import Candidate, Subject

CAPTION_CHANNELS = 4096
COMPILED = 0.5
"""Where the routed model is compiled too."""


class Models:
    """One model with random weights, made when first asked for, and its twins on the same weights."""

    def __init__(self, options: Options):
        self.options, self.twins, self.open = options, {}, ExitStack()

    def copied(self) -> nn.Module:
        """Another model of the same parameters and buffers."""
        shared = {id(t): t for t in (*self.dense.parameters(), *self.dense.buffers())}
        return copy.deepcopy(self.dense, shared)

    @cached_property
    def dense(self) -> nn.Module:
        """The diffusers model itself."""
        from diffusers import PixArtTransformer2DModel

        o = self.options
        torch.manual_seed(0)
        with torch.device(o.device):
            model = PixArtTransformer2DModel(
                num_layers=o.layers,
                num_attention_heads=o.heads,
                attention_head_dim=o.width // o.heads,
                cross_attention_dim=o.width,
                sample_size=side(o),
                caption_channels=CAPTION_CHANNELS,
                use_additional_conditions=False,
            )
        return model.to(o.dtype).eval().requires_grad_(False)


@dataclass(frozen=True)
class Twin:
    """One way to run the model of all twins, made ready when first called for.

    kept: our blocks at this kept part everywhere (uniform MoD), None for the dense model. compiled: block by
    block, as diffusers advises, so that one compilation serves all layers. captured: calls replay CUDA graphs
    from the second on. baseline: of `diffratio.baselines`.
    """

    models: Models
    kept: float | None = None
    compiled: bool = False
    captured: bool = False
    baseline: str | None = None

    @property
    def model(self) -> nn.Module:
        models = self.models
        if self not in models.twins:
            models.twins[self] = self._made()
        return models.twins[self]

    def _made(self) -> nn.Module:
        if self == Twin(self.models):
            return self.models.dense
        model = self.models.copied()
        if self.kept is not None:
            route_blocks(model, DiffRatioConfig(compression=round(1 - self.kept, 1)))
        if self.baseline is not None:
            apply_baseline(model, self.baseline)
        if self.compiled:
            for block in model.transformer_blocks:
                block.compile(mode=self.models.options.compile_mode, dynamic=False)
        if self.captured:
            self.models.open.enter_context(cuda_graphs(model))
        return model

    def forward(self, case: dict[str, Tensor]) -> Tensor:
        return self.model(**case, return_dict=False)[0]

    def verify(self, case: dict[str, Tensor]) -> None:
        """Assert that blocks of the routed model, whichever way it is run, are within the error budget on
        what one sample's run gives them."""
        model = Twin(self.models, self.kept).model
        check_blocks(model, lambda: model(**{name: t[:1] for name, t in case.items()}, return_dict=False))


def check_blocks(model: nn.Module, call: Callable[[], object]) -> None:
    """Assert that the first, middle and last block of a routed model are within the error budget on what
    `call`, of the model on one sample, gives them."""
    layers, calls = routed_layers(model), {}

    def note(block, args, kwargs, out):
        calls[block] = args, kwargs, out

    chosen = [layers[i] for i in sorted({0, len(layers) // 2, len(layers) - 1})]
    hooks = [layer.block.register_forward_hook(note, with_kwargs=True) for layer in chosen]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    for layer in chosen:
        args, kwargs, out = calls[layer.block]
        own = _arguments(layer, layer.spec.bind(layer.block, *args, **kwargs))
        peer, gold = reference.mod_block(**own), reference.mod_block(**cast(own, torch.float64))
        check_budget(f"block {layer.number} of the model", out, peer, gold)


def _arguments(layer: RoutedLayer, call: Call) -> dict[str, Any]:
    """Those of `reference.mod_block` for a call of a block that is bound to raw weights."""
    image, cross, router = call.image, call.after_attention, layer.block.diffratio
    project, rescale = image.attention.project, layer.model.rescale
    keep = [kept_tokens(layer.kept[0], image.tokens.shape[1])]
    given = {"x": image.tokens, "router_weight": router.router_weight, "keep": keep}
    index = route(**given, router_bias=router.router_bias)[0]
    own = given | {
        "router_bias": router.router_bias, "index": index, "modulation": image.modulation,
        "qkv_weight": torch.cat([part.weight for part in project]),
        "qkv_bias": torch.cat([part.bias for part in project]), "num_heads": image.attention.heads,
        "context_kv": cross.keys_values, "context_lengths": cross.lengths,
        "rescale": rescale.mode, "score_scale": rescale.score_scale,
        "eps": image.eps, "mlp_eps": image.mlp_eps,
    }  # fmt: skip
    linears = {
        "out": image.attention.out, "fc1": image.mlp.fc1, "fc2": image.mlp.fc2,
        "cross_q": cross.query, "cross_out": cross.out,
    }  # fmt: skip
    for name, linear in linears.items():
        own |= {f"{name}_weight": linear.weight, f"{name}_bias": linear.bias}
    return own


def side(options: Options) -> int:
    """Of the latent: patches of 2 x 2 places are the tokens."""
    root = isqrt(options.tokens)
    if root**2 != options.tokens:
        raise ValueError(f"tokens={options.tokens} must be a square: the latent is one")
    return 2 * root


@dataclass(frozen=True)
class Inputs:
    """Seed -> one call's arguments, random."""

    options: Options

    def __call__(self, seed: int) -> dict[str, Tensor]:
        options = self.options
        torch.manual_seed(seed)
        draw = {"device": options.device, "dtype": options.dtype}
        return {
            "hidden_states": torch.randn(options.batch, 4, side(options), side(options), **draw),
            "encoder_hidden_states": torch.randn(options.batch, options.text, CAPTION_CHANNELS, **draw),
            "timestep": torch.full((options.batch,), 500, device=options.device),
        }


def flops(
    options: Options, kept: float | None, cached_text: bool = False, baseline: str | None = None
) -> int:
    """Of one forward; kept None is the dense model, which has no routers. cached_text: the text's keys and
    values are there already."""
    keep, method = None if kept is None else kept_tokens(round(10 * kept), options.tokens), None
    shape = TransformerShape(
        options.layers, options.width, options.heads, options.tokens, options.text,
        caption_channels=CAPTION_CHANNELS,
    )  # fmt: skip
    if baseline is not None:
        keep, method = baseline_kept(baseline, shape)
    counted = transformer_flops(shape, keep, batch=options.batch, method=method, cache_text_kv=cached_text)
    return round(counted.total)


def subjects(options: Options) -> Iterator[Subject]:
    """One forward at one timestep."""
    yield of_a_model("model", "PixArt transformer", options, _candidates(options))


def of_a_model(suite: str, name: str, options: Options, candidates: Iterator[Candidate]) -> Subject:
    """Of what is called as a whole transformer is."""
    side(options)  # complains before anything is made
    return Subject(
        suite=suite,
        name=name,
        dtype=options.dtype,
        shape=options.shape("layers"),
        make=Inputs(options),
        case_bytes=options.weight_bytes(options.layers),
        candidates=tuple(candidates),
    )


def _candidates(options: Options) -> Iterator[Candidate]:
    models, work = Models(options), flops(options, None)
    yield Candidate("diffusers dense", Twin(models).forward, flops=work)
    if options.compile_mode is not None:
        yield Candidate("dense, compiled", Twin(models, compiled=True).forward, flops=work)
    for name in options.baselines:
        yield Candidate(name, Twin(models, baseline=name).forward, flops=flops(options, None, baseline=name))
    for kept in options.kept:
        twin, about = Twin(models, kept), {"kept": kept, "flops": flops(options, kept), "ours": True}
        yield Candidate("diffratio", twin.forward, twin.verify, **about)
        if options.compile_mode is not None and kept == COMPILED:
            twin = Twin(models, kept, compiled=True)
            yield Candidate("diffratio, compiled", twin.forward, twin.verify, **about)
