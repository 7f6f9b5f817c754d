"""AdamW with a group each for weights, routers and ratios."""

import math
from numbers import Real

import torch
from torch import nn

from ..routing.find import transformer_of
from .arguments import TrainArguments
from .controller import ratio_learning_rate

GROUPS = ("weights", "routers", "ratios")


def group_of(name: str) -> str:
    """Return which of `GROUPS` a parameter of this name belongs to."""
    parts = name.split(".")
    return "ratios" if "diffratio_ratios" in parts else "routers" if "diffratio" in parts else "weights"


def trained(model: nn.Module, *groups: str) -> list[nn.Parameter]:
    """Return the trained parameters of some groups, without names of all."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (not groups or group_of(name) in groups)
    ]


def parameter_groups(
    model_or_pipe,
    *,
    learning_rate: float,
    router_learning_rate: float | None = None,
    ratio_learning_rate: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict]:
    """Return what to make an optimizer of: all that a model trains, as weights, routers and ratios.

    Adam moves every parameter by about its learning rate, however small the gradient. Ratios must cross
    tenths in the steps that there are: at the rate of the weights they hardly part, and the table ends as
    uniform MoD. And weight decay on a ratio would be compression that nobody asked for.

    Args:
        model_or_pipe: after `apply_diffratio` and `learn_ratios`, which make the parameters; what is frozen
            (`requires_grad` False) is left out.
        learning_rate: of the model's weights, or its LoRA.
        router_learning_rate: None is that of the weights.
        ratio_learning_rate: must be given for a model that learns its ratios; `RatioController.learning_rate`
            fits the steps and the target.
        weight_decay: of the weights. Routers and ratios have none.

    Returns:
        Groups with `params`, `lr`, `weight_decay` and `name` ("weights", "routers", "ratios"); none is empty.

    Raises:
        ValueError: a rate or a decay that is no number from 0; a ratio_learning_rate that is missing, or is
            given for a model without ratios; a model with nothing to train.

    Example:
        >>> controller = RatioController(learn_ratios(model), target_compression=0.3, steps=1000)
        >>> groups = parameter_groups(model, learning_rate=1e-4, ratio_learning_rate=controller.learning_rate)
        >>> optimizer = torch.optim.AdamW(groups)
    """
    model = transformer_of(model_or_pipe)
    rates = {
        "learning_rate": learning_rate,
        "router_learning_rate": learning_rate if router_learning_rate is None else router_learning_rate,
        "ratio_learning_rate": ratio_learning_rate,
    }
    parameters = {name: trained(model, name) for name in GROUPS}
    if parameters["ratios"] and ratio_learning_rate is None:
        raise ValueError(
            "ratio_learning_rate must be given: the model learns ratios (RatioController.learning_rate fits)"
        )
    if ratio_learning_rate is not None and not parameters["ratios"]:
        raise ValueError(
            f"ratio_learning_rate={ratio_learning_rate!r}: the model has no ratios to train "
            "(call learn_ratios first)"
        )
    if not any(parameters.values()):
        raise ValueError(
            f"model {type(model).__name__} has nothing to train: no parameter requires a gradient"
        )
    for name, value in {**rates, "weight_decay": weight_decay}.items():
        if value is not None and not (isinstance(value, Real) and 0 <= value < math.inf):
            raise ValueError(f"{name}={value!r} must be a number from 0")
    return [
        {"params": some, "lr": rate, "weight_decay": weight_decay if name == "weights" else 0.0, "name": name}
        for (name, some), rate in zip(parameters.items(), rates.values(), strict=True)
        if some
    ]


def make_optimizer(model: nn.Module, arguments: TrainArguments) -> torch.optim.AdamW:
    """Return AdamW as the arguments say."""
    ratio_lr = arguments.ratio_lr
    if ratio_lr is None:
        ratio_lr = ratio_learning_rate(arguments.target_compression, arguments.max_train_steps)
    groups = parameter_groups(
        model,
        learning_rate=arguments.learning_rate,
        router_learning_rate=arguments.router_lr,
        ratio_learning_rate=ratio_lr if arguments.learns_ratios else None,
        weight_decay=arguments.adam_weight_decay,
    )
    betas = (arguments.adam_beta1, arguments.adam_beta2)
    return torch.optim.AdamW(groups, betas=betas, eps=arguments.adam_epsilon)
