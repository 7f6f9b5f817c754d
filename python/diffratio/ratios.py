"""Learning where to compress: the table of ratios on a model, the ratio loss, and the end of learning."""

from __future__ import annotations

import math
from dataclasses import replace
from numbers import Real

from torch import Tensor

from diffratio_kernels.modules import RatioTable
from diffratio_kernels.ops import DEFAULT_BINS

from .offloaded import check_values
from .patch import TABLE_NAME, drop_ratios, plan_of, routed_blocks, transformer_of


def learn_ratios(
    model_or_pipe, *, mode: str = "default", bins: tuple[int, ...] | None = None, start: float = 1.0
) -> RatioTable:
    """Put a `RatioTable` on a model after `apply_diffratio`, as `model.diffratio_ratios`, and return it.

    From now on a forward pass in training mode or with gradients runs every block at the two bins around
    its ratio, and any other pass at the nearest bin. `mode`, `bins` (kept tenths) and `start` are those of
    `RatioTable`, its regions the config's `num_regions`.

    Raises:
        ValueError: the model is not patched, has a table already, or its routers are offloaded or on the meta
            device.
    """
    model = transformer_of(model_or_pipe)
    plan = plan_of(model)
    if plan.ratios is not None:
        raise ValueError(f"model {type(model).__name__} learns its ratios already (freeze_ratios ends that)")
    check_values(model, [block.diffratio for block in routed_blocks(model)], "its routers are")
    table = RatioTable(
        len(plan.layers),
        plan.config.num_regions,
        bins=DEFAULT_BINS if bins is None else bins,
        mode=mode,
        start=start,
        device=plan.layers[0].block.diffratio.router_weight.device,
    )
    model.add_module(TABLE_NAME, table.train(model.training))
    plan.ratios = table
    return table


def table_of(model_or_pipe) -> RatioTable:
    """The table that a model learns; an error where there is none."""
    model = transformer_of(model_or_pipe)
    if plan_of(model).ratios is None:
        raise ValueError(f"model {type(model).__name__} learns no ratios (call learn_ratios first)")
    return getattr(model, TABLE_NAME)


def diffratio_loss(model_or_pipe, target_compression: float, weight: float) -> Tensor:
    """weight * (m - (1 - target_compression))^2, a scalar (paper section 3.3).

    m is the mean, over layers and the samples of the last forward pass, of the kept ratios. Errors name the
    argument: target_compression must be in 0..1, weight finite and not negative.
    """
    if not isinstance(target_compression, Real) or not 0 <= target_compression <= 1:
        raise ValueError(f"target_compression={target_compression!r} must be in 0..1")
    if not isinstance(weight, Real) or not 0 <= weight < math.inf:
        raise ValueError(f"weight={weight!r} must be finite and not negative")
    mean = table_of(model_or_pipe).mean(plan_of(transformer_of(model_or_pipe)).regions)
    return weight * (mean - (1 - target_compression)) ** 2


def freeze_ratios(model_or_pipe) -> list[list[int]]:
    """End learning: every ratio becomes its nearest bin, as an override in the config, and the table goes.

    Returns the kept tenths [L][R].
    """
    model = transformer_of(model_or_pipe)
    table = table_of(model)
    check_values(model, [table], "its ratios are learned and are")
    table.refresh()
    tenths = table.nearest()
    plan = plan_of(model)
    plan.set_table(frozen_config(plan.config, tenths), len(plan.layers))
    drop_ratios(model)
    return tenths


def frozen_config(config, tenths: list[list[int]]):
    """The config whose overrides keep these tenths [L][R]."""
    compressions = [[(10 - kept) / 10 for kept in row] for row in tenths]
    overrides = {layer: row[0] if len(row) == 1 else row for layer, row in enumerate(compressions)}
    return replace(config, overrides=overrides)
