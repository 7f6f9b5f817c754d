"""Learning where to compress: the table of ratios on a model, the ratio loss, and the end of learning."""

import math
from dataclasses import replace
from numbers import Real

import torch
from torch import Tensor

from diffratio_kernels.blocks.bins import DEFAULT_BINS
from diffratio_kernels.blocks.ratio_table import RatioTable

from .apply import drop_ratios, refuse_reducer
from .find import TABLE_NAME, routed_layers, routed_model, transformer_of, unwrapped
from .offloaded import check_values


def learn_ratios(
    model_or_pipe, *, mode: str = "default", bins: tuple[int, ...] | None = None, start: float = 1.0
) -> RatioTable:
    """Put a `RatioTable` on a model after `apply_diffratio`, as `model.diffratio_ratios`, and return it.

    From now on a forward pass in training mode or with gradients runs every block at the two bins around
    its ratio, and any other pass at the nearest bin (paper section 3.3).

    Args:
        model_or_pipe: a routed model, or a pipeline with one.
        mode: "default", or "faithful" (the authors' clamp and weights), as `RatioTable` says.
        bins: kept tenths, at least two of 0..10; None is 10 ... 3.
        start: every ratio's first value, within the bins.

    Returns:
        The table: `ratios` [L, R] fp32, a row per routed layer, a column per region (`num_regions`).

    Raises:
        ValueError: the model is not patched, has a table already, is wrapped by DDP or FSDP, or its routers
            are offloaded or on the meta device; or a bad argument, by its name.

    Example:
        >>> apply_diffratio(model, DiffRatioConfig(compression=0.0, num_regions=4))
        >>> table = learn_ratios(model)
        >>> table.ratios.shape[1]
        4
    """
    model, wrappers = unwrapped(model_or_pipe)
    shared = routed_model(model)
    if shared.ratios is not None:
        raise ValueError(f"model {type(model).__name__} learns its ratios already (freeze_ratios ends that)")
    refuse_reducer(model, wrappers, "learn_ratios")
    layers = routed_layers(model)
    check_values(model, [layer.block.diffratio for layer in layers], "its routers are")
    with torch.inference_mode(False):  # a table must be trainable wherever it was made
        table = RatioTable(
            len(layers),
            shared.config.num_regions,
            bins=DEFAULT_BINS if bins is None else bins,
            mode=mode,
            start=start,
            device=layers[0].block.diffratio.router_weight.device,
        )
    for row, layer in enumerate(layers):
        layer.row = row
    model.add_module(TABLE_NAME, table.train(model.training))
    shared.ratios = table
    return table


def table_of(model_or_pipe) -> RatioTable:
    """The table that a model learns; an error where there is none."""
    model = transformer_of(model_or_pipe)
    if routed_model(model).ratios is None:
        raise ValueError(f"model {type(model).__name__} learns no ratios (call learn_ratios first)")
    return getattr(model, TABLE_NAME)


def diffratio_loss(model_or_pipe, target_compression: float, weight: float) -> Tensor:
    """weight * (m - (1 - target_compression))^2, a scalar (paper section 3.3).

    m is the mean, over layers and the samples of the last forward pass, of the kept ratios.

    Args:
        model_or_pipe: a model that learns its ratios, or a pipeline with one.
        target_compression: part of the tokens to be skipped, 0..1.
        weight: lambda; the paper's is 0.3.

    Returns:
        A scalar, fp32, differentiable in the ratios.

    Raises:
        ValueError: the model learns no ratios; target_compression is not in 0..1, or weight is negative or
            not finite.

    Example:
        >>> apply_diffratio(model, DiffRatioConfig(compression=0.0))
        >>> table = learn_ratios(model)
        >>> loss = model(latents, **inputs).sample.square().mean()  # yours
        >>> (loss + diffratio_loss(model, target_compression=0.3, weight=0.3)).backward()
    """
    if not isinstance(target_compression, Real) or not 0 <= target_compression <= 1:
        raise ValueError(f"target_compression={target_compression!r} must be in 0..1")
    if not isinstance(weight, Real) or not 0 <= weight < math.inf:
        raise ValueError(f"weight={weight!r} must be finite and not negative")
    mean = table_of(model_or_pipe).mean(routed_model(transformer_of(model_or_pipe)).regions)
    return weight * (mean - (1 - target_compression)) ** 2


def freeze_ratios(model_or_pipe) -> list[list[int]]:
    """End learning: every ratio becomes its nearest bin, as an override in the config, and the table goes.

    Args:
        model_or_pipe: a model that learns its ratios, or a pipeline with one.

    Returns:
        The kept tenths [L][R].

    Raises:
        ValueError: the model learns no ratios, or they are offloaded or on the meta device.

    Example:
        >>> apply_diffratio(model, DiffRatioConfig(compression=0.0))
        >>> table = learn_ratios(model, start=0.72)
        >>> freeze_ratios(model)[0]
        [7]
    """
    model = transformer_of(model_or_pipe)
    table = table_of(model)
    check_values(model, [table], "its ratios are learned and are")
    table.invalidate()
    layers, shared = routed_layers(model), routed_model(model)
    tenths = [layer.kept_now() for layer in layers]
    shared.configure(frozen_config(shared.config, tenths), layers)
    drop_ratios(model)
    return tenths


def frozen_config(config, tenths: list[list[int]]):
    """The config whose overrides keep these tenths [L][R]."""
    compressions = [[(10 - kept) / 10 for kept in row] for row in tenths]
    overrides = {layer: row[0] if len(row) == 1 else row for layer, row in enumerate(compressions)}
    return replace(config, overrides=overrides)
