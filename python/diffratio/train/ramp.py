"""Compression that grows as that of learned ratios does, to kept counts that are given: a control."""

import torch
from torch import Tensor, nn

from ..routing.find import routed_layers, transformer_of
from ..routing.ratios import table_of
from .arguments import TrainArguments
from .controller import RAMP, RatioController


class RatioRamp:
    """Moves the ratios of a table, which no optimiser trains, from 1 to what the model's config keeps.

    In between a block runs at two bins, as with `RatioController`, in whose place this stands.

    Args:
        model: routed, after `learn_ratios`.
        steps: optimiser steps of the whole training.
        ramp: part of the steps in which the ratios fall.
    """

    weight = 0.0
    """There is no price."""

    def __init__(self, model: nn.Module, steps: int, ramp: float = RAMP):
        self.table, self.ramp_steps, self.step = table_of(model), ramp * steps, 0
        tenths = [layer.kept for layer in routed_layers(transformer_of(model))]
        self._kept = torch.tensor(tenths, dtype=torch.float32) / 10  # [L, R]
        self._share = 0.0
        """Of the way that is gone. More steps than before slow the ramp and never turn it back."""

    @property
    def target(self) -> float:
        """The mean kept ratio to hold now."""
        return self._ratios().mean().item()

    def loss(self, model: nn.Module) -> Tensor:
        """Return zero, as where a target is a constraint."""
        return self.table.ratios.new_zeros(())

    def before_step(self) -> None:
        """Do nothing: no ratio has a gradient."""

    def after_step(self) -> None:
        """Move on to the next ratios: after `optimizer.step()`."""
        self.step += 1
        self._share = max(self._share, min(1.0, self.step / self.ramp_steps))
        self._move()

    def _ratios(self) -> Tensor:
        return torch.lerp(torch.ones_like(self._kept), self._kept, self._share)  # exact at its end

    @torch.no_grad()
    def _move(self) -> None:
        self.table.ratios.copy_(self._ratios())

    def state_dict(self) -> dict:
        """Return what a resumed training goes on from."""
        return {"step": self.step, "share": self._share}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a `state_dict`."""
        self.step, self._share = int(state["step"]), float(state["share"])
        self._move()


def make_controller(model: nn.Module, arguments: TrainArguments) -> RatioController | RatioRamp | None:
    """Return what moves the ratios of a run; None where it has none."""
    steps, ramp = arguments.max_train_steps, RAMP if arguments.ramp is None else arguments.ramp
    if arguments.learns_ratios:
        weight = arguments.fixed_ratio_weight()
        return RatioController(table_of(model), arguments.target_compression, steps, weight=weight, ramp=ramp)
    return RatioRamp(model, steps, ramp) if arguments.ramp else None
