"""AdamW with a group each for weights, routers and ratios, and the learning rate schedule."""

from __future__ import annotations

import torch
from diffusers.optimization import get_scheduler
from torch import nn

from .arguments import TrainArguments
from .controller import ratio_learning_rate

GROUPS = ("weights", "routers", "ratios")


def group_of(name: str) -> str:
    """Which group a parameter of this name belongs to."""
    parts = name.split(".")
    return "ratios" if "diffratio_ratios" in parts else "routers" if "diffratio" in parts else "weights"


def trained(model: nn.Module, *groups: str) -> list[nn.Parameter]:
    """The parameters that are trained, of some groups or (without names) of all."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (not groups or group_of(name) in groups)
    ]


def make_optimizer(model: nn.Module, arguments: TrainArguments) -> torch.optim.AdamW:
    """Weight decay is for weights alone: on a ratio it would be compression that nobody asked for."""
    router_lr = arguments.learning_rate if arguments.router_lr is None else arguments.router_lr
    ratio_lr = arguments.ratio_lr
    if ratio_lr is None:
        ratio_lr = ratio_learning_rate(arguments.target_compression, arguments.max_train_steps)
    settings = {
        "weights": (arguments.learning_rate, arguments.adam_weight_decay),
        "routers": (router_lr, 0.0),
        "ratios": (ratio_lr, 0.0),
    }
    groups = [
        {"params": parameters, "lr": settings[name][0], "weight_decay": settings[name][1], "name": name}
        for name in GROUPS
        if (parameters := trained(model, name))
    ]
    betas = (arguments.adam_beta1, arguments.adam_beta2)
    return torch.optim.AdamW(groups, betas=betas, eps=arguments.adam_epsilon)


def make_schedule(optimizer: torch.optim.Optimizer, arguments: TrainArguments):
    return get_scheduler(
        arguments.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=arguments.lr_warmup_steps,
        num_training_steps=arguments.max_train_steps,
    )
