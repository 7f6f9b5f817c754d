"""FSDP, as accelerate prepares it: the ratios stay whole on every process."""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from ..routing.ratios import TABLE_NAME
from .arguments import ArgumentError, TrainArguments
from .model import load_base, prepare_model


def is_sharded(accelerator: Accelerator) -> bool:
    """Return whether FSDP shards the model."""
    return accelerator.distributed_type == DistributedType.FSDP


def prepare_sharding(accelerator: Accelerator, arguments: TrainArguments) -> None:
    """Set up FSDP, before `accelerator.prepare`. Sharded, ratios would be rounded as the weights are.

    Raises:
        ArgumentError: FSDP of version 1, or a moving average.
    """
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
    """Average the ratios' gradient over processes: FSDP does so for what it shards alone."""
    if is_sharded(accelerator) and ratios.grad is not None:
        ratios.grad = accelerator.reduce(ratios.grad, "mean")


def full_model(accelerator: Accelerator, model: nn.Module, arguments: TrainArguments) -> nn.Module | None:
    """Return the model unsharded and without wrappers on the main process, None on the others.

    Args:
        model: what `accelerator.prepare` returned; of a sharded one every process gives its part.
        arguments: those that `prepare_model` made it from.
    """
    if not is_sharded(accelerator):
        return accelerator.unwrap_model(model) if accelerator.is_main_process else None
    weights = accelerator.get_state_dict(model)
    if not accelerator.is_main_process:
        return None
    # New LoRA weights are drawn; the generators' states are in the checkpoint already.
    with torch.random.fork_rng(devices=[]):
        full = prepare_model(load_base(arguments), arguments)
    full.load_state_dict(weights)
    return full
