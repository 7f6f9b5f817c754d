"""What was patched, how much each block keeps, which way it runs and why not the faster one."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from diffratio_kernels import kept_tokens
from diffratio_kernels.ops import choose

from .offloaded import check_values
from .patch import plan_of, routed_blocks, transformer_of
from .routed import why_modules
from .two_bin import why_two_passes


@dataclass(frozen=True)
class LayerSummary:
    """One routed block: kept ratio per timestep region, kept tokens at N, and how it runs at inference.

    While the model learns its ratios: `learned_ratio` per region, of which the kept ratio is the nearest bin,
    and how a training pass runs. `untrained_router`: nothing has trained the router, what it skips is random.
    """

    layer: int
    name: str
    kept_ratio: tuple[float, ...]
    kept_tokens: tuple[int, ...] | None
    tokens: int | None
    path: str
    implementation: str
    reason: str | None
    learned_ratio: tuple[float, ...] | None = None
    training: str | None = None
    untrained_router: bool = False


class Summary(list):
    """A list of `LayerSummary`; printing it gives a table."""

    def __init__(self, layers: list[LayerSummary], enabled: bool):
        super().__init__(layers)
        self.enabled = enabled

    def to_dict(self) -> dict:
        """Plain JSON types."""
        return {"enabled": self.enabled, "layers": [asdict(layer) for layer in self]}

    def __str__(self) -> str:
        lines = [f"{'layer':>5}  {'kept ratio':<24}  {'kept tokens':<22}  {'runs as':<22}  block"]
        for row in self:
            ratio = " ".join(f"{r:.1f}" for r in row.kept_ratio)
            if row.learned_ratio is not None:
                ratio += f" ({' '.join(f'{r:.3f}' for r in row.learned_ratio)})"
            kept = "-" if row.tokens is None else f"{' '.join(map(str, row.kept_tokens))} of {row.tokens}"
            why = "" if row.reason is None else f" ({row.reason})"
            way = f"{row.path}, {row.implementation}"
            trains = "" if row.training is None else f", trains in {row.training}"
            router = ", untrained router" if row.untrained_router else ""
            lines.append(
                f"{row.layer:>5}  {ratio:<24}  {kept:<22}  {way:<22}  {row.name}{why}{trains}{router}"
            )
        if not self.enabled:
            lines.append("diffratio is disabled: the blocks run dense")
        return "\n".join(lines)


def _implementation(block, one_operator: bool) -> str:
    """Which kernels a block's next call takes: for its rows and, in `mod_block`, for its attention."""
    weight = next(p for p in block.parameters() if p.is_floating_point())
    device, dtype = weight.device, weight.dtype
    rows, attention = (choose(op, "auto", device, dtype) for op in ("mod_block", "attention"))
    return f"{rows} rows, {attention} attention" if one_operator else f"{rows} rows"


def _learned(state) -> dict:
    if state.plan.ratios is None:
        return {}
    reason = why_two_passes(state)
    ratios = tuple(state.plan.ratios.host()[state.layer])
    return {
        "learned_ratio": ratios,
        "training": "one pass" if reason is None else f"two passes: {reason}",
    }


def summary(model_or_pipe, tokens: int | None = None) -> Summary:
    """Every patched block of a model; `tokens` is N for the kept counts (default: N of the last call).

    path: "mod_block" (one operator on raw weights) or "modules" (the block's own modules between our row
    operators); reason: why it is not the fastest way; implementation: which kernels. A model without
    patched blocks is an error.
    """
    if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1):
        raise ValueError(f"tokens={tokens!r} must be a positive integer")
    model = transformer_of(model_or_pipe)
    plan = plan_of(model)
    if plan.ratios is not None:
        check_values(model, [plan.ratios], "its ratios are learned and are")
    table = plan.table if plan.ratios is None else plan.ratios.nearest()
    rows = []
    with torch.no_grad():
        for block in routed_blocks(model):
            state = block._diffratio
            n = state.tokens if tokens is None else tokens
            tenths = table[state.layer]
            reason = why_modules(block, state)
            rows.append(
                LayerSummary(
                    layer=state.layer,
                    name=state.name,
                    kept_ratio=tuple(t / 10 for t in tenths),
                    kept_tokens=None if n is None else tuple(kept_tokens(t, n) for t in tenths),
                    tokens=n,
                    path="mod_block" if reason is None else "modules",
                    implementation=_implementation(block, reason is None),
                    reason=reason,
                    untrained_router=state.untrained,
                    **_learned(state),
                )
            )
    return Summary(rows, plan.enabled)
