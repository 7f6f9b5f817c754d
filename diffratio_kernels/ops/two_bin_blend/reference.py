"""`two_bin_blend` in eager PyTorch."""

from torch import Tensor

from ...types import Finish
from ..route.reference import accumulation_dtype
from ..two_bin_gelu.reference import blend, branch_weight


def two_bin_blend(given: Finish) -> Tensor:
    """Blend the residual streams, finish the kept rows as `scatter_rescale` does, scatter them into a copy of
    x.

    hidden [T + S, D] of both bins; branch [T, D], the output of fc2 on the blended rows (its bias weighted
    by omega). With h the blend of hidden, u = gate * branch and s the score, row i becomes
    "mlp": (1 - omega) x_i + h + s u; "residual": x_i + s (h - omega x_i + u);
    "output": (1 - omega) x_i + s (h + u); "none": (1 - omega) x_i + h + u.
    """
    x, rows, rescale = given.x, given.rows, given.rescale
    index, dtype = rows.index, accumulation_dtype(x.dtype)
    flat = x.reshape(-1, x.shape[2])
    score = (rescale.score_scale * given.logits.reshape(-1)[index].to(dtype).sigmoid())[:, None]
    update = given.gate.to(dtype)[index // rows.tokens] * given.branch.to(dtype)
    stream = blend(given.hidden.to(dtype), rows.bins)
    omega = branch_weight(rows.bins).to(dtype)
    kept = flat[index].to(dtype)
    if rescale.mode == "mlp":
        finished = (1 - omega) * kept + stream + score * update
    elif rescale.mode == "residual":
        finished = kept + score * (stream - omega * kept + update)
    elif rescale.mode == "output":
        finished = (1 - omega) * kept + score * (stream + update)
    elif rescale.mode == "none":
        finished = (1 - omega) * kept + stream + update
    else:
        raise ValueError(f"rescale={rescale.mode!r} must be one of 'mlp', 'residual', 'output', 'none'")
    return flat.index_copy(0, index, finished.to(x.dtype)).reshape(x.shape)
