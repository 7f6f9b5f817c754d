"""One block of every family at one size: diffusers' own beside ours, as they run inside of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from diffratio import DiffRatioConfig
from diffratio.evaluation.flops.counted import count_preset
from diffratio.evaluation.models import Draw, Preset, Size, model_inputs
from diffratio.routing.apply import route_blocks
from diffratio.routing.find import routed_layers
from diffratio_kernels import kept_tokens
from diffratio_kernels.blocks.joint import with_pinned
from diffratio_kernels.blocks.products import run_of
from diffratio_kernels.blocks.routed import routed
from diffratio_kernels.ops.route.op import run_route
from diffratio_kernels.types import Linear, Rescale

from ..harness.options import Options
from ..harness.subject import Candidate, Subject

TOLERANCE = 64
"""Of the norm of a result, in units of its dtype's eps: more is an error."""


@dataclass(frozen=True)
class Family:
    """A model of few layers, and which of its routed ones is measured.

    config: sizes -> the model's. side: places of the latent for a token along each side.
    """

    model: str
    config: Callable[[Options], dict[str, Any]]
    layer: int = 0
    side: int = 2

    def preset(self, options: Options) -> Preset:
        """The model, and one call of it with N tokens and M of text."""
        rows = next(n for n in range(isqrt(options.tokens), 0, -1) if options.tokens % n == 0)
        size = Size(self.side * rows, self.side * (options.tokens // rows), options.text, 1, options.batch)
        return Preset(self.model, size, self.config(options))


def _axes(options: Options) -> tuple[int, int, int]:
    """Channels of a head for each axis of its positions."""
    own = options.width // options.heads
    side = 3 * own // 16 * 2
    return own - 2 * side, side, side


def _few(options: Options, share: int) -> int:
    """Heads of keys and values, which so many queries share where that divides them."""
    return options.heads // share if options.heads % share == 0 else options.heads


def _heads(options: Options, **more) -> dict[str, Any]:
    own = {"num_attention_heads": options.heads, "attention_head_dim": options.width // options.heads}
    return own | {"num_layers": 1} | more


def _flux(options: Options) -> dict[str, Any]:
    return _heads(options, num_single_layers=1, joint_attention_dim=64, axes_dims_rope=_axes(options))


def _flux2(options: Options) -> dict[str, Any]:
    axes = (options.width // options.heads // 4,) * 4
    return _flux(options) | {"axes_dims_rope": axes}


def _hunyuan_video(options: Options) -> dict[str, Any]:
    return _heads(
        options, num_single_layers=1, num_refiner_layers=1, text_embed_dim=64, rope_axes_dim=_axes(options)
    )


def _krea2(options: Options) -> dict[str, Any]:
    return _heads(
        options, num_key_value_heads=_few(options, 4), intermediate_size=8 * options.width // 3,
        text_hidden_dim=64, num_text_layers=1, text_num_attention_heads=2, text_num_key_value_heads=2,
        text_intermediate_size=64, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
        axes_dims_rope=_axes(options),
    )  # fmt: skip


def _ltx(options: Options) -> dict[str, Any]:
    return _heads(options, cross_attention_dim=options.width, caption_channels=64)


def _lumina2(options: Options) -> dict[str, Any]:
    return {
        "hidden_size": options.width, "num_layers": 1, "num_refiner_layers": 1, "cap_feat_dim": 64,
        "num_attention_heads": options.heads, "num_kv_heads": _few(options, 3),
        "axes_dim_rope": _axes(options), "axes_lens": (4096, 512, 512),
    }  # fmt: skip


def _minimax_h3(options: Options) -> dict[str, Any]:
    own, width = options.width // options.heads, options.width
    return _heads(
        options, hidden_size=width, num_refiner_layers=1, ffn_dim=8 * width // 3, text_dim=64,
        time_embed_hidden_dim=width, time_embed_dim=width // 2, rope_freq_dim=own // 8,
    )  # fmt: skip


def _qwen_image(options: Options) -> dict[str, Any]:
    return _heads(options, joint_attention_dim=64, axes_dims_rope=_axes(options))


def _sd3(options: Options) -> dict[str, Any]:
    """One block of each kind; the last one, which ends the text, is not measured."""
    return _heads(
        options, num_layers=3, joint_attention_dim=64, caption_projection_dim=options.width,
        pooled_projection_dim=64, pos_embed_max_size=192, qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip


def _wan(options: Options) -> dict[str, Any]:
    return _heads(options, ffn_dim=27 * options.width // 10, text_dim=64)


def _z_image(options: Options) -> dict[str, Any]:
    return {
        "dim": options.width, "n_layers": 1, "n_refiner_layers": 1, "n_heads": options.heads,
        "n_kv_heads": options.heads, "cap_feat_dim": 64, "axes_dims": _axes(options),
        "axes_lens": (4096, 512, 512),
    }  # fmt: skip


FAMILIES = {
    "flux-double": Family("FluxTransformer2DModel", _flux),
    "flux-single": Family("FluxTransformer2DModel", _flux, layer=1),
    "z-image": Family("ZImageTransformer2DModel", _z_image),
    "qwen-image": Family("QwenImageTransformer2DModel", _qwen_image),
    "wan": Family("WanTransformer3DModel", _wan),
    "flux2-double": Family("Flux2Transformer2DModel", _flux2),
    "flux2-single": Family("Flux2Transformer2DModel", _flux2, layer=1),
    "krea2": Family("Krea2Transformer2DModel", _krea2),
    "ltx": Family("LTXVideoTransformer3DModel", _ltx, side=1),
    "hunyuan-double": Family("HunyuanVideoTransformer3DModel", _hunyuan_video),
    "hunyuan-single": Family("HunyuanVideoTransformer3DModel", _hunyuan_video, layer=1),
    "sd3.5-dual": Family("SD3Transformer2DModel", _sd3),
    "sd3.5": Family("SD3Transformer2DModel", _sd3, layer=1),
    "lumina2": Family("Lumina2Transformer2DModel", _lumina2),
    "minimax-h3": Family("MiniMaxH3Transformer3DModel", _minimax_h3),
}


class FamilyCase:
    """A block with random weights, and what a call of its model gives it."""

    def __init__(self, family: Family, options: Options, seed: int = 0):
        torch.manual_seed(seed)
        preset, given = family.preset(options), {}
        model = preset.make(options.device, options.dtype).requires_grad_(False)
        route_blocks(model, DiffRatioConfig(0.0))
        self.layer, self.model = routed_layers(model)[family.layer], model

        def note(block, args, kwargs):
            given.update(args=args, kwargs=kwargs)

        hook = self.layer.block.register_forward_pre_hook(note, with_kwargs=True)
        model(**model_inputs(model, preset.size, Draw(options.device, options.dtype)))
        hook.remove()
        self.args, self.kwargs = given["args"], given["kwargs"]
        model._diffratio_model.memo = {}  # what the blocks of one call share is made by the first of them

    def dense(self) -> Any:
        return self.layer.dense_forward(*self.args, **self.kwargs)

    def routed(self, tenths: int) -> Any:
        self.layer.kept = [tenths]
        return self.layer.block(*self.args, **self.kwargs)

    def unscored(self) -> Any:
        """With all tokens and without scores: what the dense block gives."""
        shared = self.layer.model
        rescale, shared.rescale = shared.rescale, Rescale("none")
        try:
            return self.routed(10)
        finally:
            shared.rescale = rescale

    def expected(self, tenths: int) -> Any:
        """The same by eager steps."""
        layer, router = self.layer, self.layer.block.diffratio
        call = layer.spec.bind(layer.block, *self.args, **self.kwargs)
        x, layout, rescale = call.image.tokens, call.layout, layer.model.rescale
        run = run_of("mod_block", "reference", "auto", x, direct=False)
        if layout is not None:
            x = x.gather(1, layout.order[:, : max(layout.routed), None].expand(-1, -1, x.shape[2]))
        weights = Linear(router.router_weight, router.router_bias)
        rows, logits = run_route(run, x, weights, [kept_tokens(tenths, x.shape[1])])
        if layout is not None:
            rows, logits = with_pinned(layout, rows, logits, rescale.score_scale)
        return routed(call, rows, logits, rescale, run)


@dataclass(frozen=True)
class Routed:
    """A block that keeps so many tenths."""

    tenths: int

    def run(self, case: FamilyCase) -> Any:
        return case.routed(self.tenths)

    def verify(self, case: FamilyCase) -> None:
        """Assert that it gives what eager steps give, and the dense block where all is kept."""
        _check(self.run(case), case.expected(self.tenths), "eager steps")
        if self.tenths == 10:
            _check(case.unscored(), case.dense(), "the dense block")


def _check(found: Any, expected: Any, name: str) -> None:
    for one, other in zip(_tensors(found), _tensors(expected), strict=True):
        error, size = (one - other).float().norm().item(), other.float().norm().item()
        if not error <= TOLERANCE * torch.finfo(one.dtype).eps * size:
            raise AssertionError(f"a block differs from {name} by {error / size:.3g} of its size")


def _tensors(value: Any) -> list[Tensor]:
    return [t for t in tree_leaves(value) if isinstance(t, Tensor)]


@dataclass(frozen=True)
class Cases:
    """Seed -> a case of its own."""

    family: Family
    options: Options

    def __call__(self, seed: int) -> FamilyCase:
        return FamilyCase(self.family, self.options, seed)


def subjects(options: Options) -> Iterator[Subject]:
    """FLOPs are those that are counted on the meta device, of a whole batch."""
    unknown = [name for name in options.families if name not in FAMILIES]
    if unknown:
        raise ValueError(f"family={unknown[0]!r} must be one of {', '.join(FAMILIES)}")
    for name in options.families or FAMILIES:
        yield _subject(name, options)


def _subject(name: str, options: Options) -> Subject:
    family, tenths = FAMILIES[name], [round(10 * part) for part in options.kept]
    block = count_preset(family.preset(options), tenths).blocks[family.layer]
    routes = [
        Candidate("diffratio", Routed(n).run, Routed(n).verify, n / 10, block.kept[n].flops, ours=True)
        for n in tenths
    ]
    return Subject(
        suite="family",
        name=name,
        dtype=options.dtype,
        shape=options.shape(),
        make=Cases(family, options),
        case_bytes=options.weight_bytes() + 2 * options.row_bytes(),
        candidates=(Candidate("diffusers dense", FamilyCase.dense, flops=block.dense.flops), *routes),
    )
