"""A PixArt-Sigma-sized transformer from diffusers: dense, compiled, and routed at one ratio everywhere."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property, partial
from math import isqrt

import torch
from torch import Tensor, nn

from diffratio_kernels import kept_tokens, reference, route
from diffratio_kernels.testing.budget import check_budget
from diffratio_kernels.testing.inputs import cast

from ... import DiffRatioConfig, cuda_graphs
from ...flops import TransformerShape, transformer_flops
from ...integrations import spec_for
from ...one_matrix import concatenated
from ...patch import route_blocks
from ..options import Options
from ..subject import Candidate, Subject

CAPTION_CHANNELS = 4096
COMPILED = 0.5
"""Where the routed model is compiled too."""
Prepare = Callable[[nn.Module], nn.Module]


class Models:
    """One model with random weights, made when first asked for, and its twins on the same weights."""

    def __init__(self, options: Options):
        self.options, self.twins, self.open = options, {}, ExitStack()

    def twin(self, name: object, prepare: Prepare) -> nn.Module:
        """A copy of the model as `prepare` leaves it."""
        if name not in self.twins:
            shared = {id(t): t for t in (*self._dense.parameters(), *self._dense.buffers())}
            self.twins[name] = prepare(copy.deepcopy(self._dense, shared))
        return self.twins[name]

    def captured(self, kept: float) -> nn.Module:
        """The routed model, whose calls replay CUDA graphs from the second on."""

        def prepare(model: nn.Module) -> nn.Module:
            self.open.enter_context(cuda_graphs(routed(kept, model)))
            return model

        return self.twin(("captured", kept), prepare)

    def dense(self) -> nn.Module:
        """The diffusers model itself."""
        return self._dense

    @cached_property
    def _dense(self) -> nn.Module:
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


def side(options: Options) -> int:
    """Of the latent: patches of 2 x 2 places are the tokens."""
    root = isqrt(options.tokens)
    if root**2 != options.tokens:
        raise ValueError(f"tokens={options.tokens} must be a square: the latent is one")
    return 2 * root


def inputs(options: Options, seed: int) -> dict[str, Tensor]:
    """One call's arguments, random."""
    torch.manual_seed(seed)
    draw = {"device": options.device, "dtype": options.dtype}
    return {
        "hidden_states": torch.randn(options.batch, 4, side(options), side(options), **draw),
        "encoder_hidden_states": torch.randn(options.batch, options.text, CAPTION_CHANNELS, **draw),
        "timestep": torch.full((options.batch,), 500, device=options.device),
    }


def routed(kept: float, model: nn.Module) -> nn.Module:
    """Our blocks at one kept ratio everywhere: uniform MoD."""
    return route_blocks(model, DiffRatioConfig(compression=round(1 - kept, 1)))


def compiled_blocks(mode: str, model: nn.Module) -> nn.Module:
    """Block by block, as diffusers advises: one compilation serves all layers."""
    for block in model.transformer_blocks:
        block.compile(mode=mode, dynamic=False)
    return model


def compiled_routed(mode: str, kept: float, model: nn.Module) -> nn.Module:
    return compiled_blocks(mode, routed(kept, model))


def flops(options: Options, kept: float | None, cached_text: bool = False) -> int:
    """Of one forward; kept None is the dense model, which has no routers. cached_text: the text's keys and
    values are there already."""
    keep = None if kept is None else kept_tokens(round(10 * kept), options.tokens)
    shape = TransformerShape(
        options.layers, options.width, options.heads, options.tokens, options.text,
        caption_channels=CAPTION_CHANNELS,
    )  # fmt: skip
    return transformer_flops(shape, keep, batch=options.batch, cache_text_kv=cached_text).total


def subjects(options: Options) -> Iterator[Subject]:
    """One forward at one timestep."""
    side(options)  # complains before anything is made
    models = Models(options)

    def candidates() -> Iterator[Candidate]:
        dense = partial(Candidate, flops=flops(options, None))
        yield dense("diffusers dense", partial(_run, models.dense))
        if options.compile_mode is not None:
            prepare = partial(compiled_blocks, options.compile_mode)
            yield dense("dense, compiled", partial(_run, partial(models.twin, "compiled", prepare)))
        for kept in options.kept:
            model = partial(models.twin, kept, partial(routed, kept))
            run, verify = partial(_run, model), partial(check_routed, model)
            yield Candidate("diffratio", run, verify, kept=kept, flops=flops(options, kept), ours=True)
            if options.compile_mode is not None and kept == COMPILED:
                prepare = partial(compiled_routed, options.compile_mode, kept)
                run = partial(_run, partial(models.twin, "compiled routed", prepare))
                work = flops(options, kept)
                yield Candidate("diffratio, compiled", run, verify, kept=kept, flops=work, ours=True)

    yield Subject(
        level="model",
        name="PixArt transformer",
        dtype=options.dtype,
        shape=options.shape("layers"),
        make=partial(inputs, options),
        case_bytes=options.weight_bytes(options.layers),
        candidates=tuple(candidates()),
    )


def _run(model: Callable[[], nn.Module], case: dict[str, Tensor]) -> Tensor:
    return model()(**case, return_dict=False)[0]


def check_routed(model: Callable[[], nn.Module], case: dict[str, Tensor]) -> None:
    """Assert that the first, middle and last block are within the error budget on what one sample's run gives
    them."""
    blocks, calls = model().transformer_blocks, {}

    def note(i, block, args, kwargs, out):
        calls[i] = args, kwargs, out

    chosen = sorted({0, len(blocks) // 2, len(blocks) - 1})
    hooks = [blocks[i].register_forward_hook(partial(note, i), with_kwargs=True) for i in chosen]
    try:
        model()(**{name: t[:1] for name, t in case.items()}, return_dict=False)
    finally:
        for hook in hooks:
            hook.remove()
    for i in chosen:
        _check_block(f"block {i} of the model", blocks[i], *calls[i])


def _check_block(label: str, block: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> None:
    spec, router, state = spec_for(block), block.diffratio, block._diffratio
    given = spec.inputs(block, *args, **kwargs)
    own = {
        "x": given.x, "router_weight": router.router_weight, "router_bias": router.router_bias,
        "keep": [kept_tokens(state.tenths[0], given.x.shape[1])], "modulation": given.modulation,
        "rescale": state.plan.config.rescale, "score_scale": router.score_scale,
        **spec.fused_arguments(block, given, *concatenated(spec.qkv(block))),
    }  # fmt: skip
    own["index"] = route(own["x"], own["router_weight"], own["keep"], router_bias=own["router_bias"])[0]
    peer, gold = reference.mod_block(**own), reference.mod_block(**cast(own, torch.float64))
    check_budget(label, spec.output(block, out), peer, gold)
