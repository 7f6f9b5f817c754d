"""The row steps as they are written in plain PyTorch, for equal kept counts: peers of our operators by name.

They take the operators' arguments. Run eagerly they are one kernel a line.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def route(x, router_weight, keep, router_bias=None) -> tuple[Tensor, Tensor]:
    """Scores, `torch.topk` and a sort, as in the authors' pseudo-code: weights and places [B, K]."""
    bias = None if router_bias is None else router_bias.view(1)
    scores = torch.sigmoid(F.linear(x, router_weight[None], bias)).squeeze(-1)
    weights, selected = torch.topk(scores, keep[0], dim=1, sorted=False)
    selected, order = torch.sort(selected, dim=1)
    return weights.gather(1, order), selected


def adaln(rows, index, tokens, shift, scale, eps=1e-6) -> Tensor:
    """LayerNorm, then scale and shift of each sample."""
    batch, width = shift.shape
    normed = F.layer_norm(rows.view(batch, -1, width), (width,), eps=eps)
    return (normed * (1 + scale[:, None]) + shift[:, None]).flatten(0, 1)


def gather_adaln(x, index, shift, scale, eps=1e-6) -> tuple[Tensor, Tensor]:
    """A gather, then LayerNorm, scale and shift."""
    rows = x.flatten(0, 1)[index]
    return rows, adaln(rows, index, x.shape[1], shift, scale, eps)


def gate_residual(hidden, branch, gate, index, tokens) -> Tensor:
    """hidden + gate * branch."""
    rows, update = (t.view(gate.shape[0], -1, gate.shape[1]) for t in (hidden, branch))
    return (rows + gate[:, None] * update).flatten(0, 1)


def scatter_rescale(x, index, hidden, branch, gate, logits) -> Tensor:
    """`index_put` of hidden + score * gate * branch into a copy of x (rescale "mlp")."""
    scores = torch.sigmoid(logits.flatten()[index])[:, None].to(x.dtype)
    update = gate_residual(hidden, scores * branch, gate, index, x.shape[1])
    return x.flatten(0, 1).index_put((index,), update).view(x.shape)


PEERS = {
    function.__name__: function for function in (route, adaln, gather_adaln, gate_residual, scatter_rescale)
}
