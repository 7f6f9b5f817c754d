"""What a model costs: FLOPs, milliseconds and peak memory, dense and sparse side by side."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from diffratio_kernels.testing.memory import peak_bytes

from .. import disable_diffratio, enable_diffratio
from ..flops import TransformerShape, kept_tokens, transformer_flops
from ..patch import plan_of, route_blocks
from ..progress import progress_bar


@torch.inference_mode()
def compare(
    model: nn.Module, call: Callable[[], object], *, repeats: int, description: str, progress: bool
) -> dict[str, dict[str, float]]:
    """Run ``call`` with the routing of ``model`` off ("dense"), on ("sparse"), and on with all tokens kept.

    Returns for each of ``dense``, ``all_tokens`` and ``sparse``: ``milliseconds``, the median of ``repeats``
    runs that take turns, so that whatever else the machine does strikes all alike; and ``peak_megabytes``,
    the most memory (MB) that one call held in new tensors at any moment. "all_tokens" tells what the fused
    kernels save by themselves. The model is left as it was.
    """
    plan = plan_of(model)
    config, enabled = plan.config, plan.enabled
    keep_all = replace(config, compression=0.0, overrides={})
    settings = {
        "dense": lambda: disable_diffratio(model),
        "all_tokens": lambda: route_blocks(enable_diffratio(model), keep_all),
        "sparse": lambda: route_blocks(enable_diffratio(model), config),
    }
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    try:
        # One round more than counts: the first warms up.
        for _ in progress_bar(range(repeats + 1), show=progress, desc=description, unit="round"):
            for name, prepare in settings.items():
                prepare()
                seconds[name].append(_time(call, model.device))
        results = {}
        for name, prepare in settings.items():
            prepare()
            results[name] = {
                "milliseconds": statistics.median(seconds[name][1:]) * 1e3,
                "peak_megabytes": peak_bytes(call, model.device.type) / 1e6,
            }
    finally:
        settings["sparse"]()
        plan.enabled = enabled
    return results


def _time(call: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def model_cost(
    model: nn.Module,
    *,
    batch: int,
    text_tokens: int,
    side: int | None = None,
    repeats: int = 9,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """Return ``compare`` for one forward of a patched PixArt or DiT on random input, and its ``gflop``.

    A forward is the mean over the timestep regions: time and FLOPs are what a sampling run with evenly spread
    timesteps pays on average, peak memory is that of the most expensive region. ``side`` is that of the
    images or latents; None is the one that the model was made for.
    """
    plan = plan_of(model)
    regions = plan.config.num_regions
    side = model.config.sample_size if side is None else side
    timesteps = [int((r + 0.5) * 1000 / regions) for r in range(regions)]
    inputs = [_random_inputs(model, batch, side, text_tokens, timestep) for timestep in timesteps]

    def call() -> None:
        for one in inputs:
            model(**one)

    results = compare(model, call, repeats=repeats, description="measuring latency", progress=progress)
    shape = TransformerShape.from_model(model, side, side, text_tokens)
    kept = [[kept_tokens(tenths, shape.tokens) for tenths in row] for row in plan.table]
    for name, table in (("dense", None), ("all_tokens", shape.tokens), ("sparse", kept)):
        results[name]["milliseconds"] /= regions
        results[name]["gflop"] = transformer_flops(shape, table, batch=batch).total / 1e9
    return results


def _random_inputs(
    model: nn.Module, batch: int, side: int, text_tokens: int, timestep: int
) -> dict[str, Tensor]:
    """The arguments of one forward: noise [B, C, h, w], timesteps [B], and text [B, M, E] or classes [B]."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch, config.in_channels, side, side, generator=generator)
    inputs = {"hidden_states": noise, "timestep": torch.full((batch,), timestep)}
    if text_tokens:
        text = torch.randn(batch, text_tokens, config.caption_channels, generator=generator)
        inputs["encoder_hidden_states"] = text
        if model.use_additional_conditions:
            pixels = torch.full((batch, 2), 8.0 * side)
            inputs["added_cond_kwargs"] = {"resolution": pixels, "aspect_ratio": torch.ones(batch, 1)}
    else:
        inputs["class_labels"] = torch.zeros(batch, dtype=torch.int64)
    return {name: _moved(value, model) for name, value in inputs.items()}


def _moved(value, model: nn.Module):
    if isinstance(value, dict):
        return {name: _moved(one, model) for name, one in value.items()}
    return value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
