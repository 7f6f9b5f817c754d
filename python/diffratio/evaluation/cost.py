"""What a model costs: FLOPs, milliseconds and peak memory, dense and sparse side by side."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffratio_kernels import kept_tokens

from .. import DiffRatioConfig, disable_diffratio, enable_diffratio
from ..routing.apply import route_blocks
from ..routing.find import routed_layers, routed_model
from .flops import TransformerShape, transformer_flops
from .flops.counted import Counting
from .latency import rotating_times
from .layers import layer_costs
from .memory import peak_bytes


@torch.inference_mode()
def compare(
    model: nn.Module,
    call: Callable[[], object],
    *,
    repeats: int,
    description: str,
    progress: bool,
    count: bool = False,
    layers: bool = False,
) -> dict[str, dict[str, Any]]:
    """Run ``call`` with the routing of ``model`` off ("dense"), on ("sparse"), and on with all tokens kept; a
    model with a training-free baseline with that off ("dense") and on (by its name).

    Returns for each of ``dense``, ``all_tokens`` and ``sparse``: ``milliseconds``, the median of ``repeats``
    runs that take turns, so that whatever else the machine does strikes all alike; and ``peak_megabytes``,
    the most memory (MB) that one call held in new tensors at any moment; with `count` also ``gflop``, as
    torch counts them; with `layers` also ``layers``, the time and memory of each routed block
    (`layer_costs`). "all_tokens" tells what the fused kernels save by themselves. The model is left as it
    was.
    """
    shared = routed_model(model, baseline=True)
    config, enabled = shared.config, shared.enabled
    if shared.baseline is None:
        keep_all = replace(config, compression=0.0, overrides={})
        configs = {"dense": None, "all_tokens": keep_all, "sparse": config}
    else:
        configs = {"dense": None, shared.baseline.name: config}
    routes = {name: partial(_route, model, own) for name, own in configs.items()}
    passes, device, results = dict.fromkeys(routes, call), model.device.type, {}
    try:
        times = rotating_times(passes, 1, repeats, device, progress, prepare=routes, description=description)
        for name, route in routes.items():
            route()
            peak = peak_bytes(call, device) / 1e6
            results[name] = {"milliseconds": times[name].median * 1e3, "peak_megabytes": peak}
            if count:
                results[name]["gflop"] = _counted(call) / 1e9
        for name, costs in layer_costs(model, call, routes, repeats, progress).items() if layers else ():
            results[name]["layers"] = costs
    finally:
        _route(model, config)
        shared.enabled = enabled
    return results


def _counted(call: Callable[[], object]) -> int:
    """FLOPs of a call, as torch's `FlopCounterMode` counts them, without its hooks on every module."""
    with Counting() as counting:
        call()
    return counting.count.flops


def _route(model: nn.Module, config: DiffRatioConfig | None) -> None:
    """Route a patched model by ``config``, or run it dense."""
    if config is None:
        disable_diffratio(model)
        return
    enable_diffratio(model)
    if routed_model(model, baseline=True).baseline is None:
        route_blocks(model, config)


def model_cost(
    model: nn.Module,
    *,
    batch: int,
    text_tokens: int,
    side: int | None = None,
    repeats: int = 9,
    progress: bool = True,
    layers: bool = False,
) -> dict[str, dict[str, Any]]:
    """Return ``compare`` for one forward of a patched PixArt or DiT on random input, and its ``gflop``.

    A forward is the mean over the timestep regions: time and FLOPs are what a sampling run with evenly spread
    timesteps pays on average, peak memory is that of the most expensive region, and of a layer the mean.
    ``side`` is that of the images or latents; None is the one that the model was made for.
    """
    shared = routed_model(model, baseline=True)
    regions = shared.config.num_regions
    side = model.config.sample_size if side is None else side
    timesteps = [int((r + 0.5) * 1000 / regions) for r in range(regions)]
    inputs = [_random_inputs(model, batch, side, text_tokens, timestep) for timestep in timesteps]

    def call() -> None:
        for one in inputs:
            model(**one)

    own = shared.baseline is not None
    how = {"description": "measuring latency", "progress": progress, "count": own, "layers": layers}
    results = compare(model, call, repeats=repeats, **how)
    for one in results.values():
        one["milliseconds"] /= regions
        if own:
            one["gflop"] /= regions
    if own:
        return results
    shape = TransformerShape.from_model(model, side, side, text_tokens)
    kept = [
        [kept_tokens(tenths, shape.tokens, shared.config.rounding) for tenths in row]
        for row in (layer.kept for layer in routed_layers(model))
    ]
    for name, table in (("dense", None), ("all_tokens", shape.tokens), ("sparse", kept)):
        results[name]["gflop"] = transformer_flops(shape, table, batch=batch).total / 1e9
    return results


def _random_inputs(
    model: nn.Module, batch: int, side: int, text_tokens: int, timestep: int
) -> dict[str, Tensor]:
    """The arguments of one forward: noise [B, C, h, w], timesteps [B], and text [B, M, E] or classes [B]."""
    config, place = model.config, {"device": model.device, "dtype": model.dtype}
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch, config.in_channels, side, side, generator=generator).to(**place)
    inputs = {"hidden_states": noise, "timestep": torch.full((batch,), timestep, device=model.device)}
    if not text_tokens:
        classes = torch.zeros(batch, dtype=torch.int64, device=model.device)
        return inputs | {"class_labels": classes}
    text = torch.randn(batch, text_tokens, config.caption_channels, generator=generator)
    inputs["encoder_hidden_states"] = text.to(**place)
    if model.use_additional_conditions:
        pixels = torch.full((batch, 2), 8.0 * side, **place)
        inputs["added_cond_kwargs"] = {"resolution": pixels, "aspect_ratio": torch.ones(batch, 1, **place)}
    return inputs
