"""What was patched, how much each block keeps, which way it runs and why not the faster one."""

from dataclasses import asdict, dataclass

import torch

from diffratio_kernels import kept_tokens
from diffratio_kernels._backends import choose
from diffratio_kernels._choice import Attention, attention_choice

from .find import routed_layers, routed_model, transformer_of
from .offloaded import check_values
from .state import RoutedLayer


@dataclass(frozen=True)
class LayerSummary:
    """One routed block: kept ratio per timestep region, kept tokens at N, and how it runs at inference.

    learned_ratio: per region while the model learns them; the kept ratio is its nearest bin.
    untrained_router: nothing has trained the router, what it skips is random."""

    layer: int
    name: str
    kept_ratio: tuple[float, ...]
    kept_tokens: tuple[int, ...] | None
    tokens: int | None
    path: str
    backend: str
    reason: str | None
    learned_ratio: tuple[float, ...] | None = None
    untrained_router: bool = False


class Summary(list):
    """A list of `LayerSummary`; printing it gives a table.

    dense: names of the blocks that are never routed, and why.
    baseline: the name of what runs the blocks in place of routers, None where routers do."""

    def __init__(
        self, layers: list[LayerSummary], enabled: bool, dense: dict[str, str], baseline: str | None = None
    ):
        super().__init__(layers)
        self.enabled, self.dense, self.baseline = enabled, dense, baseline

    def to_dict(self) -> dict:
        """Plain JSON types."""
        layers = [asdict(layer) for layer in self]
        return {
            "enabled": self.enabled,
            "layers": layers,
            "dense": self.dense,
            "baseline": self.baseline,
        }

    def __str__(self) -> str:
        lines = [f"{'layer':>5}  {'kept ratio':<24}  {'kept tokens':<22}  {'runs as':<22}  block"]
        for row in self:
            ratio = " ".join(f"{r:.2f}".removesuffix("0") for r in row.kept_ratio)
            if row.learned_ratio is not None:
                ratio += f" ({' '.join(f'{r:.3f}' for r in row.learned_ratio)})"
            kept = "-" if row.tokens is None else f"{' '.join(map(str, row.kept_tokens))} of {row.tokens}"
            why = "" if row.reason is None else f" ({row.reason})"
            way = f"{row.path}, {row.backend}"
            router = ", untrained router" if row.untrained_router else ""
            lines.append(f"{row.layer:>5}  {ratio:<24}  {kept:<22}  {way:<22}  {row.name}{why}{router}")
        lines += [f"left dense: {name} ({why})" for name, why in self.dense.items()]
        if self.baseline is not None:
            lines.append(f"baseline {self.baseline}: no routers, nothing is trained")
        if not self.enabled:
            lines.append("diffratio is disabled: the blocks run dense")
        return "\n".join(lines)


def _backend(block, one_operator: bool, kept: tuple[int, ...]) -> str:
    """Which kernels a block's next call takes: for its rows and, in `mod_block`, for its attention; on a GPU
    that depends on how many tokens are kept."""
    weight = next(p for p in block.parameters() if p.is_floating_point())
    device, dtype = weight.device, weight.dtype
    rows = f"{choose('mod_block', 'auto', device, dtype)} rows"
    if not one_operator:
        return rows
    if device.type != "cuda":
        return f"{rows}, {choose('attention', 'auto', device, dtype)} attention"
    attn = getattr(block, "attn1", None)
    if not hasattr(attn, "inner_dim") or not kept:
        return f"{rows}, attention by the kept tokens"
    about = attn.inner_dim // attn.heads, dtype, device, False, False, False
    chosen = dict.fromkeys(attention_choice(Attention("self", k, k, *about)) for k in kept)
    return f"{rows}, {' or '.join(f'{one.backend} attention ({one.reason})' for one in chosen)}"


def summary(model_or_pipe, tokens: int | None = None) -> Summary:
    """Every patched block of a model as it stands now.

    Args:
        model_or_pipe: a routed model, a pipeline with one, or a module that holds routed blocks.
        tokens: N for the kept counts; None is N of the last call.

    Returns:
        A `LayerSummary` per block. path: "mod_block" (raw weights alone) or "operators" (families with
        norms, positions or a text stream in attention: our operators, the block's plain products between
        them), or "modules" (some parts are no plain ones); or the name of a baseline; reason: why;
        backend: which kernels.

    Raises:
        ValueError: no block is patched; `tokens` is no positive integer; learned ratios have no values to
            read.

    Example:
        >>> apply_diffratio(model, DiffRatioConfig(compression=0.3))
        >>> print(summary(model, tokens=64))
    """
    if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1):
        raise ValueError(f"tokens={tokens!r} must be a positive integer")
    model = transformer_of(model_or_pipe)
    shared = routed_model(model, baseline=True)
    if shared.ratios is not None:
        check_values(model, [shared.ratios], "its ratios are learned and are")
    with torch.no_grad():
        layers = [_row(layer, tokens) for layer in routed_layers(model)]
        name = None if shared.baseline is None else shared.baseline.name
        return Summary(layers, shared.enabled, shared.dense, name)


def _row(layer: RoutedLayer, tokens: int | None) -> LayerSummary:
    table, n = layer.model.ratios, layer.tokens if tokens is None else tokens
    rounding, baseline = layer.model.config.rounding, layer.model.baseline
    if baseline is None:
        tenths = layer.kept_now()
        ratios = tuple(t / 10 for t in tenths)
        kept = None if n is None else tuple(kept_tokens(t, n, rounding) for t in tenths)
    else:
        ratios = baseline.kept_ratios(layer.number, len(layer.model.layers))
        kept = None if n is None else tuple(n if ratio == 1 else baseline.left(n) for ratio in ratios)
    try:
        layer.inspect()
        reason = layer.spec.slow_reason(layer.block) or (None if baseline else layer.router_reason)
    except ValueError as error:  # what a call would raise
        reason = str(error)
    path = baseline.name if baseline else layer.spec.path if reason is None else "modules"
    return LayerSummary(
        layer=layer.number,
        name=layer.name,
        kept_ratio=ratios,
        kept_tokens=kept,
        tokens=n,
        path=path,
        backend=_backend(layer.block, path == layer.spec.path, kept or ()),
        reason=reason,
        learned_ratio=None if table is None else tuple(table.host()[layer.row]),
        untrained_router=layer.untrained,
    )
