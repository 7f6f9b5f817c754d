"""FSDP, as accelerate prepares it: the ratios stay whole on every process."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from ..ratios import TABLE_NAME
from .arguments import ArgumentError, TrainArguments


def is_sharded(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.FSDP


def prepare_sharding(accelerator: Accelerator, arguments: TrainArguments) -> None:
    """Before `accelerator.prepare`. Sharded like the weights, ratios would be rounded to their precision."""
    if not is_sharded(accelerator):
        return
    if not accelerator.is_fsdp2:
        raise ArgumentError("FSDP of version 1 is not supported: accelerate launch --fsdp_version 2")
    if arguments.use_ema:
        raise ArgumentError("use_ema=True is not supported with FSDP")
    plugin = accelerator.state.fsdp_plugin
    plugin.ignored_modules = rf"(.*\.)?{TABLE_NAME}"
    plugin.cpu_ram_efficient_loading = False
    if arguments.mixed_precision == "bf16":
        # Autocast casts what goes into a linear layer. A block's input cast by FSDP would be a residual in
        # bf16, and another tensor when checkpointing runs the block again.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )


def reduce_ratio_gradient(accelerator: Accelerator, ratios: nn.Parameter) -> None:
    """FSDP averages the gradients of what it shards, and of nothing else."""
    if is_sharded(accelerator) and ratios.grad is not None:
        ratios.grad = accelerator.reduce(ratios.grad, "mean")
