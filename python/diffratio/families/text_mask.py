"""A block's text: masks as lengths, keys and values."""

import torch
from torch import Tensor, nn

from diffratio_kernels.blocks.stream import Valid


def text_lengths(mask: Tensor, model) -> tuple[Tensor | None, Tensor] | None:
    """How a text mask leaves tokens out, as attention takes it.

    Attention does not depend on the order of keys, so any mask of tokens becomes a length. Where no token
    counts, the bias shifts all scores alike and every token counts.

    Args:
        mask: [B, 1, M], bool or PixArt's additive 0 and -10000.
        model: the `RoutedModel`; all blocks of one call of it are given one mask, which is looked at once.

    Returns:
        The order that puts the tokens that count first [B, M] (None where they are first already), and how
        many do [B] int32; None for a mask that does more, or whose values cannot be looked at: in a compiled
        graph, a CUDA graph, on the meta device, and on a GPU outside of training, where it would wait.
    """
    if mask.dim() != 3 or mask.shape[1] != 1:
        return None
    if torch.compiler.is_compiling():
        return _ordered(mask[:, 0]) if mask.dtype == torch.bool else None
    memo = model.memo
    seen, found = (None, None) if memo is None else memo.get("text", (None, None))
    if seen is mask:
        return found
    found = _look(mask, waits=torch.is_grad_enabled() or model.text is not None)
    if memo is not None:
        memo["text"] = mask, found
    return found


def capturing() -> bool:
    """Whether the current CUDA stream is being captured into a graph."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _look(mask: Tensor, waits: bool) -> tuple[Tensor | None, Tensor] | None:
    with torch.no_grad():
        if mask.is_meta or capturing() or not (waits or mask.device.type == "cpu"):
            return _ordered(mask[:, 0]) if mask.dtype == torch.bool else None
        kept = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0
        leaves_out = torch.ones((), dtype=torch.bool, device=mask.device)
        if mask.dtype != torch.bool:
            leaves_out = (kept | (mask[:, 0] <= -10000)).all()
        first = (kept[:, 1:] <= kept[:, :-1]).all()
        leaves_out, first = torch.stack([leaves_out, first]).tolist()  # one wait for both
        if not leaves_out:
            return None
        order, lengths = _ordered(kept)
        return None if first else order, lengths


def _ordered(kept: Tensor) -> tuple[Tensor, Tensor]:
    valid = Valid.of(kept)
    return valid.order, valid.lengths.masked_fill(valid.lengths == 0, kept.shape[1])


def keys_values_of(to_k: nn.Module, to_v: nn.Module, text: Tensor, order: Tensor | None, model) -> Tensor:
    """Keys and values [B, M, 2, D] of a text [B, M, .] in an order; inside of `cache_text` projected once."""

    def project() -> Tensor:
        return torch.stack([to_k(text), to_v(text)], dim=2)

    keys_values = project() if model.text is None else model.text.project(project, text, to_k, to_v)
    if order is None:
        return keys_values
    samples = torch.arange(order.shape[0], device=order.device)
    return keys_values[samples[:, None], order]
