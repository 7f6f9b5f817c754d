"""How training gets the mean kept ratio to its target: by the penalty of the paper's section 3.3, or by a
constraint, for which its supplement B says only that the penalty is "dynamically adjusted"."""

import math
import warnings
from numbers import Integral, Real

import torch
from torch import Tensor

from diffratio_kernels.blocks.ratio_table import RatioTable

from ..routing.ratios import diffratio_loss

FAITHFUL_WEIGHT = 0.3
_WATER_FILLING = 5  # passes; what ratios that meet a bound leave over goes to the others in the next one

_PATIENCE = 10
"""Steps without a change of the ratios before the warning: fp16's loss scaler skips the first few itself."""
_APART = 0.1
"""Part of the target that ratios lie apart halfway through training, if only by their gradients' noise."""


def ratio_learning_rate(target_compression: float, steps: int) -> float:
    """Return Adam's learning rate for the ratios: in `steps` it goes four times from 0 to the target."""
    return 4 * target_compression / steps


class RatioController:
    """Two ways to a target compression.

    With a `weight` (and for a table in the faithful mode, whose default is the authors' 0.3) the ratio loss
    is the paper's penalty, weight * (batch mean - target)^2. It stops L g / (2 weight) short of the target, g
    being the mean of -dL/dr, and a schedule of the weight does not mend that: g differs by orders of
    magnitude between models and layers, Adam's steps do not follow the size of a gradient, and its momentum
    carries the mean past the target after the gap is gone.

    Without one the target is a constraint. After each optimiser step the ratios are projected to the nearest
    table whose mean is the current target, which falls from the start to the final target in the first part
    of training; the mean can neither miss nor overshoot, and there is no integral that could wind up. At the
    end the ratios settle on bins with the same mean: from then on the weights learn what inference will run.
    What is left to learn is which ratios lie above the mean, and for that gradients need a common price.
    `before_step` adds the one at which as many ratios want to rise as to fall (Adam moves each by about its
    learning rate). It comes from the gradients, averaged over steps: no extra backward, no scale to choose.

    The optimiser is made of `parameter_groups`, with `learning_rate` for the ratios. A warning says, once,
    when that was forgotten: no optimiser moves the ratios, or they do not move apart, which is uniform MoD.

    Per optimiser step, on every process alike:
        loss = diffusion_loss + controller.loss(model); loss.backward()
        controller.before_step()     # gradients of all processes and micro-batches are summed up
        optimizer.step()
        controller.after_step()      # projects the table

    Args:
        table: what `learn_ratios` returned.
        target_compression: part of the tokens to skip, the mean over the table, 0..1.
        steps: optimiser steps of the whole training.
        weight: of the penalty; None is the constraint.
        ramp: part of the steps in which the target falls.
        settle: part of the steps at the end in which the ratios stand on bins.

    Raises:
        TypeError: `table` is no RatioTable.
        ValueError: a number out of range; the text names the argument.
    """

    def __init__(
        self,
        table: RatioTable,
        target_compression: float,
        steps: int,
        *,
        weight: float | None = None,
        ramp: float = 0.4,
        settle: float = 0.2,
    ):
        if not isinstance(table, RatioTable):
            raise TypeError(
                f"table must be a RatioTable, which learn_ratios returns, got {type(table).__name__}"
            )
        low, high = table.interval
        if not isinstance(target_compression, Real) or not 1 - high <= target_compression <= 1 - low + 1e-9:
            raise ValueError(
                f"target_compression={target_compression!r} must be in {1 - high:.1f}..{1 - low:.1f}, "
                "where the table's ratios can be"
            )
        if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
            raise ValueError(f"steps={steps!r} must be a positive integer")
        if weight is not None and not (isinstance(weight, Real) and 0 <= weight < math.inf):
            raise ValueError(f"weight={weight!r} must be a number from 0 or None")
        if not isinstance(ramp, Real) or not 0 <= ramp <= 1:
            raise ValueError(f"ramp={ramp!r} must be in 0..1")
        if not isinstance(settle, Real) or not 0 <= settle <= 1 - ramp:
            raise ValueError(f"settle={settle!r} must be in 0..{1 - ramp:g}, what ramp={ramp!r} leaves")
        self.table, self.steps, self.ramp, self.settle = table, steps, ramp, settle
        self.target_compression = float(target_compression)
        self.penalty = FAITHFUL_WEIGHT if weight is None and table.mode == "faithful" else weight
        self.step, self.start = 0, table.mean().item()
        self._reached = self.start
        horizon = max(1, min(50, steps // 10))
        self._share = 1 / horizon  # of a step in the averages over steps
        ratios = table.ratios.detach()
        self._gradient, self._present = torch.zeros_like(ratios), torch.zeros_like(ratios[0])
        self._price = ratios.new_zeros(())
        self._settled: Tensor | None = None
        self._warned = False
        self._left: Tensor | None = ratios.clone()
        """The ratios after the last step, until an optimiser is seen to move them."""
        self._unmoved = 0

    @property
    def learning_rate(self) -> float:
        """Adam's learning rate that the ratios need for this target and these steps."""
        return ratio_learning_rate(self.target_compression, self.steps)

    @property
    def target(self) -> float:
        """The mean kept ratio to hold now. More steps than before slow the ramp and never turn it back."""
        final = 1 - self.target_compression
        if self.penalty is not None or self.step >= self.ramp * self.steps:
            return final
        target = self.start + (final - self.start) * self.step / (self.ramp * self.steps)
        return min(target, self._reached) if final < self.start else max(target, self._reached)

    @property
    def weight(self) -> float:
        """The penalty's weight, else the price in loss per unit of mean kept ratio. For logs: it syncs."""
        return self._price.item() * self._gradient.numel() if self.penalty is None else self.penalty

    def loss(self, model_or_pipe) -> Tensor:
        """Return the ratio loss of the last forward pass, a scalar: zero where the target is a constraint."""
        if self.penalty is None:
            return self.table.ratios.new_zeros(())
        return diffratio_loss(model_or_pipe, self.target_compression, self.penalty)

    @torch.no_grad()
    def before_step(self) -> None:
        """Add the price to the ratios' gradient: after the backward passes, before `optimizer.step()`."""
        ratios = self.table.ratios
        if self.penalty is not None or ratios.grad is None:
            return
        self._follow()
        present = (ratios.grad != 0).any(0).to(ratios.dtype)  # a small batch does not reach every region
        self._gradient.lerp_(-ratios.grad, self._share)
        self._present.lerp_(present, self._share)
        low, high = self.table.interval
        worth = self._gradient / self._present.clamp(min=torch.finfo(ratios.dtype).tiny)
        seen = (self._present > 0).expand_as(ratios)
        moves = ((seen & (ratios > low)).flatten(), (seen & (ratios < high)).flatten())
        self._price = _balance(worth.flatten(), *moves)
        ratios.grad += self._price * present

    @torch.no_grad()
    def after_step(self) -> None:
        """Project the table and move on to the next target: after `optimizer.step()`."""
        self.step += 1
        self._follow()
        self._check_moved()
        self._reached = self.target
        self.table.project_()
        if self.penalty is None:
            self._constrain()
        if self._left is not None:
            self._left.copy_(self.table.ratios)
        else:
            self._check_apart()

    def _constrain(self) -> None:
        if self._settled is None:
            self._project()
            if self.step < (1 - self.settle) * self.steps or not self.settle:
                return
            self._settled = self.table.settled(self.target)
        self.table.ratios.copy_(self._settled)

    def _follow(self) -> None:
        """Move to the device of the table, which accelerate's `prepare` moves."""
        device = self.table.ratios.device
        self._gradient, self._present = self._gradient.to(device), self._present.to(device)
        self._price = self._price.to(device)
        self._left = None if self._left is None else self._left.to(device)

    def _check_moved(self) -> None:
        """By value: wrapped, fused and 8-bit optimisers all write differently."""
        if self._left is None:
            return
        if not torch.equal(self._left, self.table.ratios):
            self._left = None
            return
        self._unmoved += 1
        if self._unmoved == _PATIENCE or self.step == self.steps:
            self._warn(
                f"no optimizer has changed the ratios in {self._unmoved} steps: it does not have them (make "
                "it after learn_ratios), or they get no gradient"
            )

    def _check_apart(self) -> None:
        """Early, where there is time to start anew, and by the bins at the end."""
        (low, high), final = self.table.interval, 1 - self.target_compression
        only_one = self.table.ratios.numel() == 1 or not low + 1e-6 < final < high - 1e-6
        halfway, end = (self.step == step for step in (math.ceil(self.steps / 2), self.steps))
        if only_one or not (halfway or end):
            return
        ratios = [ratio for row in self.table.host() for ratio in row]
        spread = max(ratios) - min(ratios)
        one_bin = len({tenths for row in self.table.nearest() for tenths in row}) == 1
        if (halfway and spread < _APART * self.target_compression) or (end and one_bin):
            self._warn(
                f"after {self.step} of {self.steps} steps all ratios lie within {spread:.3f} of each other, "
                "which is uniform MoD: their learning rate is too small"
            )

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            remedy = f"parameter_groups(model, ratio_learning_rate={self.learning_rate:.3g}, ...)"
            warnings.warn(f"RatioController: {text}. {remedy} gives them what they need.", stacklevel=5)

    def _project(self) -> None:
        ratios, (low, high) = self.table.ratios, self.table.interval
        for _ in range(_WATER_FILLING):
            gap = self.target - ratios.mean()
            movable = torch.where(gap > 0, ratios < high, ratios > low)
            share = gap * ratios.numel() / movable.sum().clamp(min=1)
            ratios.add_(share * movable).clamp_(low, high)

    def state_dict(self) -> dict:
        """Return plain numbers and lists, exact: a resumed training takes the same steps."""
        return {
            "step": self.step,
            "start": self.start,
            "target": self._reached,
            "price": self._price.item(),
            "gradient": self._gradient.tolist(),
            "present": self._present.tolist(),
            "settled": None if self._settled is None else self._settled.tolist(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a `state_dict`.

        Raises:
            ValueError: `state` is not one of such a table; nothing is changed.
        """
        names = self.state_dict().keys()
        if not isinstance(state, dict) or state.keys() != names:
            raise ValueError(f"state must have the entries {sorted(names)}")
        like = self.table.ratios
        shapes = {"gradient": like.shape, "present": like.shape[1:], "price": (), "settled": like.shape}
        given = [name for name in shapes if name != "settled" or state[name] is not None]
        try:
            tensors = {name: like.new_tensor(state[name]) for name in given}
            step, start, reached = int(state["step"]), float(state["start"]), float(state["target"])
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"state holds something else than numbers ({error})") from None
        for name, tensor in tensors.items():
            if tensor.shape != shapes[name]:
                raise ValueError(f"state has {name} {tuple(tensor.shape)}, not {tuple(shapes[name])}")
        self._gradient, self._present, self._price = (tensors[name] for name in given[:3])
        self._settled = tensors.get("settled")
        self.step, self.start, self._reached = step, start, reached
        self._left, self._unmoved = like.detach().clone(), 0


def _balance(worth: Tensor, can_fall: Tensor, can_rise: Tensor) -> Tensor:
    """The price at which as many entries fall (worth less, not at the lower bound) as rise."""
    worth, order = worth.sort()
    falling = can_fall[order].cumsum(0)
    rising = can_rise.sum() - can_rise[order].cumsum(0)
    return worth.index_select(0, (falling >= rising).to(torch.uint8).argmax(0, keepdim=True)).squeeze(0)
