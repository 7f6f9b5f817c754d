"""What a baseline may change in one call of a block, and why it does not apply to others."""

from numbers import Real

from torch import Tensor

from diffratio_kernels.blocks import products
from diffratio_kernels.blocks.routed import cross_attend
from diffratio_kernels.blocks.stream import Call, CrossAttention, Exchange, Parallel
from diffratio_kernels.types import PackedRows, Run


class Baseline:
    """What runs the blocks of a model in place of routers, without training.

    `routing` asks it in every call of a block. Copies of a model have their own.
    """

    regions: int = 1
    """Timestep regions that it tells apart."""

    @property
    def name(self) -> str:
        """As `parse_baseline` takes it."""
        raise NotImplementedError

    def left(self, tokens: int) -> int:
        """Of the tokens of a sample those that are computed on where it merges or prunes."""
        raise NotImplementedError

    def kept_ratios(self, layer: int, layers: int) -> tuple[float, ...]:
        """Parts of the tokens that a layer computes on, in the timesteps that it tells apart."""
        raise NotImplementedError

    def layout(self, model, given: dict):
        """What a call of the model tells: its arguments by name."""
        return

    def leaves(self, layer, args: tuple, kwargs: dict) -> bool:
        """Whether the block runs as it is, whatever its call holds."""
        raise NotImplementedError

    def changed(self, layer, call: Call, run: Run, args: tuple, kwargs: dict) -> Call | None:
        """The call as it is computed; None where too few tokens leave the block as it is.

        Args:
            layer: the `RoutedLayer`.
            call: of its block, by its spec.
            run: how the operators of the call run.
            args, kwargs: what the block was called with.

        Raises:
            ValueError: it is not defined for such a block.
        """
        raise NotImplementedError

    def alone(self, call: Call, run: Run, size: tuple[int, int]) -> Call:
        """A call as it is computed where no model is around the block: of an image of height x width tokens,
        merged or pruned whatever the timestep."""
        raise NotImplementedError

    def refuse(self, layer, reason: str | None) -> None:
        """A ValueError with the reason why it does not apply to a block, where there is one."""
        if reason is not None:
            kind, slow = type(layer.block).__name__, layer.spec.slow_reason(layer.block)
            reason = reason if slow is None else f"{reason} ({slow})"
            raise ValueError(f"{self.name} does not apply to {layer.name}, {kind}: {reason}")


def why_not(call: Call) -> str | None:
    """Why no baseline applies to a call."""
    if call.layout is not None:
        return "among the tokens of its image stand others that must be kept (text, references, padding)"
    if isinstance(call.image.mlp, Parallel):
        return "its attention and MLP end in one product, so that neither can run on fewer tokens alone"
    if isinstance(call.after_attention, Exchange):
        return "its tokens exchange with a second stream, each with its own"
    return None


def check_part(name: str, value: float, most: float) -> None:
    """A ValueError where a value is no number in 0..most."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= most:
        raise ValueError(f"{name}={value!r} must be a number from 0 to {most:g}")


def check_whole(name: str, value: int, least: int) -> None:
    """A ValueError where a value is no integer from `least` on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r} must be an integer from {least} on")


def cross_attention(run: Run, cross: CrossAttention, hidden: Tensor, rows: PackedRows) -> Tensor:
    """The branch [T, D] of rows that attend to a text."""
    return products.product(run, cross_attend(run, hidden, rows, cross), cross.out)
